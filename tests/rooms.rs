//! The rooms of the house: imports point downwards only.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Rooms from the ground up; those of one floor do not know each other.
const FLOORS: [&[&str]; 9] = [
    &["error", "rng", "settings", "text"],
    &["store"],
    &["network", "data"],
    &["train"],
    &["measure"],
    &["method", "judge"],
    &["experiment"],
    &["report"],
    &["app"],
];
/// A folder with more files than this wants rooms of its own.
const MOST_FILES: usize = 12;

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let children: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let files = children.iter().filter(|path| path.extension().is_some_and(|e| e == "rs")).count();
    assert!(files <= MOST_FILES, "{} holds {files} sources", folder.display());
    for path in children {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn arrows_point_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("replicate");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut arrows = 0;
    for path in files {
        let inside = path.strip_prefix(&root).unwrap();
        let room = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let Some(here) = floor(room) else {
            assert!(["lib", "main"].contains(&room), "{} is in no room", path.display());
            continue;
        };
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
        for (number, line) in code {
            for (at, _) in line.match_indices("crate::") {
                let name: String =
                    line[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let Some(there) = floor(&name).filter(|_| name != room) else { continue };
                assert!(there < here, "{}:{}: {room} must not know {name}", path.display(), number + 1);
                arrows += 1;
            }
        }
    }
    assert!(arrows > 300, "only {arrows} imports were read");
}

/// A registry takes no package of more than 10 MiB, and what the sources include must be in it.
#[test]
fn the_package_is_small_and_whole() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = Command::new(env!("CARGO"))
        .args(["package", "--list", "--allow-dirty", "--offline"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
    let list = String::from_utf8(list.stdout).unwrap();
    // The manifest as it was, and the commit, are made when it is packed.
    let files: BTreeSet<PathBuf> = list.lines().map(|line| root.join(line)).filter(|f| f.is_file()).collect();
    let (mut packed, mut included) = (0, 0);
    for file in &files {
        let mut zipped = GzEncoder::new(Vec::new(), Compression::default());
        let bytes = fs::read(file).unwrap();
        zipped.write_all(&bytes).unwrap();
        packed += zipped.finish().unwrap().len();
        if !file.starts_with(root.join("replicate")) || file.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let text = String::from_utf8(bytes).unwrap();
        for call in ["include_bytes!(\"", "include_str!(\""] {
            for path in text.split(call).skip(1).map(|rest| rest.split('"').next().unwrap()) {
                let path = file.parent().unwrap().join(path).canonicalize().unwrap();
                assert!(files.contains(&path), "{} is included and not packed", path.display());
                included += 1;
            }
        }
    }
    assert!(included >= 10, "{included} files are included");
    assert!(packed < 10 << 20, "{packed} bytes");
}
