//! What is shown of a run: the lines, and the file for TensorBoard, read back
//! by a reader of its own. `tests/peers/read_events.py` reads such a file with
//! TensorBoard itself.

use clap::ValueEnum;
use replicate::train::InterimScores;
use replicate::train::tfevents;
use replicate::train::watch::{Mode, Progress, Watch};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

const COLUMNS: [&str; 3] = ["critic_loss", "generator_loss", "c_real"];
const TOTAL: u64 = 192;

/// Bytes that begin as a PNG file of 491 x 49 pixels does.
fn grid(images: u64, bytes: usize) -> Vec<u8> {
    let header = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\x01\xeb\0\0\0\x31\x08\x02\0\0\0";
    header.iter().copied().chain((0..bytes).map(|i| (i as u64 + images) as u8)).collect()
}

fn quick(images: u64) -> InterimScores {
    InterimScores { fd: 12.3 - images as f64 / 100.0, recall: 0.81, classes: 9.7, collapsed: false }
}

/// A training with a tick every 64 images, as the loop of a training calls it.
fn training(watch: &mut Watch, dir: &Path, ticks: std::ops::RangeInclusive<u64>, grid_bytes: usize) {
    let columns = &COLUMNS;
    watch.begin("mini-dijs-s0", dir, TOTAL, 64 * ticks.start().saturating_sub(1));
    for images in ticks.map(|k| 64 * k) {
        let values = [1.25, images as f64 / 3.0, f64::NAN];
        let values: &[f64] = if images == 0 { &[] } else { &values };
        if images > 0 {
            std::thread::sleep(Duration::from_millis(2));
            watch.progress(&Progress { images, columns, values, scores: None });
        }
        let at = Progress { images, columns, values, scores: Some(quick(images)) };
        watch.tick(&at, Some(&grid(images, grid_bytes)));
    }
    watch.end();
}

// --- an independent reader of events files ---------------------------------

/// Bit by bit on the unreflected polynomial, as long division is written.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut rest = u32::MAX;
    for byte in bytes {
        rest ^= u32::from(byte.reverse_bits()) << 24;
        for _ in 0..8 {
            let carry = rest >> 31 == 1;
            rest <<= 1;
            if carry {
                rest ^= 0x1EDC_6F41;
            }
        }
    }
    !rest.reverse_bits()
}

enum Field<'a> {
    Number(u64),
    Double(f64),
    Float(f32),
    Bytes(&'a [u8]),
}

fn number(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for place in 0.. {
        let (first, rest) = bytes.split_first().expect("a number ends within the message");
        *bytes = rest;
        value |= u64::from(first & 0x7f) << (7 * place);
        if first & 0x80 == 0 {
            break;
        }
    }
    value
}

fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> &'a [u8; N] {
    let (first, rest) = bytes.split_first_chunk().expect("a field ends within the message");
    *bytes = rest;
    first
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = number(&mut bytes);
        let field = match key & 7 {
            0 => Field::Number(number(&mut bytes)),
            1 => Field::Double(f64::from_le_bytes(*take(&mut bytes))),
            2 => {
                let length = number(&mut bytes) as usize;
                let (field, rest) = bytes.split_at(length);
                bytes = rest;
                Field::Bytes(field)
            }
            5 => Field::Float(f32::from_le_bytes(*take(&mut bytes))),
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, field));
    }
    found
}

#[derive(Debug, PartialEq)]
enum Shown {
    Scalar(f32),
    Image { height: u64, width: u64, colorspace: u64, png: Vec<u8> },
}

