//! Everything that is read from outside, spoilt in every way: no panic, no answer
//! that takes two seconds of computing, no memory beyond a bound, nothing that steers a terminal.
//!
//! `FUZZ_INPUTS` is the number of inputs for each target (400 without it), `FUZZ_TARGET`
//! names one target, `FUZZ_SEED` begins elsewhere; `--nocapture` shows what was met. Of a
//! failure, the input lies in the directory of temporary files.

#![cfg(target_os = "linux")]

#[path = "common/cifar.rs"]
mod cifar;
mod common;
#[path = "common/files.rs"]
mod files;
#[path = "common/peak.rs"]
mod peak;

use cifar::Set;
use common::{directory, npz_arrays};
use files::{npy, png_of, zip};
use flate2::{Compression, Crc, write::GzEncoder};
use peak::peak_of;
use replicate::app::score::{Input, source};
use replicate::error::Error;
use replicate::judge::golden::{read_golden, write_golden};
use replicate::judge::paper;
use replicate::measure::statistics::Statistics;
use replicate::store::fetch::{Asset, Given, Hash, Hub, Inputs, Options, Patience, fetch, find};
use replicate::store::formats::torch;
use replicate::store::*;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Time that an input may compute.
const SLOWEST: Duration = Duration::from_secs(2);
/// Time that it may take on a machine that has other things to do.
const LONGEST: Duration = Duration::from_secs(60);
const MOST_MEMORY: usize = 500 << 20;

/// xorshift64*, by Vigna.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// One to four changes.
fn spoil(bytes: &mut Vec<u8>, other: &[u8], draws: &mut Draws) {
    for _ in 0..1 + draws.below(4) {
        if bytes.is_empty() {
            bytes.push(draws.next() as u8);
        }
        // Half of them near the beginning or the end, where formats describe themselves.
        let window = if draws.below(2) == 0 { bytes.len() } else { bytes.len().min(300) };
        let at =
            if draws.below(2) == 0 { draws.below(window) } else { bytes.len() - 1 - draws.below(window) };
        let length = (1 + draws.below(8)).min(bytes.len() - at);
        match draws.below(12) {
            0 | 1 => bytes[at] ^= 1 << draws.below(8),
            2 => bytes[at] = draws.next() as u8,
            3 => bytes[at..at + length].fill([0, 0xff, 0x7f, 0x80, b'9'][draws.below(5)]),
            4 => {
                let number = [0, 1, u64::MAX, i64::MAX as u64, u32::MAX as u64, 1 << 31, bytes.len() as u64];
                let number = number[draws.below(7)].to_le_bytes();
                bytes[at..at + length].copy_from_slice(&number[..length]);
            }
            5 => drop(bytes.drain(at..at + length)),
            6 => bytes.truncate(at),
            7 => {
                let part = bytes[at..at + length].to_vec();
                let times = 1 + draws.below(40);
                bytes.splice(at..at, part.repeat(times));
            }
            8 => {
                let from = draws.below(other.len().max(1));
                let part = &other[from.min(other.len())..(from + draws.below(200)).min(other.len())];
                bytes.splice(at..at, part.iter().copied());
            }
            9 => {
                let text = [
                    "\x1b]0;x\x07",
                    "\u{202e}",
                    "../../",
                    "-1",
                    "1e999",
                    "nan",
                    "\0",
                    "\n\n",
                    "99999999999999999999",
                ];
                bytes.splice(at..at, text[draws.below(9)].bytes());
            }
            10 => {
                // A field of thrift that is a list of a thousand million, as parquet's descriptions have them.
                let kind = 0xf0 | draws.below(16) as u8;
                bytes.splice(at..at, [0x10 | draws.below(16) as u8, kind, 0xff, 0xff, 0xff, 0xff, 0x03]);
            }
            _ => {
                let to = draws.below(bytes.len());
                bytes.swap(at, to);
            }
        }
        bytes.truncate(1 << 20);
    }
}

/// Where a target may write, and a place for the one file that most read.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// In memory where the system has a place for it, since millions of files are written.
    fn new() -> Place {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Place { dir: dir.unwrap() }
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join("input");
        fs::write(&path, bytes).unwrap();
        path
    }
}

