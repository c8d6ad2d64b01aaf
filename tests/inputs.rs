//! Inputs as people have them: which files are a set, statistics that other tools
//! write, NumPy's files in every spelling, and files that are something else.

mod common;
#[path = "common/files.rs"]
mod files;
#[path = "common/peak.rs"]
mod peak;

use common::moments;
use files::{npy, npy_ordered, png_of, zip};
use peak::peak_of;
use replicate::app::score::{Input, source};
use replicate::app::score::{RowStream, Wanted};
use replicate::error::{EXIT_INPUT, EXIT_USAGE, Error};
use replicate::measure::metrics::Features;
use replicate::measure::metrics::frechet::{distance, frechet_distance};
use replicate::measure::statistics::Statistics;
use replicate::rng::Stream;
use replicate::store::formats::{Fault, is_hidden};
use replicate::store::sha256_hex;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// 4 x 4 pixels that differ with `i`, RGB by RGB.
fn rgb(i: usize) -> Vec<u8> {
    (0..48).map(|p| ((i * 31 + p * 7) % 256) as u8).collect()
}

fn png(i: usize) -> Vec<u8> {
    png_of(png::ColorType::Rgb, png::BitDepth::Eight, 4, 4, &rgb(i))
}

/// Channel by channel, of several images.
fn planes(images: impl Iterator<Item = usize>) -> Vec<u8> {
    images
        .flat_map(|i| {
            let rgb = rgb(i);
            (0..3).flat_map(move |c| rgb.clone().into_iter().skip(c).step_by(3))
        })
        .collect()
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// The pixels of a set, and the note on what was left out.
fn read(path: &Path) -> Result<(Vec<u8>, Option<String>), Error> {
    let (Input::Images(set), left_out) = source::open(path)? else { panic!("{}: no images", path.display()) };
    let mut pixels = Vec::new();
    for batch in set.batches {
        pixels.extend(batch?.pixels);
    }
    Ok((pixels, left_out.note()))
}

fn complaint(path: &Path) -> String {
    source::open(path).err().unwrap_or_else(|| panic!("{} is accepted", path.display())).to_string()
}

// ---- which files are the set ------------------------------------------------

const HIDDEN: [&str; 7] = [
    ".DS_Store",
    "._001.png",
    "__MACOSX/._001.png",
    ".ipynb_checkpoints/001-checkpoint.png",
    ".Trash-1000/files/old.png",
    "sub/.thumbnails/001.png",
    "@eaDir/001.png/SYNO_THUMB.jpg",
];

#[test]
fn hidden_files_are_left_out_alike_everywhere_and_counted() {
    let dir = Dir::new();
    let visible: Vec<(String, Vec<u8>)> = (0..5).map(|i| (format!("sub/{i:03}.png"), png(i))).collect();
    let mut archive: Vec<(&str, Vec<u8>)> = Vec::new();
    for (name, bytes) in &visible {
        dir.write(&format!("folder/{name}"), bytes);
        archive.push((name, bytes.clone()));
    }
    // A hidden file may be anything, a good image too.
    for (i, name) in HIDDEN.iter().enumerate() {
        let bytes = if i % 2 == 0 { b"\0\x05\x16\x07junk".to_vec() } else { png(100 + i) };
        dir.write(&format!("folder/{name}"), &bytes);
        archive.push((name, bytes));
    }
    dir.write("folder/notes.txt", "seen by everybody");
    archive.push(("notes.txt", b"seen by everybody".to_vec()));
    dir.write("set.zip", zip(&archive, true));
    let expected = planes(0..5);
    for name in ["folder", "set.zip"] {
        let (pixels, note) = read(&dir.path(name)).unwrap();
        assert!(pixels == expected, "{name}");
        // A hidden folder of a folder counts once.
        let note = note.unwrap();
        assert!(note.contains("7 hidden") && note.contains("1 of other kinds"), "{note}");
    }
    // NumPy's files, packed by a Mac.
    let images = npy("|u1", &[5, 3, 4, 4], &expected);
    let junk = b"\0\x05\x16\x07Mac OS X".to_vec();
    let npz = [("images.npy", images), ("__MACOSX/._images.npy", junk)];
    let (pixels, note) = read(&dir.write("set.npz", zip(&npz, true))).unwrap();
    assert!(pixels == expected);
    assert!(note.unwrap().contains("1 hidden"));
    // In the order of their names, whatever the file system's is.
    let notes = dir.path("notes");
    for name in ["c.txt", "a/z.txt", "b.txt", "a/y.txt", "a.png"] {
        dir.write(&format!("notes/{name}"), png(0));
    }
    let note = read(&notes).unwrap().1.unwrap();
    assert!(note.ends_with("4 of other kinds (a/y.txt, a/z.txt, b.txt, …)"), "{note}");
    // Nothing left out, nothing said.
    assert_eq!(read(&dir.path("folder/sub")).unwrap().1.unwrap().matches("hidden").count(), 1);
    fs::remove_dir_all(dir.path("folder/sub/.thumbnails")).unwrap();
    assert_eq!(read(&dir.path("folder/sub")).unwrap().1, None);
    // Where nothing else is there, it may be what was meant.
    dir.write("only/.set/000.png", png(0));
    dir.write("only/image", png(0));
    dir.write("only.zip", zip(&[(".set/000.png", png(0))], false));
    for (name, says) in [("only", "1 hidden, 1 of other kinds"), ("only.zip", "1 hidden")] {
        let text = complaint(&dir.path(name));
        let (first, _) = text.split_once('\n').unwrap();
        assert!(
            first.contains("no PNG and no CIFAR in it; ") | first.contains("without PNG files; "),
            "{text}"
        );
        assert!(first.contains(says), "{text}");
    }
    // A hidden folder that is named is what is meant.
    dir.write(".cache/set/000.png", png(0));
    assert_eq!(read(&dir.path(".cache/set")).unwrap(), (planes(0..1), None));
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_those_that_lead_nowhere_are_named() {
    use std::os::unix::fs::symlink;
    let dir = Dir::new();
    for i in 0..3 {
        dir.write(&format!("set/{i:03}.png"), png(i));
        dir.write(&format!("elsewhere/deep/{:03}.png", 3 + i), png(3 + i));
    }
    dir.write("one.png", png(6));
    symlink("../elsewhere", dir.path("set/more")).unwrap();
    symlink("../one.png", dir.path("set/zzz.png")).unwrap();
    assert!(read(&dir.path("set")).unwrap().0 == planes(0..7), "files and folders that are links");

    symlink("../set", dir.path("elsewhere/back")).unwrap();
    let text = complaint(&dir.path("set"));
    assert!(text.contains("set/more/back") && text.contains("leads back"), "{text}");
    fs::remove_file(dir.path("elsewhere/back")).unwrap();
    for (link, target, says) in [
        ("set/gone", "../nowhere", "a link to ../nowhere"),
        ("set/gone.png", "nothing.png", "a link to nothing.png"),
        ("set/self", "self", "leads back"),
        ("set/up", "..", "leads back"),
    ] {
        symlink(target, dir.path(link)).unwrap();
        let text = complaint(&dir.path("set"));
        assert!(text.contains(&*dir.path(link).to_string_lossy()) && text.contains(says), "{text}");
        fs::remove_file(dir.path(link)).unwrap();
    }
    // Hidden links are nobody's.
    symlink("nowhere", dir.path("set/.#lock.png")).unwrap();
    assert!(read(&dir.path("set")).unwrap().0 == planes(0..7));
    let pipe = dir.path("set/pipe.png");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(complaint(&dir.path("set")).contains("pipe.png"), "and does not wait for a writer");
}

#[test]
fn files_of_another_format_are_called_by_its_name() {
    let dir = Dir::new();
    for (bytes, says) in [
        (b"\xff\xd8\xff\xe0JFIF".to_vec(), "a JPEG image"),
        (b"RIFF....WEBP".to_vec(), "a WebP image"),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "Git LFS pointer"),
        (b"<!DOCTYPE html>".to_vec(), "a web page\n  put the image itself in its place"),
    ] {
        dir.write("set/a.png", bytes);
        let text = complaint(&dir.path("set"));
        assert!(text.contains("a.png") && text.contains(says) && !text.contains("remove"), "{text}");
    }
    for (bytes, says) in [
        (b"BZh91AY&SY".to_vec(), "compressed with bzip2"),
        (b"\xfd7zXZ\0\0\x04".to_vec(), "compressed with xz"),
        (b"\x28\xb5\x2f\xfd\x04".to_vec(), "compressed with zstd"),
        (b"7z\xbc\xaf\x27\x1c\0\x04".to_vec(), "a 7z archive"),
        (b"\x89HDF\r\n\x1a\n".to_vec(), "an HDF5 file"),
        (b"<!DOCTYPE html>".to_vec(), "a web page"),
        (b"\n <!doctype HTML>".to_vec(), "a web page"),
        (b"<?xml version='1.0'?><Error>".to_vec(), "an XML text"),
        (b"{\"error\": \"denied\"}".to_vec(), "a JSON text"),
        (b"BM\x36\x0c\0\0\0\0\0\0".to_vec(), "a BMP image"),
        (b"MM\0*\0\0\0\x08".to_vec(), "a TIFF image"),
        (b"\0\0\0\x18ftypheic".to_vec(), "HEIC"),
        (b"GGUF\x03\0\0\0".to_vec(), "a GGUF file"),
        (b"MATLAB 5.0 MAT-file, Platform".to_vec(), "a MATLAB file"),
        (b"ARROW1\0\0".to_vec(), "an Arrow file"),
        (b"\x80\x04\x95\x08".to_vec(), "a pickle"),
        (zip(&[("stats/data.pkl", b"\x80\x02N.".to_vec())], false), "a file of torch.save"),
        (b"7 columns of text".to_vec(), "a file that begins with 7 co"),
        (Vec::new(), "an empty file"),
    ] {
        let text = complaint(&dir.write("file", bytes));
        assert!(text.contains(says) && text.lines().count() == 2, "{text}");
    }
    // A chunk is called by its name.
    let mut damaged = png(0);
    damaged[20] ^= 1;
    dir.write("set/a.png", damaged);
    let text = complaint(&dir.path("set"));
    assert!(text.contains("while decoding IHDR chunk") && !text.contains("critical"), "{text}");
    // Beside PNG files, whatever the spelling.
    for name in ["x.JPEG", "x.jfif", "x.heic", "x.pgm", "x.PBM", "x.exr"] {
        let dir = Dir::new();
        dir.write("a.png", png(0));
        assert!(complaint(&dir.write(name, "").with_file_name("")).contains(name));
    }
    // The kind of packing that is not read, in place of "damage".
    let mut packed = zip(&[("a.png", png(0))], false);
    let directory = packed.windows(4).position(|part| part == b"PK\x01\x02").unwrap();
    (packed[8], packed[directory + 10]) = (12, 12);
    let text = complaint(&dir.write("packed.zip", packed));
    assert!(text.contains("compressed with") && text.contains("not stored or deflated"), "{text}");
}

/// The fault of the data set that is there, and not that it is no other one.
#[test]
fn one_fault_is_one_message() {
    let dir = Dir::new();
    dir.write("batches/data_batch_1", "no pickle");
    let text = complaint(&dir.path("batches"));
    assert!(text.contains("data_batch_1 is invalid") && text.lines().count() == 2, "{text}");
    let mut tar = tar::Builder::new(Vec::new());
    for i in 0..2 {
        let bytes = png(i);
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, format!("set/{i:03}.png"), bytes.as_slice()).unwrap();
    }
    let text = complaint(&dir.write("set.tar", tar.into_inner().unwrap()));
    assert!(text.contains("nothing of CIFAR but set/000.png, set/001.png"), "{text}");
    assert!(text.contains("unpack them and name the folder") && text.lines().count() == 2, "{text}");
    let two = npy("|u1", &[2, 4, 4, 3], &[0; 96]);
    let text =
        complaint(&dir.write("two.npz", zip(&[("x_train.npy", two.clone()), ("x_test.npy", two)], false)));
    assert!(text.contains("several uint8 arrays") && text.contains("numpy.save("), "{text}");
    let rows = npy("<f4", &[2, 3], &[0; 24]);
    let text =
        complaint(&dir.write("rows.npz", zip(&[("pool.npy", rows.clone()), ("logit.npy", rows)], false)));
    assert!(text.contains("several arrays that could be features"), "{text}");
    let text = complaint(&dir.write("file", "x").join("below"));
    assert!(text.contains("below is missing"), "{text}");
    let text = complaint(dir.write("empty/a.png", "").parent().unwrap());
    assert!(text.contains("found an empty file"), "{text}");
    // A download that ended early.
    let mut tar = tar::Builder::new(Vec::new());
    for i in 1..=5 {
        let mut header = tar::Header::new_gnu();
        header.set_size(3073);
        tar.append_data(&mut header, format!("batches/data_batch_{i}.bin"), &[0; 3073][..]).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    for cut in [600, 3000, 9000, 15_000] {
        let text = complaint(&dir.write("cut.tar", &tar[..cut]));
        assert!(text.contains("expected 3073 bytes, found") && text.lines().count() == 2, "{text}");
    }
}

#[test]
fn a_zip_is_known_by_its_end() {
    let dir = Dir::new();
    let whole = zip(&[("a.png", png(0)), ("b.png", png(1))], true);
    // A program that unpacks itself.
    let path = dir.write("set.run", [b"#!/bin/sh\nexec unzip\n".to_vec(), whole.clone()].concat());
    assert!(read(&path).unwrap().0 == planes(0..2));
    // The last of several parts; its end has the part's number.
    let mut parts = whole[30..].to_vec();
    let end = parts.len() - 22;
    parts[end + 4..end + 8].copy_from_slice(&[1, 0, 1, 0]);
    let text = complaint(&dir.write("set.zip", parts));
    assert!(text.contains("set.zip is invalid") && text.contains("unpack them"), "{text}");
    assert!(text.lines().count() == 2 && !text.contains("CIFAR but"), "{text}");
}

#[test]
fn links_in_a_zip_are_named() {
    for name in ["b.png", "more"] {
        let mut packed = zip(&[("a.png", png(0)), (name, b"../elsewhere".to_vec())], false);
        let directory = packed.windows(4).rposition(|part| part == b"PK\x01\x02").unwrap();
        // Made on Unix, with the mode of a symbolic link.
        packed[directory + 5] = 3;
        packed[directory + 38..directory + 42].copy_from_slice(&(0o120777u32 << 16).to_le_bytes());
        let text = complaint(&Dir::new().write("set.zip", packed));
        assert!(text.contains(name) && text.contains("a symbolic link in place of a file"), "{text}");
    }
}

#[test]
fn a_shard_that_is_missing_is_named() {
    let dir = Dir::new();
    #[cfg(unix)]
    assert!(complaint(Path::new("/dev/null")).contains("a pipe or a device"));
    dir.write("set/train-00000-of-00002.parquet", "x");
    let text = complaint(&dir.path("set"));
    assert!(text.contains("train-00001-of-00002.parquet is missing"), "{text}");
}

#[test]
fn what_people_do_not_see_is_hidden() {
    for path in [
        ".DS_Store",
        "a/._1.png",
        "__MACOSX/a.png",
        ".Trash-1000/files/a.png",
        "a\\.x",
        "THUMBS.DB",
        "@Recycle/a.png",
        "#snapshot/daily/a.png",
    ] {
        assert!(is_hidden(path), "{path}");
    }
    for path in ["a.png", "a/b.c/d.png", "./a.png", "../a.png", "MACOSX/a.png", "a..png"] {
        assert!(!is_hidden(path), "{path}");
    }
}

#[test]
fn an_error_of_the_system_is_found_however_deep_it_lies() {
    use std::io::{Error, ErrorKind};
    let eio = || Error::from_raw_os_error(5);
    let boxed = Error::other(Error::new(ErrorKind::InvalidData, eio()));
    for error in [eio(), boxed, ErrorKind::OutOfMemory.into()] {
        assert!(matches!(Fault::from(error), Fault::Unreadable(_)));
    }
    let damage = Error::new(ErrorKind::InvalidData, "corrupt deflate stream");
    assert_eq!(Fault::from(damage).to_string(), "is damaged: corrupt deflate stream");
}

/// A file that the system does not give is not a broken one.
#[cfg(target_os = "linux")]
#[test]
fn an_error_of_the_system_is_not_called_damage() {
    use std::os::unix::fs::symlink;
    let dir = Dir::new();
    // Reading the first page of a process's memory gives EIO.
    dir.write("set/a.png", png(0));
    symlink("/proc/self/mem", dir.path("set/b.png")).unwrap();
    let mut texts = vec![complaint(&dir.path("set"))];
    symlink("/proc/self/mem", dir.path("mem")).unwrap();
    texts.push(complaint(&dir.path("mem")));
    for name in ["data_batch_1", "data_batch_1.bin"] {
        let set = dir.path(&format!("cifar-{name}"));
        fs::create_dir_all(&set).unwrap();
        symlink("/proc/self/mem", set.join(name)).unwrap();
        texts.push(complaint(&set));
    }
    for text in texts {
        assert!(text.contains("Input/output error") && text.contains("not the content"), "{text}");
        for wrong in ["damage", "remove", "--store", "write it again", "not what it should be"] {
            assert!(!text.contains(wrong), "{wrong}: {text}");
        }
    }
}

// ---- statistics -------------------------------------------------------------

fn features(name: &str, n: usize, dim: usize) -> Features {
    Features::new(dim, Stream::new("tests/inputs", name).normals(0, n * dim))
}

fn f4(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn f8(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn what_is_beside_mu_and_sigma_is_not_read() {
    let dir = Dir::new();
    let m = moments(&features("companions", 50, 6));
    let (mu, sigma) = (npy("<f8", &[6], &f8(&m.mean())), npy("<f8", &[6, 6], &f8(&m.covariance())));
    let large = npy("<f8", &[1 << 23], &vec![0; 8 << 23]);
    let mut companions: Vec<(&str, Vec<u8>)> = vec![
        ("arr_0.npy", npy("|u1", &[4, 8, 8, 3], &[9; 768])),
        ("mu_s.npy", npy("<f8", &[6], &f8(&m.mean()))),
        ("n.npy", npy("<i8", &[], &[0; 8])),
        ("names.npy", npy("<U3", &[2], &[0; 24])),
        ("objects.npy", npy("|O", &[1], b"\x80\x04N.")),
        ("fields.npy", npy("", &[2], &[0; 32])),
        ("version.txt", b"made by somebody".to_vec()),
        ("samples.npy", large),
        ("cut_off.npy", b"\x93NUMPY\x01\x00\xff\xff{".to_vec()),
        ("text.npy", b"no array at all".to_vec()),
    ];
    let small = [("mu.npy", mu.clone()), ("sigma.npy", sigma.clone())];
    companions.extend([("mu.npy", mu), ("sigma.npy", sigma)]);
    let path = dir.write("reference.npz", zip(&companions, true));
    let (input, peak) = peak_of(|| source::open(&path).unwrap().0);
    let Input::Statistics(statistics) = input else { panic!("not statistics") };
    assert_eq!((statistics.mean, statistics.covariance), (m.mean(), m.covariance()));
    assert!(peak < 1 << 21, "{peak} bytes for 42 numbers");
    // Of what is asked for it is said what is wrong, and a codec is named.
    for (name, bytes, says) in [
        ("mu.npy", b"no array at all".to_vec(), "holds mu, which is not an array"),
        ("other.npy", b"no array at all".to_vec(), ""),
    ] {
        let mut arrays = small.to_vec();
        arrays.retain(|(other, _)| *other != name);
        let path = dir.write("broken.npz", zip(&[arrays, vec![(name, bytes)]].concat(), true));
        match says {
            "" => assert!(matches!(source::open(&path), Ok((Input::Statistics(_), _)))),
            says => assert!(complaint(&path).contains(says), "{}", complaint(&path)),
        }
    }
    let text = complaint(&dir.write("bzip2.npz", with_method(zip(&small, true), 12)));
    assert!(text.contains("mu, which is compressed with") && !text.contains("damage"), "{text}");
    let text = complaint(&dir.write("bzip2.zip", with_method(zip(&[("a.png", png(0))], true), 12)));
    assert!(text.contains("compressed with") && text.contains("name the folder"), "{text}");
    // By other names they are no features.
    for names in [["mean.npy", "cov.npy"], ["stats/mu.npy", "stats/sigma.npy"]] {
        let arrays: Vec<_> = names.into_iter().zip(small.iter().map(|(_, bytes)| bytes.clone())).collect();
        let text = complaint(&dir.write("other.npz", zip(&arrays, true)));
        assert!(text.contains("not by the names sigma and mu"), "{text}");
    }
}

/// The score of the program, which has to succeed.
fn scored(dir: &Path, arguments: &[&str]) -> serde_json::Value {
    let all: Vec<&OsStr> = arguments.iter().chain(&["--json"]).map(OsStr::new).collect();
    let output = score(dir, &all);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn features_and_statistics_are_found_as_other_tools_lay_them_out() {
    let dir = Dir::new();
    let (a, b) = (features("layout a", 40, 6), features("layout b", 50, 6));
    let (logits, m) = (features("layout logits", 40, 9), moments(&b));
    let rows = |shape: &[usize], features: &Features| npy("<f4", shape, &f4(features.rows.clone()));
    let (plain, classes) = (rows(&[40, 6], &a), rows(&[40, 9], &logits));
    let (mu, sigma) = (npy("<f8", &[6], &f8(&m.mean())), npy("<f8", &[6, 6], &f8(&m.covariance())));
    dir.write("a.npz", zip(&[("features.npy", plain.clone()), ("logits.npy", classes.clone())], false));
    dir.write("b.npz", zip(&[("mu.npy", mu.clone()), ("sigma.npy", sigma.clone())], false));
    let expected = &scored(dir.0.path(), &["a.npz", "--ref", "b.npz", "--metrics", "fid,is"])["trials"];
    // Features beside their logits, as pool_3 of TensorFlow's network; a mean that kept its axis.
    dir.write("tf.npz", zip(&[("logits.npy", classes.clone()), ("pool_3.npy", plain.clone())], true));
    dir.write(
        "axis.npz",
        zip(&[("pool_3.npy", rows(&[40, 1, 1, 6], &a)), ("logits.npy", classes.clone())], true),
    );
    let row = npy("<f8", &[1, 6], &f8(&m.mean()));
    dir.write("row.npz", zip(&[("mu.npy", row), ("sigma.npy", sigma.clone())], false));
    // Everything in one file: its rows are the images, its moments the reference.
    let all = [("mu.npy", mu), ("sigma.npy", sigma.clone()), ("features.npy", plain.clone())];
    dir.write("all.npz", zip(&[&all[..], &[("logits.npy", classes.clone())][..]].concat(), true));
    for (images, reference) in
        [("tf.npz", "b.npz"), ("axis.npz", "row.npz"), ("all.npz", "b.npz"), ("a.npz", "all.npz")]
    {
        let found = &scored(dir.0.path(), &[images, "--ref", reference, "--metrics", "fid,is"])["trials"];
        assert_eq!(found, expected, "{images}");
    }
    let other = rows(&[41, 9], &features("more", 41, 9));
    let text = complaint(&dir.write("c.npz", zip(&[("pool_3.npy", plain), ("logits.npy", other)], false)));
    assert!(text.contains("holds 40 features and 41 logits"), "{text}");
    // A covariance without its mean is no set of features.
    let text = complaint(&dir.write("sigma.npz", zip(&[("sigma.npy", sigma)], false)));
    assert!(text.contains("holds sigma, but no mu"), "{text}");
    for (shape, data, says) in [
        (&[4usize, 6][..], &[0; 90][..], "for 24 numbers: it is cut off"),
        (&[4, 6], &[0; 320], "several numpy.save to one file"),
        (&[2, 2, 3], &[0; 48], "[2, 2, 3]"),
    ] {
        let text = complaint(&dir.write("x.npy", npy("<f4", shape, data)));
        assert!(text.contains(says), "{text}");
    }
    let text = complaint(&dir.write(
        "fields.npy",
        raw("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (3,)}", &[0; 12]),
    ));
    assert!(text.contains("an array [3] of several fields"), "{text}");
}

/// A zip whose files say that they are packed by another method.
fn with_method(mut zip: Vec<u8>, method: u8) -> Vec<u8> {
    for at in 0..zip.len() - 4 {
        match &zip[at..at + 4] {
            b"PK\x03\x04" => zip[at + 8] = method,
            b"PK\x01\x02" => zip[at + 10] = method,
            _ => {}
        }
    }
    zip
}

/// A covariance that is updated sample by sample in float32, as several tools do.
fn welford(features: &Features) -> (Vec<f32>, Vec<f32>) {
    let d = features.dim;
    let (mut mean, mut sums) = (vec![0f32; d], vec![0f32; d * d]);
    for n in 0..features.len() {
        let row = features.row(n);
        let before: Vec<f32> = row.iter().zip(&mean).map(|(x, m)| x - m).collect();
        mean.iter_mut().zip(&before).for_each(|(m, b)| *m += b / (n + 1) as f32);
        for i in 0..d {
            for j in 0..d {
                sums[i * d + j] += before[i] * (row[j] - mean[j]);
            }
        }
    }
    let n = (features.len() - 1) as f32;
    (mean, sums.into_iter().map(|s| s / n).collect())
}

#[test]
fn sums_in_float32_are_statistics() {
    let dir = Dir::new();
    let own = features("float32", 300, 24);
    let (mean, sums) = welford(&own);
    let apart = |i: usize, j: usize| (sums[i * 24 + j] - sums[j * 24 + i]).abs();
    assert!((0..24).any(|i| (0..i).any(|j| apart(i, j) > 0.0)), "the halves do differ");
    let wide = |values: &[f32]| f8(&values.iter().map(|v| *v as f64).collect::<Vec<_>>());
    for (name, kind, mu, sigma) in
        [("f4", "<f4", f4(mean.clone()), f4(sums.clone())), ("f8", "<f8", wide(&mean), wide(&sums))]
    {
        let files = [("mu.npy", npy(kind, &[24], &mu)), ("sigma.npy", npy(kind, &[24, 24], &sigma))];
        let statistics = Statistics::read(&dir.write(name, zip(&files, false))).unwrap();
        for i in 0..24 {
            for j in 0..24 {
                let (a, b) = (statistics.covariance[i * 24 + j], statistics.covariance[j * 24 + i]);
                let expected = (sums[i * 24 + j] as f64 + sums[j * 24 + i] as f64) / 2.0;
                assert!(a == b && (a - expected).abs() <= 1e-15 * expected.abs());
            }
        }
        let fd = distance(&moments(&own).factor().unwrap(), &statistics.factor().unwrap()).unwrap();
        assert!(fd < 1e-4, "{fd}");
    }
    // Fewer samples than dimensions: eigenvalues of the size of rounding are zero.
    let few = features("few", 10, 24);
    let (mean, sums) = welford(&few);
    let files = [("mu.npy", npy("<f4", &[24], &f4(mean))), ("sigma.npy", npy("<f4", &[24, 24], &f4(sums)))];
    let statistics = Statistics::read(&dir.write("few", zip(&files, false))).unwrap();
    let other = moments(&own);
    let expected = frechet_distance(&other, &moments(&few)).unwrap();
    let fd = distance(&other.factor().unwrap(), &statistics.factor().unwrap()).unwrap();
    assert!((fd - expected).abs() < 2e-2 * expected, "{fd} for {expected}");
    // Wrong by more than rounding.
    for (kind, apart) in [("<f4", 3e-6f32), ("<f8", 3e-6)] {
        let sigma = [1.0, 0.5, 0.5 + apart, 1.0f32];
        let sigma = if kind == "<f4" { f4(sigma) } else { wide(&sigma) };
        let mu = vec![0; if kind == "<f4" { 8 } else { 16 }];
        let files = [("mu.npy", npy(kind, &[2], &mu)), ("sigma.npy", npy(kind, &[2, 2], &sigma))];
        let text = complaint(&dir.write("wrong", zip(&files, false)));
        assert!(text.contains("not symmetric, at (1, 0)"), "{text}");
    }
}

/// Covariance of `n` samples of ten features by a formula.
fn by_formula(k: f64, n: usize) -> Vec<f64> {
    let x = |s: usize, j: usize| {
        let (s, j) = (s as f64, j as f64);
        (1.7 * s * (j + 1.0) + k * j).sin() + 0.05 * j
    };
    let mean = |j: usize| (0..n).map(|s| x(s, j)).sum::<f64>() / n as f64;
    let means: Vec<f64> = (0..10).map(mean).collect();
    let entry = |i: usize, j: usize| {
        (0..n).map(|s| (x(s, i) - means[i]) * (x(s, j) - means[j])).sum::<f64>() / (n - 1) as f64
    };
    (0..100).map(|at| entry(at / 10, at % 10)).collect()
}

/// The bits of float16 of a multiple of 1/1024 below 2.
fn half(value: f64) -> [u8; 2] {
    let size = value.abs();
    let exponent = if size == 0.0 { -15 } else { size.log2().floor() as i32 };
    let fraction = if size == 0.0 { 0.0 } else { (size / 2f64.powi(exponent) - 1.0) * 1024.0 };
    let sign = if value < 0.0 { 0x8000 } else { 0 };
    (sign | ((exponent + 15) as u16) << 10 | fraction as u16).to_le_bytes()
}

/// Fewer samples than dimensions, rounded: some eigenvalues are negative, and the distances
/// are SciPy's, from the real part of `sqrtm` (1.17.1).
#[test]
fn statistics_of_half_precision_score_as_in_scipy() {
    let dir = Dir::new();
    let round = |k| by_formula(k, 6).into_iter().map(|x| (x * 1024.0).round() / 1024.0).collect::<Vec<f64>>();
    let written = |name: &str, kind: &str, sigma: &[f64]| {
        let bytes = match kind {
            "<f2" => sigma.iter().flat_map(|x| half(*x)).collect(),
            "<f4" => f4(sigma.iter().map(|x| *x as f32)),
            _ => f8(sigma),
        };
        let files = [("mu.npy", npy("<f8", &[10], &[0; 80])), ("sigma.npy", npy(kind, &[10, 10], &bytes))];
        Statistics::read(&dir.write(name, zip(&files, false))).unwrap()
    };
    let whole = written("whole", "<f8", &by_formula(3.0, 200)).factor().unwrap();
    // Half precision is known by its numbers, too.
    for kind in ["<f2", "<f4", "<f8"] {
        let [a, b] = [1.0, 2.0].map(|k| written("half", kind, &round(k)).factor().unwrap());
        for (x, y, scipy) in
            [(&a, &whole, 3.184431884763263), (&whole, &a, 3.1844318847632604), (&a, &b, 5.8302051683320375)]
        {
            let fd = distance(x, y).unwrap();
            assert!((fd - scipy).abs() < 1e-9, "{kind}: {fd} for {scipy}");
        }
    }
    // What no rounding does is none of a covariance, in any precision.
    let mut wrong = round(1.0);
    wrong[0] -= 0.125;
    let text = written("wrong", "<f2", &wrong).factor().unwrap_err().to_string();
    assert!(text.contains("with the eigenvalue -"), "{text}");
}

// ---- NumPy's files ----------------------------------------------------------

/// An array under any header.
fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{header}\n");
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// The rows of features that a file holds.
fn rows(path: &Path) -> (usize, Vec<f32>) {
    let (Input::Features(set), _) = source::open(path).unwrap() else { panic!("no features") };
    let (len, dim) = (set.len, set.dim);
    let wanted = Wanted { moments: false, predictions: false, kept: len };
    let gathered = RowStream::new(set.batches).gather(len, wanted).unwrap();
    (dim, gathered.kept.unwrap().rows)
}

#[test]
fn headers_are_read_in_every_spelling() {
    let dir = Dir::new();
    let data = f4((0..6).map(|i| i as f32));
    for header in [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }",
        "{\"descr\": \"<f4\", \"fortran_order\": False, \"shape\": (3, 2)}",
        "{'shape': (3L, 2L), 'descr': '<f4', 'fortran_order': False}",
        "{'shape':(3,2),'fortran_order':False,'descr':'<f4'}",
        "  {  'descr' :  '<f4' ,\n 'fortran_order' :  False , 'shape' :  ( 3 , 2 , ) , }  ",
        "{u'descr': u'<f4', b'fortran_order': False, 'shape': (3, 2)}",
        "{'descr': '=f4', 'fortran_order': False, 'shape': (3, 2), }",
        "{'descr': 'f4', 'fortran_order': False, 'shape': (3, 2), }",
        "{'descr': '|f4', 'fortran_order': 0, 'shape': (3, 2), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), 'extra': [(1, 2), {'a': 'b, c'}]}",
        "{'descr': 'float32', 'fortran_order': False, 'shape': (0x3, 0b1_0)}",
        "{'descr': 'single', 'fortran_order': False, 'shape': (+3, 0o2)}",
        "{'descr': \"\"\"<f4\"\"\", # little-endian\n 'fortran_order': False, 'shape': (3, 2)} # end",
        "{'des' 'cr': '<f4', 'fortran_order': False, 'shape': (3, 2)}",
        "{'descr': '<' u'f4', 'fortran_order': False, 'shape': (3, 2), 'x': 'it\\'s', 'y': r'\\'}",
        "{'descr': '\\x3cf\\u0034', 'fortran_order': False, 'shape': (3, 2)}",
    ] {
        assert_eq!(
            rows(&dir.write("a.npy", raw(header, &data))),
            (2, vec![0., 1., 2., 3., 4., 5.]),
            "{header}"
        );
    }
    for header in [
        "",
        "{",
        "{'descr': '<f4'",
        "{'descr': '<f4",
        "{'descr': '\\x",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 0x)}",
        "[('descr', '<f4')]",
        "{'descr': '<f4', 'fortran_order': None, 'shape': (3, 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, -2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2.0)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 6}",
        "{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (3, 2)}",
        "{'descr': '<c8', 'fortran_order': False, 'shape': (3, 1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 'x\x1b[31m')}",
    ] {
        let text = complaint(&dir.write("a.npy", raw(header, &data)));
        assert!(!text.contains('\x1b'), "{text:?}");
    }
}

#[test]
fn both_byte_orders_both_orders_of_axes_and_half_precision_are_read() {
    let dir = Dir::new();
    let expected: Vec<f32> = (0..12).map(|i| i as f32 / 4.0 - 1.0).collect();
    // Half precision has these numbers exactly: sign, 5 bits of exponent, 10 of fraction.
    let half = |x: f32| {
        let bits = x.to_bits();
        let (sign, exponent) = ((bits >> 16) & 0x8000, ((bits >> 23) & 255) as i32 - 112);
        let fraction = (bits >> 13) & 0x3ff;
        if x == 0.0 { 0u16 } else { (sign | (exponent as u32) << 10 | fraction) as u16 }
    };
    let columns = |values: &[f32]| -> Vec<f32> { (0..12).map(|i| values[i % 4 * 3 + i / 4]).collect() };
    for fortran in ["False", "True"] {
        let stored = if fortran == "True" { columns(&expected) } else { expected.clone() };
        let of = |kind: &str, data: Vec<u8>| npy_ordered(kind, &[4, 3], &data, fortran);
        for file in [
            of("<f4", stored.iter().flat_map(|x| x.to_le_bytes()).collect()),
            of(">f4", stored.iter().flat_map(|x| x.to_be_bytes()).collect()),
            of("<f8", stored.iter().flat_map(|x| (*x as f64).to_le_bytes()).collect()),
            of(">f8", stored.iter().flat_map(|x| (*x as f64).to_be_bytes()).collect()),
            of("<f2", stored.iter().flat_map(|x| half(*x).to_le_bytes()).collect()),
            of(">f2", stored.iter().flat_map(|x| half(*x).to_be_bytes()).collect()),
        ] {
            assert_eq!(rows(&dir.write("bare.npy", &file)), (3, expected.clone()));
            for name in ["features.npy", "arr_0.npy"] {
                let labels = npy("<i8", &[4], &[0; 32]);
                let npz = zip(&[("labels.npy", labels), (name, file.clone())], true);
                assert_eq!(rows(&dir.write("a.npz", npz)), (3, expected.clone()), "{name}");
            }
        }
    }
    // Statistics, of which a vector is the same in either order.
    let m = moments(&features("orders", 30, 5));
    let big = |values: &[f64]| -> Vec<u8> { values.iter().flat_map(|v| v.to_be_bytes()).collect() };
    for (mu, sigma) in [
        (
            npy_ordered("<f8", &[5], &f8(&m.mean()), "True"),
            npy_ordered("<f8", &[5, 5], &f8(&m.covariance()), "True"),
        ),
        (npy(">f8", &[5], &big(&m.mean())), npy(">f8", &[5, 5], &big(&m.covariance()))),
        (
            raw("{'descr': '<f8', 'fortran_order': False, 'shape': (5L,), }", &f8(&m.mean())),
            npy("<f8", &[5, 5], &f8(&m.covariance())),
        ),
    ] {
        let statistics =
            Statistics::read(&dir.write("s.npz", zip(&[("mu.npy", mu), ("sigma.npy", sigma)], false)));
        let statistics = statistics.unwrap();
        assert_eq!((statistics.mean, statistics.covariance), (m.mean(), m.covariance()));
    }
}

#[test]
fn the_one_array_that_can_be_images_is_the_set() {
    let dir = Dir::new();
    let (n, last): (usize, Vec<u8>) = (6, (0..6).flat_map(rgb).collect());
    let images = npy("|u1", &[n, 4, 4, 3], &last);
    // The same, the first axis running fastest.
    let columns: Vec<u8> = (0..last.len())
        .map(|at| {
            let (i, rest) = (at % n, at / n);
            let (y, rest) = (rest % 4, rest / 4);
            last[((i * 4 + y) * 4 + rest % 4) * 3 + rest / 4]
        })
        .collect();
    let expected = planes(0..n);
    for files in [
        vec![("images.npy", images.clone()), ("labels.npy", npy("|u1", &[n, 1], &[1; 6]))],
        vec![
            ("y.npy", npy("|u1", &[n], &[1; 6])),
            ("x.npy", images.clone()),
            ("m.npy", npy("|u1", &[2, 2], &[0; 4])),
        ],
        vec![
            ("x.npy", npy_ordered("|u1", &[n, 4, 4, 3], &columns, "True")),
            ("y.npy", npy("|b1", &[n], &[1; 6])),
        ],
    ] {
        assert!(read(&dir.write("set.npz", zip(&files, false))).unwrap().0 == expected);
    }
    assert!(
        read(&dir.write("bare.npy", npy_ordered("|u1", &[n, 4, 4, 3], &columns, "True"))).unwrap().0
            == expected
    );
    let digest = sha256_hex(&expected);
    assert_eq!(digest, sha256_hex(&read(&dir.path("bare.npy")).unwrap().0));
    let two = [("a.npy", images.clone()), ("b.npy", images)];
    assert!(complaint(&dir.write("two.npz", zip(&two, false))).contains("several uint8 arrays"));
}

// ---- names of places --------------------------------------------------------

fn score(dir: &Path, arguments: &[&OsStr]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
    command.arg("score").args(arguments).current_dir(dir).env_remove("REPLICATE_STORE").output().unwrap()
}

#[cfg(unix)]
#[test]
fn places_may_have_any_name() {
    use std::os::unix::ffi::OsStrExt;
    let dir = Dir::new();
    let place = dir.0.path().join(OsStr::from_bytes(b"daten_\xe4\xf6 \xff"));
    fs::create_dir(&place).unwrap();
    let npz = |name: &str, n: usize| {
        let features = features(name, n, 4);
        let path = place.join(format!("{name}.npz"));
        fs::write(&path, zip(&[("features.npy", npy("<f4", &[n, 4], &f4(features.rows)))], false)).unwrap();
        path
    };
    let (a, b) = (npz("a", 20), npz("b", 30));
    let words = |path: &Path| path.as_os_str().to_os_string();
    let fid = ["--metrics", "fid"].map(OsStr::new);
    let file = OsStr::from_bytes(&[b"File://", a.as_os_str().as_bytes()].concat()).to_os_string();
    let missing = words(&place.join("../daten_missing"));
    for images in [words(&a), missing.clone(), file] {
        let output = score(
            dir.0.path(),
            &[&[images.as_os_str(), OsStr::new("--ref"), b.as_os_str()], &fid[..]].concat(),
        );
        let expected = if images != missing { 0 } else { EXIT_INPUT };
        assert_eq!(output.status.code(), Some(expected), "{}", String::from_utf8_lossy(&output.stderr));
    }
    // Text and JSON name a file that is no text.
    for form in [&[][..], &["--json"]] {
        let saved = place.join("saved \x1b.npz");
        let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
        let output = command.arg("score").arg(&a).arg("--save-ref").arg(&saved).args(form).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && saved.is_file(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("daten_\u{fffd}\u{fffd} \u{fffd}/saved ") && !text.contains('\x1b'), "{text}");
    }
    // A blank, in an address of a file.
    fs::copy(&a, dir.path("with blank.npz")).unwrap();
    for address in ["file://{}/with%20blank.npz", "FILE://localhost{}/with blank.npz"] {
        let address = address.replace("{}", dir.0.path().to_str().unwrap());
        let output = score(
            dir.0.path(),
            &[&[OsStr::new(&address), OsStr::new("--ref"), b.as_os_str()], &fid[..]].concat(),
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    // Other files that are named: weights, a checkpoint, CIFAR, an archive.
    let address = |path: &Path| format!("file://{}/x%20y", path.to_str().unwrap());
    let (bad, address) = (place.join("x y"), address(dir.0.path()));
    for path in [bad.as_os_str(), OsStr::new(&address)] {
        for before in [
            &["inspect"][..],
            &["verify"],
            &["sample", "--seeds", "0", "--out", "out"],
            &["run", "dijs", "--scale", "tiny", "--offline", "--data"],
            &["score", "a.npz", "--inception"],
        ] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
            let output = command.args(before).arg(path).current_dir(dir.0.path()).output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(EXIT_INPUT), "{before:?}: {text}");
            assert!(!text.contains("file:") && text.contains(" is missing"), "{before:?}: {text}");
        }
    }
    let output = score(dir.0.path(), &[OsStr::new("HTTP://127.0.0.1:9/a.npz")]);
    assert_eq!(output.status.code(), Some(EXIT_USAGE));
    assert!(String::from_utf8_lossy(&output.stderr).contains("download it first"));
    let fetch = Command::new(env!("CARGO_BIN_EXE_replicate"))
        .args(["fetch", "fid-reference", "--store"])
        .arg(place.join("store"))
        .arg("--from")
        .arg(&a)
        .output()
        .unwrap();
    assert_eq!(fetch.status.code(), Some(EXIT_INPUT), "{}", String::from_utf8_lossy(&fetch.stderr));
}

#[cfg(unix)]
#[test]
fn devices_stay_devices_and_an_address_is_no_store() {
    let dir = Dir::new();
    dir.write("features.npy", npy("<f4", &[4, 2], &f4((0..8).map(|x| (x * x % 7) as f32))));
    std::os::unix::fs::symlink("/dev/null", dir.path("nowhere.npz")).unwrap();
    let arguments = ["features.npy", "--save-ref", "nowhere.npz"].map(OsStr::new);
    let output = score(dir.0.path(), &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(dir.path("nowhere.npz").is_symlink() && !dir.path("nowhere.npz").metadata().unwrap().is_file());
    for (store, says) in [("~/store", "expands ~"), ("https://example.org/store", "no address")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
        command.args(["run", "edm", "--scale", "smoke", "--watch", "none", "--store", store]);
        let output = command.current_dir(dir.0.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(EXIT_USAGE) && text.contains(says), "{text}");
        assert!(!dir.path(store).exists() && !dir.path(store.split('/').next().unwrap()).exists());
    }
}

/// An output takes the place of no input, of no address, and of no directory that a shell has to name.
#[test]
fn outputs_are_where_they_are_meant_to_be() {
    let dir = Dir::new();
    let bytes = zip(&[("features.npy", npy("<f4", &[4, 2], &f4((0..8).map(|x| (x * x % 7) as f32))))], false);
    for name in ["a.npz", "b.npz"] {
        dir.write(name, &bytes);
    }
    let replicate = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
        let output = command.args(arguments).current_dir(dir.0.path()).env_remove("REPLICATE_STORE").output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (images, reference, out) in
        [("a.npz", "b.npz", "./a.npz"), ("a.npz", "b.npz", "b.npz"), ("file:a.npz", "b.npz", "file:a.npz")]
    {
        let (code, text) = replicate(&["score", images, "--ref", reference, "--save-ref", out]);
        assert!(code == Some(EXIT_USAGE) && text.contains("is read by this command"), "{text}");
    }
    let (code, text) = replicate(&["inspect", "a.npz", "--convert", "a.npz"]);
    assert!(code == Some(EXIT_USAGE) && text.contains("is read by this command"), "{text}");
    for name in ["a.npz", "b.npz"] {
        assert_eq!(fs::read(dir.path(name)).unwrap(), bytes);
    }
    for out in ["~/x.npz", "s3://bucket/x.npz", "HTTP://h/x.npz"] {
        for arguments in [
            &["score", "a.npz", "--save-ref"][..],
            &["inspect", "a.npz", "--convert"],
            &["sample", "edm", "--seeds", "0", "--out"],
            &["run", "edm", "--scale", "smoke", "--stored", "--output"],
            &["report", "--output"],
            &["export"],
            &["man"],
            &["list", "--store"],
        ] {
            let (code, text) = replicate(&[arguments, &[out]].concat());
            let says = if out.starts_with('~') { "the shell expands ~" } else { "no address" };
            assert!(code == Some(EXIT_USAGE) && text.contains(says), "{arguments:?}: {text}");
        }
    }
    // What is read is fetched by somebody else, and a signature is not shown.
    for arguments in [&["inspect"][..], &["verify"], &["sample", "--seeds", "0", "--out", "x"], &["score"]] {
        let (code, text) = replicate(&[arguments, &["https://u:SECRET@h/net.pkl?sig=SECRET"]].concat());
        assert!(code == Some(EXIT_USAGE) && text.contains("https://h/net.pkl?…: only files are"), "{text}");
        assert!(!text.contains("SECRET") && text.ends_with("download it first\n"), "{text}");
    }
    let address = format!("file://{}/saved%20here.npz", dir.0.path().display());
    assert_eq!(replicate(&["score", "a.npz", "--save-ref", &address]).0, Some(0));
    assert_eq!(fs::read_dir(dir.0.path()).unwrap().count(), 3, "a.npz, b.npz and what was saved");
    assert!(dir.path("saved here.npz").is_file());
    // What is named so is meant so.
    fs::create_dir(dir.path("~")).unwrap();
    assert_eq!(replicate(&["score", "a.npz", "--save-ref", "~/x.npz"]).0, Some(0));
    for arguments in [
        &["score", "~/y.npz"][..],
        &["score", "a.npz", "--ref=~/y.npz"],
        &["inspect", "~/y.pkl"],
        &["run", "edm", "--scale", "tiny", "--offline", "--data=~/cifar"],
        &["fetch", "fid-reference", "--from=~/y.npz"],
    ] {
        let (code, text) = replicate(arguments);
        assert!(code == Some(EXIT_INPUT) && text.contains("; the shell expands ~ only"), "{text}");
    }
}

#[test]
fn a_folder_with_the_name_of_a_row_is_reached_by_its_path() {
    let dir = Dir::new();
    dir.write("dijs/000.png", png(0));
    dir.write("cifar10/000.png", png(0));
    for name in ["dijs", "cifar10"] {
        let output = score(dir.0.path(), &[OsStr::new(name)]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(&format!("./{name} names the file or folder here")), "{text}");
        // By its path it is opened; what is missing then is a network.
        let output = score(
            dir.0.path(),
            &[OsStr::new(&format!("./{name}")), OsStr::new("--inception"), OsStr::new("x")],
        );
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("no file of Inception weights") || text.contains("needs at least"), "{text}");
    }
}

/// What a file calls its parts does not reach the terminal as it is.
#[test]
fn names_from_files_steer_no_terminal() {
    let dir = Dir::new();
    let bad = "\x1b]0;owned\x07\x1b[31mred\u{202e}";
    let array = npy("<i8", &[1], &[0; 8]);
    let png_name = format!("{bad}.png");
    dir.write("images.zip", zip(&[(png_name.as_str(), b"no PNG".to_vec())], false));
    dir.write("arrays.npz", zip(&[(format!("{bad}.npy").as_str(), array.clone())], false));
    dir.write("type.npy", npy(bad, &[1], &[0; 8]));
    dir.write("hidden.zip", zip(&[(format!(".{bad}").as_str(), array), ("a.png", b"no".to_vec())], false));
    dir.write(&format!("folder/{png_name}"), "no PNG");
    dir.write(&format!("batches/{bad}"), "no batch");
    for name in ["images.zip", "arrays.npz", "type.npy", "hidden.zip", "folder", "batches", bad] {
        let output = score(dir.0.path(), &[OsStr::new(name)]);
        assert_ne!(output.status.code(), Some(0));
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(!text.contains(['\x1b', '\x07', '\u{202e}']), "{name}: {text:?}");
    }
}