#[derive(Debug, Default)]
struct Event {
    wall: f64,
    step: u64,
    version: Option<String>,
    values: Vec<(String, Shown)>,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn value(bytes: &[u8]) -> (String, Shown) {
    let (mut tag, mut shown) = (None, None);
    for field in fields(bytes) {
        match field {
            (1, Field::Bytes(name)) => tag = Some(text(name)),
            (2, Field::Float(value)) => shown = Some(Shown::Scalar(value)),
            (4, Field::Bytes(image)) => match fields(image)[..] {
                [
                    (1, Field::Number(height)),
                    (2, Field::Number(width)),
                    (3, Field::Number(colorspace)),
                    (4, Field::Bytes(png)),
                ] => shown = Some(Shown::Image { height, width, colorspace, png: png.to_vec() }),
                _ => panic!("an image has other fields"),
            },
            (other, _) => panic!("a value has a field {other}"),
        }
    }
    (tag.expect("a value has a tag"), shown.expect("a value has a value"))
}

fn event(bytes: &[u8]) -> Event {
    let mut event = Event::default();
    for field in fields(bytes) {
        match field {
            (1, Field::Double(wall)) => event.wall = wall,
            (2, Field::Number(step)) => event.step = step,
            (3, Field::Bytes(version)) => event.version = Some(text(version)),
            (5, Field::Bytes(summary)) => {
                event.values = fields(summary)
                    .into_iter()
                    .map(|field| match field {
                        (1, Field::Bytes(bytes)) => value(bytes),
                        (other, _) => panic!("a summary has a field {other}"),
                    })
                    .collect();
            }
            (other, _) => panic!("an event has a field {other}"),
        }
    }
    event
}

/// The payloads of complete records, with both checksums checked.
fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let checked = |content: &[u8], masked: [u8; 4]| {
        let unmasked = u32::from_le_bytes(masked).wrapping_sub(0xA282_EAD8).rotate_left(15);
        assert_eq!(unmasked, crc32c(content), "a checksum");
    };
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = *take::<8>(&mut bytes);
        checked(&length, *take(&mut bytes));
        let (content, rest) = bytes.split_at(u64::from_le_bytes(length) as usize);
        bytes = rest;
        checked(content, *take(&mut bytes));
        found.push(content.to_vec());
    }
    found
}

/// The events files of a directory, in the order of their names.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect();
    found.sort();
    found
}

/// Its version, then the others.
fn events(path: &Path) -> Vec<Event> {
    let mut events: Vec<Event> =
        records(&fs::read(path).unwrap()).iter().map(|payload| event(payload)).collect();
    let first = events.remove(0);
    assert_eq!(first.version.as_deref(), Some("brain.Event:2"));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let walls: Vec<f64> = events.iter().map(|event| event.wall).collect();
    assert!(walls.iter().all(|wall| (first.wall..=now).contains(wall)) && walls.is_sorted(), "{walls:?}");
    assert!(now - first.wall < 600.0, "the clock is in seconds since 1970");
    events
}

#[test]
fn checksums_are_those_of_rfc_3720() {
    let ascending: Vec<u8> = (0..32).collect();
    for (bytes, expected) in [
        (&b""[..], 0),
        (b"123456789", 0xE306_9283),
        (&[0; 32], 0x8A91_36AA),
        (&[0xff; 32], 0x62A8_AB43),
        (&ascending, 0x46DD_794E),
    ] {
        assert_eq!(tfevents::crc32c(bytes), expected, "{bytes:?}");
        assert_eq!(crc32c(bytes), expected, "the reader's own, {bytes:?}");
    }
}

/// Written by TensorBoard 2.21's `RecordWriter` from its own protocol buffers.
#[test]
fn records_are_tensorboards_own_bytes() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let wall = 1_700_000_000.5;
    assert_eq!(
        hex(&tfevents::version(wall)),
        "1800000000000000a37f4b22\
         0900002040fc54d9411a0d627261696e2e4576656e743a32\
         2b353110"
    );
    assert_eq!(
        hex(&tfevents::scalars(wall, 1920, &[("fd", 8.8251), ("recall", 0.0)])),
        "2800000000000000ff70164a\
         0900002040fc54d94110800f2a1a0a090a026664159c330d410a0d0a06726563616c6c1500000000\
         af9230c3"
    );
    let png: Vec<u8> = (0..200).collect();
    assert_eq!(
        hex(&tfevents::image(wall, 300_000_000, "grid", 49, 491, &png)),
        "f000000000000000974165aa\
         0900002040fc54d9411080c6868f012ade010adb010a046772696422d20108eb031031180322c801"
            .to_string()
            + &hex(&png)
            + "c324ee2d"
    );
}