type Told = Result<(), String>;

struct Target {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    /// Checksums and what is around, put right again after a change.
    seal: Box<dyn Fn(Vec<u8>) -> Vec<u8>>,
    read: Box<dyn Fn(&Place, &[u8]) -> Told>,
}

fn target(
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    seal: impl Fn(Vec<u8>) -> Vec<u8> + 'static,
    read: impl Fn(&Place, &[u8]) -> Told + 'static,
) -> Target {
    Target { name, seeds, seal: Box::new(seal), read: Box::new(read) }
}

fn told<T>(result: Result<T, impl std::fmt::Display>) -> Told {
    result.map(drop).map_err(|error| error.to_string())
}

/// What `score` does with a file, up to the network.
fn score(path: &Path) -> Told {
    let (input, left_out) = source::open(path).map_err(|error| error.to_string())?;
    _ = left_out.note();
    match input {
        Input::Images(set) => set.batches.take(4).try_for_each(|batch| told(batch)),
        Input::Features(set) => set.batches.take(4).try_for_each(|batch| told(batch)),
        Input::Statistics(statistics) if statistics.mean.len() <= 64 => told(statistics.factor()),
        Input::Statistics(_) => Ok(()),
    }
}

fn cifar_of(set: Set) -> impl Fn(&Place, &[u8]) -> Told {
    move |place, bytes| told(cifar::train(set, &place.file(bytes)))
}

/// Pickles of a directory of the authors' python files.
fn batches(place: &Place, bytes: &[u8]) -> Told {
    let dir = place.dir.path().join("batches");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("train"), bytes).unwrap();
    told(cifar::train(Set::Cifar100, &dir))
}

fn gzip(bytes: Vec<u8>) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&bytes).unwrap();
    encoder.finish().unwrap()
}

