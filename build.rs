//! Gives the program what it records about itself: the digest of the sources
//! that can change a result, the candle version, the git commit.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Sources and directories that only read, write or show results.
const NO_RESULT: &[&str] = &[
    "main.rs",
    "lib.rs",
    "error.rs",
    "text.rs",
    "app/",
    "report/",
    "judge/",
    "experiment/plan.rs",
    "network/device.rs",
    "store/mod.rs",
    "store/files.rs",
    "store/manifest.rs",
    "store/checkpoint.rs",
    "store/fetch/",
    "train/watch.rs",
    "train/tfevents.rs",
];
/// Crates whose arithmetic or bytes are part of a result.
const ARITHMETIC: [&str; 6] = ["candle", "faer", "gemm", "libm", "png", "private-gemm"];

fn main() {
    println!("cargo::rerun-if-changed=replicate");
    println!("cargo::rerun-if-changed=Cargo.lock");
    for path in [".git/HEAD", ".git/logs/HEAD", ".git/index"] {
        if Path::new(path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let mut files = Vec::new();
    walk(Path::new("replicate"), &mut files);
    files.sort();
    let mut hash = Sha256::new();
    for path in files {
        let name = path.strip_prefix("replicate").unwrap().to_string_lossy().replace('\\', "/");
        let shows = |known: &str| name == known || known.ends_with('/') && name.starts_with(known);
        if NO_RESULT.iter().any(|known| shows(known)) {
            continue;
        }
        let text = std::fs::read(&path).unwrap();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    for package in lock.split("[[package]]") {
        let name = package.split('"').nth(1).unwrap_or("");
        if ARITHMETIC.iter().any(|prefix| name.starts_with(prefix)) {
            hash.update(package.lines().take(4).collect::<String>());
        }
    }
    let digest: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    println!("cargo::rustc-env=CODE_DIGEST={}", &digest[..16]);

    let candle = lock.split("name = \"candle-core\"\nversion = \"").nth(1).and_then(|t| t.split('"').next());
    println!("cargo::rustc-env=CANDLE_VERSION={}", candle.unwrap_or("unknown"));

    let git = |arguments: &[&str]| {
        let out = Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&out.stdout).trim().to_string())
    };
    println!(
        "cargo::rustc-env=GIT_COMMIT={}",
        git(&["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown".into())
    );
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    println!("cargo::rustc-env=GIT_DIRTY={dirty}");
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs" || e == "cu") {
            files.push(path);
        }
    }
}