#[test]
fn the_file_holds_every_tick() {
    let dir = tempfile::tempdir().unwrap();
    heard("tensorboard", "training", dir.path(), "");
    let [file] = &files(dir.path())[..] else { panic!("one process, one file") };
    let name = file.file_name().unwrap().to_str().unwrap();
    let parts: Vec<&str> = name.split('.').collect();
    let [_, _, _, seconds, pid, _] = parts[..] else { panic!("{name}") };
    assert_eq!(name, format!("events.out.tfevents.{seconds}.{pid}.replicate"));
    assert!(pid.parse::<u32>().is_ok() && pid != std::process::id().to_string(), "{name}");
    assert!(seconds.parse::<u64>().unwrap() > 1_700_000_000, "{name}");

    let events = events(file);
    let steps: Vec<u64> = events.iter().map(|event| event.step).collect();
    assert_eq!(steps, [0, 0, 64, 64, 128, 128, 192, 192]);
    for tick in events.chunks(2) {
        let images = tick[0].step;
        let mut expected = vec![
            ("fd".to_string(), Shown::Scalar(quick(images).fd as f32)),
            ("recall".to_string(), Shown::Scalar(0.81)),
            ("classes".to_string(), Shown::Scalar(9.7)),
        ];
        let mut scalars: Vec<_> = tick[0].values.iter().collect();
        if images > 0 {
            // A probability that does not exist is not a point of a curve.
            let losses = [("critic_loss", 1.25), ("generator_loss", (images as f64 / 3.0) as f32)];
            expected.splice(0..0, losses.map(|(tag, value)| (tag.to_string(), Shown::Scalar(value))));
            let (tag, rate) = scalars.pop().unwrap();
            let Shown::Scalar(rate) = rate else { panic!("a rate is a number") };
            assert_eq!(tag, "images_per_second");
            // At least 2 ms for 64 images.
            assert!(*rate > 0.0 && *rate <= 32_000.0, "{rate}");
        }
        assert_eq!(scalars, expected.iter().collect::<Vec<_>>());
        let png = grid(images, 3000);
        let image = Shown::Image { height: 49, width: 491, colorspace: 3, png };
        assert_eq!(tick[1].values, [("grid".to_string(), image)]);
    }
}

#[test]
fn every_tick_is_on_the_disk_before_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(heard("tensorboard", "reading along", dir.path(), "").len(), 3);
}

#[test]
fn a_resumed_run_adds_a_file() {
    let dir = tempfile::tempdir().unwrap();
    heard("tensorboard", "resumed", dir.path(), "");
    let both = files(dir.path());
    assert_eq!(both.len(), 2);
    let steps = |path: &Path| events(path).iter().map(|event| event.step).collect::<Vec<_>>();
    assert_eq!(steps(&both[0]), [0, 0, 64, 64]);
    assert_eq!(steps(&both[1]), [128, 128, 192, 192]);
}

#[test]
fn only_tensorboard_writes_files() {
    for mode in ["bar", "lines", "json", "none"] {
        let dir = tempfile::tempdir().unwrap();
        heard(mode, "training", dir.path(), "");
        assert_eq!(files(dir.path()), Vec::<PathBuf>::new(), "{mode}");
    }
}

// --- what is said, heard from a process of its own --------------------------

/// Standard error of [`child`]; `sh` is what the shell does before it.
fn heard(mode: &str, act: &str, dir: &Path, sh: &str) -> Vec<String> {
    let mut command = match sh {
        "" => Command::new(std::env::current_exe().unwrap()),
        _ => {
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(format!("{sh}; exec \"$0\" \"$@\"")).arg(std::env::current_exe().unwrap());
            shell
        }
    };
    command.args(["child", "--exact", "--ignored"]).stdout(Stdio::null());
    let output =
        command.env("CHILD_MODE", mode).env("CHILD_ACT", act).env("CHILD_DIR", dir).output().unwrap();
    let text = text(&output.stderr);
    assert!(output.status.success(), "{mode} {act}: {text}");
    text.lines().map(str::to_string).collect()
}