/// The sums of a tar's headers, as far as sizes lead from one to the next.
fn seal_tar(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while at + 512 <= bytes.len() && bytes[at..at + 512].iter().any(|byte| *byte != 0) {
        bytes[at + 148..at + 156].fill(b' ');
        let sum: u32 = bytes[at..at + 512].iter().map(|byte| *byte as u32).sum();
        bytes[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = String::from_utf8_lossy(&bytes[at + 124..at + 136]).into_owned();
        let size = usize::from_str_radix(size.trim_matches(['\0', ' ']), 8).unwrap_or(0);
        at = at.saturating_add(512).saturating_add(size.next_multiple_of(512).min(1 << 30));
    }
    gzip(bytes)
}

/// The checksums of a PNG's chunks.
fn seal_png(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut at = 8;
    while let Some(length) = bytes.get(at..at + 4) {
        let end = at + 8 + u32::from_be_bytes(length.try_into().unwrap()) as usize;
        if end + 4 > bytes.len() {
            break;
        }
        let mut crc = Crc::new();
        crc.update(&bytes[at + 4..end]);
        bytes[end..end + 4].copy_from_slice(&crc.sum().to_be_bytes());
        at = end + 4;
    }
    bytes
}

fn rgb_png(side: u32, seed: u8) -> Vec<u8> {
    let pixels: Vec<u8> = (0..3 * side * side).map(|i| (i as u8).wrapping_mul(seed)).collect();
    png_of(png::ColorType::Rgb, png::BitDepth::Eight, side, side, &pixels)
}

fn f8(values: impl IntoIterator<Item = f64>) -> Vec<u8> {
    values.into_iter().flat_map(f64::to_le_bytes).collect()
}

fn arrays() -> Vec<Vec<u8>> {
    vec![
        npy("|u1", &[3, 4, 4, 3], &[7; 144]),
        npy("<f4", &[5, 3], &[1; 60]),
        npy(">f8", &[4], &f8([1.0; 4])),
        files::npy_ordered("<f2", &[3, 4], &[0; 24], "True"),
    ]
}

fn statistics() -> Vec<Vec<u8>> {
    vec![npy("<f8", &[2, 2], &f8([2.0, 1.0, 1.0, 2.0])), npy("<f4", &[2, 2], &[0; 16])]
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(directory().join(name)).unwrap()
}

fn cifar_file(name: &str) -> Vec<u8> {
    fixture(&format!("cifar/{name}"))
}

fn checkpoints() -> Vec<Vec<u8>> {
    ["2", "3", "4", "5"].map(|p| fixture(&format!("checkpoints/snapshot-protocol{p}.pkl"))).into()
}

fn torch_of(_: &Place, bytes: &[u8]) -> Told {
    let checkpoint = torch::parse(Path::new("file.pth"), bytes).map_err(|error| error.to_string())?;
    _ = checkpoint.describe();
    told(checkpoint.arrays())
}

const EXPERIMENT: &str = "objective = dijs\nseed = 0\n";

/// A store with one published entry, and one with a run that was stopped.
fn store(place: &Place) -> Entry {
    Store::open(&place.dir.path().join("store")).unwrap().entry(&Key::of(EXPERIMENT), "dijs-s0")
}

fn begun(place: &Place) -> Lock {
    store(place).lock(&mut |_| Ok(())).unwrap()
}

fn manifest() -> Vec<u8> {
    let place = Place::new();
    let lock = begun(&place);
    lock.write("metrics.csv", b"images,loss\n64,0.5\n").unwrap();
    let manifest = Manifest { experiment: EXPERIMENT.into(), ..Manifest::default() };
    lock.publish(manifest, &["metrics.csv"]).unwrap();
    fs::read(lock.path("manifest.json")).unwrap()
}

/// As somebody alters a manifest who also corrects its SHA-256.
fn seal_manifest(bytes: Vec<u8>) -> Vec<u8> {
    let Ok(text) = String::from_utf8(bytes.clone()) else { return bytes };
    let field = "\"manifest_sha256\": \"";
    let Some((before, after)) = text.split_once(field) else { return bytes };
    let rest = after.split_once('"').map_or("", |(_, rest)| rest);
    let unsealed = format!("{before}{field}\"{rest}");
    let digest = sha256_hex(unsealed.as_bytes());
    format!("{before}{field}{digest}\"{rest}").into_bytes()
}

fn checkpoint() -> Vec<u8> {
    let place = Place::new();
    let lock = begun(&place);
    lock.write("grid.png", b"grid").unwrap();
    let array = Array { shape: vec![2, 3], data: vec![1.0; 6] };
    let text = BTreeMap::from([("csv".to_string(), "images\n".to_string())]);
    lock.save_checkpoint(&Checkpoint { images: 64, tensors: [("w".to_string(), array)].into(), text })
        .unwrap();
    fs::read(lock.checkpoint_dir().join("a.safetensors")).unwrap()
}

/// The digest that a checkpoint has of itself, where it can still be read.
fn seal_checkpoint(bytes: Vec<u8>) -> Vec<u8> {
    let Ok((tensors, mut text)) = read_safetensors(Path::new("x"), &bytes) else { return bytes };
    text.remove("sha256");
    let digest = sha256_hex(&write_safetensors(&tensors, &text));
    text.insert("sha256".into(), digest);
    write_safetensors(&tensors, &text)
}

fn resume(place: &Place, bytes: &[u8]) -> Told {
    let lock = begun(place);
    fs::create_dir_all(lock.checkpoint_dir()).unwrap();
    fs::write(lock.path("grid.png"), b"grid").unwrap();
    for name in ["a.safetensors", "outputs.safetensors"] {
        fs::write(lock.checkpoint_dir().join(name), bytes).unwrap();
    }
    let (_, notices) = lock.resume().map_err(|error| error.to_string())?;
    _ = lock.finished_output("grid.png").map_err(|error| error.to_string())?;
    notices.first().map_or(Ok(()), |notice| Err(notice.clone()))
}

/// What a manifest says of files elsewhere must not be so much as looked at.
fn published(place: &Place, bytes: &[u8]) -> Told {
    let entry = store(place);
    fs::create_dir_all(entry.dir()).unwrap();
    fs::write(entry.path("experiment.txt"), EXPERIMENT).unwrap();
    fs::write(entry.path("metrics.csv"), b"images,loss\n64,0.5\n").unwrap();
    fs::write(entry.path("manifest.json"), bytes).unwrap();
    _ = Store::open(&place.dir.path().join("store")).unwrap().finished_entries().unwrap();
    match entry.finished().map_err(|error| error.to_string())? {
        Finished::Damaged(reason) => Err(reason),
        _ => Ok(()),
    }
}

fn csv_seeds(dir: &str, names: &[&str]) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    // Some lines of each: a long file is spoilt in few places.
    let some = |text: String| text.lines().take(12).map(|line| format!("{line}\n")).collect::<String>();
    names.iter().map(|name| some(fs::read_to_string(root.join(name)).unwrap()).into_bytes()).collect()
}

/// What was read is written, and read again, as it was.
fn golden_of(place: &Place, bytes: &[u8]) -> Told {
    let goldens = read_golden(&place.file(bytes)).map_err(|error| error.to_string())?;
    let text = write_golden(&goldens);
    let again = read_golden(&place.file(text.as_bytes())).unwrap();
    assert_eq!(write_golden(&again), text);
    Ok(())
}

/// What a store says of a file that it has not.
fn record(place: &Place, bytes: &[u8]) -> Told {
    let inputs = Inputs::of(&place.dir.path().join("store"));
    fs::create_dir_all(inputs.dir().join("index")).unwrap();
    fs::write(inputs.dir().join("index/thing"), bytes).unwrap();
    told(find(&inputs, &THING))
}

/// Nobody published its size or its SHA-256.
const THING: Asset =
    Asset { id: "thing", what: "a thing", licence: "MIT", bytes: None, hash: Hash::Unpublished, from: &[] };

/// All files of `paper/`, as their first line says which it is.
fn paper_of(place: &Place, bytes: &[u8]) -> Told {
    let dir = place.dir.path();
    for name in ["table1.csv", "table2.csv", "claims.csv", "setup.csv"] {
        fs::write(dir.join(name), bytes).unwrap();
    }
    let results = [
        told(paper::table1(dir)),
        told(paper::table2(dir)),
        told(paper::claims(dir, &[])),
        told(paper::setup(dir)),
        told(paper::printed(dir)),
    ];
    // At most one of them reads it; all errors are looked at.
    let read = results.iter().any(Result::is_ok);
    let errors: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    if read { Ok(()) } else { Err(errors.join("\n")) }
}

/// A server that answers with whatever bytes it is told to.
fn answers() -> impl Fn(&Place, &[u8]) -> Told {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/thing", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::channel::<Vec<u8>>();
    std::thread::spawn(move || {
        let mut answer = Vec::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            answer = receiver.try_iter().last().unwrap_or(answer);
            let mut request = [0; 2048];
            _ = stream.read(&mut request);
            _ = stream.write_all(&answer);
        }
    });
    move |place, bytes| {
        sender.send(bytes.to_vec()).unwrap();
        let patience = Patience {
            stall: Duration::from_millis(300),
            attempts: 2,
            pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(2),
        };
        let hub = Hub { endpoint: address.clone(), cache: "/nonexistent".into(), offline: false };
        let from = Some(Given::parse(&address));
        let options = Options { from, mirror: None, offline: false, hub, patience, check: &|_, _| Ok(()) };
        let store = place.dir.path().join("fetched");
        let result = told(fetch(&Inputs::of(&store), &THING, &options, &mut |_| Ok(())));
        let outside: Vec<_> =
            fs::read_dir(place.dir.path()).unwrap().flatten().map(|f| f.file_name()).collect();
        assert!(outside.iter().all(|name| name == "fetched"), "{outside:?}");
        _ = fs::remove_dir_all(&store);
        result
    }
}