#[test]
#[ignore = "the process that other tests listen to"]
fn child() {
    let variable = |name| std::env::var(name).unwrap();
    let dir = PathBuf::from(variable("CHILD_DIR"));
    let dir = dir.as_path();
    let mut watch = Watch::new(Mode::from_str(&variable("CHILD_MODE"), false).unwrap());
    match variable("CHILD_ACT").as_str() {
        "training" => {
            training(&mut watch, dir, 0..=3, 3000);
            watch.note("that was all");
        }
        // Within one second and process: not even then is a file written twice.
        "resumed" => {
            training(&mut watch, dir, 0..=1, 100);
            training(&mut watch, dir, 2..=3, 100);
        }
        "reading along" => {
            watch.begin("mini-dijs-s0", dir, TOTAL, 0);
            for images in [64, 128] {
                watch.tick(&Progress { images, columns: &["loss"], values: &[0.5], scores: None }, None);
                assert_eq!(events(&files(dir)[0]).last().unwrap().step, images);
            }
        }
        "note" => {
            watch.begin("mini-dijs-s0", dir, TOTAL, 0);
            watch.note("by the way");
            watch.note("by the way");
        }
        "whole batches" => {
            watch.begin("mini-dijs-s0", dir, 5, 0);
            watch.tick(&Progress { images: 16, columns: &[], values: &[], scores: None }, None);
        }
        "sampling" => {
            (1..=100).for_each(|done| watch.images("sampling", "mini-edm-s0", done, 2000));
            std::thread::sleep(Duration::from_secs(10));
            (101..=2000).for_each(|done| watch.images("sampling", "mini-edm-s0", done, 2000));
            watch.images("sampling", "mini-edm-s1", 2000, 2000);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn lines_say_what_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let lines = heard("lines", "training", dir.path(), "");
    assert_eq!(lines[0], "mini-dijs-s0           0/192 images  FD 12.3  recall 0.81  classes 9.7");
    assert!(lines[1].starts_with("mini-dijs-s0          64/192 images  "), "{}", lines[1]);
    assert!(lines[1].contains(" images/s  eta "), "{}", lines[1]);
    let rest = "  critic loss 1.250  generator loss 21.333  FD 11.7  recall 0.81  classes 9.7";
    assert!(lines[1].ends_with(rest), "{}", lines[1]);
    assert!(lines[3].contains("192/192 images") && lines[3].contains("  eta 0s  "), "{}", lines[3]);
    assert_eq!(lines[4..], ["that was all"]);
}

#[test]
fn tensorboard_says_the_same_lines() {
    let store = tempfile::tempdir().unwrap();
    let dir = store.path().join("entry");
    fs::create_dir(&dir).unwrap();
    let lines = heard("tensorboard", "training", &dir, "");
    let [file] = &files(&dir)[..] else { panic!("one file") };
    assert_eq!(
        lines[0],
        format!(
            "mini-dijs-s0: events in {}, see them with tensorboard --logdir {}",
            file.display(),
            store.path().display()
        )
    );
    // All but the speed, which no two processes have in common.
    let without = |line: &String| {
        line.split("  ")
            .filter(|part| !part.ends_with("/s") && !part.starts_with("eta"))
            .collect::<Vec<_>>()
            .join("  ")
    };
    let plain = heard("lines", "training", &dir, "");
    assert_eq!(
        lines[1..].iter().map(without).collect::<Vec<_>>(),
        plain.iter().map(without).collect::<Vec<_>>()
    );
}

#[test]
fn json_is_one_object_a_tick() {
    let dir = tempfile::tempdir().unwrap();
    let lines: Vec<serde_json::Value> = heard("json", "training", dir.path(), "")
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert_eq!(lines.len(), 5);
    assert_eq!(
        lines[0],
        serde_json::json!({"run": "mini-dijs-s0", "images": 0, "of": 192, "images_per_second": null,
            "eta_seconds": null, "fd": 12.3, "recall": 0.81, "classes": 9.7})
    );
    let last = &lines[3];
    assert!(last["images_per_second"].as_f64().unwrap() > 0.0, "{last}");
    assert_eq!((&last["eta_seconds"], &last["images"]), (&0.0.into(), &192.into()));
    assert_eq!((&last["generator_loss"], &last["fd"]), (&64.0.into(), &quick(192).fd.into()));
    assert_eq!(last.get("c_real"), Some(&serde_json::Value::Null), "what does not exist is null");
    assert_eq!(lines[4], serde_json::json!({"note": "that was all"}));
}

#[test]
fn the_last_batch_is_counted_whole() {
    let dir = tempfile::tempdir().unwrap();
    let lines = heard("lines", "whole batches", dir.path(), "");
    assert!(lines[0].contains(" 16/16 images  ") && lines[0].contains("eta 0s"), "{lines:?}");
}

#[test]
fn nothing_is_nothing_and_a_note_is_heard_beside_a_bar() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(heard("none", "training", dir.path(), ""), [""; 0]);
    assert_eq!(heard("bar", "note", dir.path(), ""), ["by the way"]);
}

#[test]
fn a_directory_that_cannot_be_written_is_noted_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a-file");
    fs::write(&file, "").unwrap();
    for place in [file, dir.path().join("missing")] {
        let lines = heard("tensorboard", "training", &place, "");
        assert_eq!(lines.len(), 6, "{lines:?}");
        let note =
            format!("mini-dijs-s0: no further events for TensorBoard, cannot write {}: ", place.display());
        assert!(lines[0].starts_with(&note), "{}", lines[0]);
        assert!(lines[4].contains("192/192 images"), "{}", lines[4]);
        assert_eq!(lines[5], "that was all");
    }
    assert_eq!(files(dir.path()).len(), 1, "nothing was made");
}