fn targets() -> Vec<Target> {
    let plain = |bytes: Vec<u8>| bytes;
    let pickles = || {
        let archive = cifar_file("cifar-100-python.tar.gz");
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&archive[..]).take(1 << 24));
        let mut bytes = Vec::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.path().unwrap().ends_with("train") {
                entry.read_to_end(&mut bytes).unwrap();
            }
        }
        let old = b"(dp0\nS'fine_labels'\np1\n(lp2\nI1\nasS'data'\np3\ncnumpy.core.multiarray\n_reconstruct\np4\n(cnumpy\nndarray\np5\n(I0\ntp6\nS'b'\ntRp7\n(I1\n(I1\nI3072\ntcnumpy\ndtype\n(S'u1'\nI00\nI01\ntRI00\nVx\\u0041\ntbs.";
        vec![bytes, old.to_vec()]
    };
    let untar = |bytes: Vec<u8>| {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut plain).unwrap();
        plain
    };
    let one = |name: &'static str| move |bytes: Vec<u8>| zip(&[(name, bytes)], true);
    let beside_mu =
        |bytes: Vec<u8>| zip(&[("mu.npy", npy("<f8", &[2], &f8([0.0; 2]))), ("sigma.npy", bytes)], true);
    let edm = |bytes: Vec<u8>| {
        let labels = br#"{"labels": [["a.png", 6]]}"#.to_vec();
        zip(&[("a.png", seal_png(bytes)), ("dataset.json", labels)], true)
    };
    let labels = |bytes: Vec<u8>| zip(&[("a.png", rgb_png(32, 3)), ("dataset.json", bytes)], true);
    let torch_zip = |bytes: Vec<u8>| zip(&[("w/data.pkl", bytes), ("w/data/0", vec![0; 24])], false);
    let picture = |place: &Place, bytes: &[u8]| {
        let dir = place.dir.path().join("set");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("a.png"), bytes).unwrap();
        score(&dir)
    };
    let scored = |place: &Place, bytes: &[u8]| score(&place.file(bytes));
    let npz_of = |place: &Place, bytes: &[u8]| told(npz_arrays(&place.file(bytes)));
    vec![
        target("npy", arrays(), plain, scored),
        target("npz", arrays(), one("features.npy"), scored),
        target("npz, outside", vec![zip(&[("a.npy", arrays()[0].clone()), ("b.npy", arrays()[1].clone())], true)], plain, scored),
        target("npz, whole", arrays(), one("x.npy"), npz_of),
        target("statistics", statistics(), beside_mu, |place, bytes| told(Statistics::read(&place.file(bytes)))),
        target("safetensors", vec![checkpoint()], plain, |_, bytes| told(read_safetensors(Path::new("x"), bytes))),
        target("checkpoints of the store", vec![checkpoint()], seal_checkpoint, resume),
        target("manifests", vec![manifest()], seal_manifest, published),
        target("records of inputs", vec![format!(r#"{{"sha256": "{}", "bytes": 3, "from": "x", "first_seen": true}}"#, "ab".repeat(32)).into_bytes()], plain, record),
        target("snapshots", checkpoints(), plain, torch_of),
        target("torch zip", vec![fixture("checkpoints/strided.pth")], plain, torch_of),
        target("torch zip, inside", checkpoints(), torch_zip, torch_of),
        target("torch legacy", vec![fixture("checkpoints/strided-legacy.pth")], plain, torch_of),
        target("parquet", vec![cifar_file("cifar100-train.parquet")], plain, cifar_of(Set::Cifar100)),
        target("tar.gz", vec![cifar_file("cifar-100-python.tar.gz")], plain, cifar_of(Set::Cifar100)),
        target("tar", vec![untar(cifar_file("cifar-100-python.tar.gz"))], seal_tar, cifar_of(Set::Cifar100)),
        target("EDM zip, images", vec![rgb_png(32, 5)], edm, cifar_of(Set::Cifar10)),
        target("EDM zip, labels", vec![br#"{"labels": [["a.png", 6]]}"#.to_vec()], labels, cifar_of(Set::Cifar10)),
        target("PNG", vec![rgb_png(8, 3), rgb_png(5, 7)], seal_png, picture),
        target("zip of PNG", vec![zip(&[("a.png", rgb_png(4, 3)), (".b", vec![1])], true)], plain, scored),
        target("CIFAR pickles", pickles(), plain, batches),
        target("CIFAR records", vec![vec![3; 2 * 3074]], plain, |place, bytes| {
            let dir = place.dir.path().join("records");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("train.bin"), bytes).unwrap();
            told(cifar::train(Set::Cifar100, &dir))
        }),
        target("golden.csv", csv_seeds("golden", &["table1.csv", "table2.csv"]), plain, golden_of),
        target("paper.csv", csv_seeds("paper", &["table1.csv", "table2.csv", "claims.csv", "setup.csv"]), plain, paper_of),
        target(
            "HTTP answers",
            vec![
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec(),
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nETag: \"../../x\"\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec(),
                b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/a b\r\nContent-Length: 0\r\n\r\n".to_vec(),
                b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/5\r\nContent-Length: 5\r\n\r\nhello".to_vec(),
            ],
            plain,
            answers(),
        ),
    ]
}

/// Time that this thread has computed.
fn computed() -> Duration {
    // SAFETY: zeros are a time, and it is written before it is read.
    let time = unsafe {
        let mut time = std::mem::zeroed::<libc::timespec>();
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time);
        time
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Every input of a target; how many were read, and the worst time and memory.
fn attack(target: &Target, inputs: usize, seed: u64) -> (usize, Duration, usize) {
    let place = Place::new();
    let mut draws = Draws(seed | 1);
    let (mut read, mut slowest, mut most) = (0, Duration::ZERO, 0);
    for seed in &target.seeds {
        // Unspoilt, a seed need not be read (some are parts of others), but must not hurt.
        _ = (target.read)(&place, &(target.seal)(seed.clone()));
    }
    for input in 0..inputs {
        let mut bytes = target.seeds[draws.below(target.seeds.len())].clone();
        let other = target.seeds[draws.below(target.seeds.len())].clone();
        spoil(&mut bytes, &other, &mut draws);
        let bytes = (target.seal)(bytes);
        let once = || {
            let (begun, computed) = (Instant::now(), computed());
            let read = || (target.read)(&place, &bytes);
            let (result, peak) = peak_of(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)));
            (result, peak, self::computed() - computed, begun.elapsed())
        };
        let mut tried = once();
        // The machine may have paused; what hangs does so again.
        if tried.3 > LONGEST {
            tried = once();
        }
        let (result, peak, took, waited) = tried;
        let wrong = match &result {
            Err(_) => Some("a panic".to_string()),
            Ok(Err(text)) if text.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}') => {
                Some(format!("a message that steers a terminal: {text:?}"))
            }
            Ok(Err(text)) if text.len() > 20_000 => Some(format!("a message of {} bytes", text.len())),
            Ok(_) if took > SLOWEST || waited > LONGEST => Some(format!("{took:?}, {waited:?} in all")),
            Ok(_) if peak > MOST_MEMORY => Some(format!("{peak} bytes of memory")),
            Ok(_) => None,
        };
        if let Some(wrong) = wrong {
            let path = std::env::temp_dir()
                .join(format!("fuzz-{}-{input}", target.name.replace([' ', ',', '.'], "-")));
            fs::write(&path, &bytes).unwrap();
            panic!("{}: {wrong}; the input is {}", target.name, path.display());
        }
        read += matches!(result, Ok(Ok(()))) as usize;
        slowest = slowest.max(took);
        most = most.max(peak);
    }
    (read, slowest, most)
}