/// A limit on the size of files stands for the end of the disk.
#[test]
#[cfg(unix)]
fn a_disk_that_fills_up_is_noted_once() {
    let dir = tempfile::tempdir().unwrap();
    let lines = heard("tensorboard", "training", dir.path(), "trap '' XFSZ; ulimit -f 1");
    assert_eq!(lines.len(), 7, "{lines:?}");
    let notes: Vec<_> = lines.iter().filter(|line| line.contains("no further events")).collect();
    let [file] = &files(dir.path())[..] else { panic!("one file") };
    assert_eq!(notes.len(), 1, "{lines:?}");
    assert!(notes[0].contains(&file.display().to_string()) && lines[2] == *notes[0], "{lines:?}");
    assert!(lines[5].contains("192/192 images"), "{lines:?}");
    let bytes = fs::read(file).unwrap();
    let (complete, torn) = bytes.split_at(tfevents::version(0.0).len());
    assert_eq!(event(&records(complete)[0]).version.as_deref(), Some("brain.Event:2"));
    assert!(torn.len() < 1024, "nothing is added once a write has failed");
}

#[test]
fn sampling_is_spoken_of_every_ten_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let heard = |mode: &'static str| heard(mode, "sampling", dir.path(), "");
    let [lines, events, json, none] = std::thread::scope(|scope| {
        ["lines", "tensorboard", "json", "none"]
            .map(|mode| scope.spawn(move || heard(mode)))
            .map(|thread| thread.join().unwrap())
    });
    for lines in [lines, events] {
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.starts_with("mini-edm-s0          101/2000 images  sampling  "), "{line}");
        assert!(line.contains(" images/s  eta "), "{line}");
    }
    let [line] = &json[..] else { panic!("{json:?}") };
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (&line["run"], &line["sampled"], &line["of"]),
        (&"mini-edm-s0".into(), &101.into(), &2000.into())
    );
    // A hundred images in ten seconds, the first of them before the clock.
    let rate = line["images_per_second"].as_f64().unwrap();
    assert!(rate > 1.0 && rate <= 10.0, "{rate}");
    assert_eq!(none, [""; 0]);
}