#[test]
fn spoilt_inputs_do_no_harm() {
    let variable = |name: &str| std::env::var(name).ok();
    let inputs: usize = variable("FUZZ_INPUTS").map_or(400, |n| n.parse().expect("a number"));
    let seed: u64 = variable("FUZZ_SEED").map_or(1, |n| n.parse().expect("a number"));
    let mut total = 0;
    for target in targets() {
        if variable("FUZZ_TARGET").is_some_and(|only| only != target.name) {
            continue;
        }
        // A request and its answer take as long as a hundred files.
        let inputs = if target.name == "HTTP answers" { inputs.div_ceil(10) } else { inputs };
        let begun = Instant::now();
        let (read, slowest, most) = attack(&target, inputs, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        total += inputs;
        println!(
            "{:26} {inputs:9} inputs, {read:8} read, slowest {slowest:>9.1?}, {:6.1} MB, {:.0?}",
            target.name,
            most as f64 / 1e6,
            begun.elapsed()
        );
    }
    println!("{total} inputs in all");
}

/// The errors that readers give are of the kinds that have an exit code of their own.
#[test]
fn what_is_no_input_is_an_input_error() {
    let place = Place::new();
    let error = cifar::train(Set::Cifar10, &place.file(b"nothing of the kind")).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
}
