//! Gives the program what it records about itself: a digest of every source, the
//! versions of the crates whose arithmetic is part of a result, the git commit.

#[path = "build/tokens.rs"]
mod tokens;

use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates whose arithmetic or bytes are part of a result.
const ARITHMETIC: [&str; 6] = ["candle", "faer", "gemm", "libm", "png", "private-gemm"];

fn main() {
    println!("cargo::rerun-if-changed=replicate");
    println!("cargo::rerun-if-changed=Cargo.lock");
    // Not the index: git rewrites it whenever somebody asks for the status.
    for path in [".git/HEAD", ".git/logs/HEAD"] {
        if Path::new(path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let mut files = Vec::new();
    walk(Path::new("replicate"), &mut files);
    files.sort();
    let mut sources = String::from("&[\n");
    for path in files {
        let name = path.to_string_lossy().replace('\\', "/");
        let text = std::fs::read_to_string(&path).unwrap();
        let code = if name.ends_with(".rs") { tokens::rust(&name, &text) } else { tokens::cuda(&text) };
        writeln!(sources, "    ({name:?}, {:?}),", digest(&code)).unwrap();
    }
    sources.push_str("]\n");
    println!("cargo::rustc-env=CODE_DIGEST={}", digest(&sources));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap()).join("sources.rs");
    std::fs::write(out, sources).unwrap();

    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    let mut arithmetic = String::new();
    for package in lock.split("[[package]]") {
        let name = package.split('"').nth(1).unwrap_or("");
        if ARITHMETIC.iter().any(|prefix| name.starts_with(prefix)) {
            arithmetic.extend(package.lines().take(4));
        }
    }
    println!("cargo::rustc-env=ARITHMETIC_DIGEST={}", digest(&arithmetic));
    let candle = lock.split("name = \"candle-core\"\nversion = \"").nth(1).and_then(|t| t.split('"').next());
    println!("cargo::rustc-env=CANDLE_VERSION={}", candle.unwrap_or("unknown"));

    let output = |program: &str, arguments: &[&str]| {
        let out = Command::new(program).args(arguments).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&out.stdout).trim().to_string())
    };
    let rustc = output(&std::env::var("RUSTC").unwrap_or("rustc".into()), &["--version"]);
    println!("cargo::rustc-env=RUSTC_VERSION={}", rustc.unwrap_or_default());
    // Unpacked inside another repository, that one's commit would say nothing of these sources.
    let canonical = |path: String| Path::new(&path).canonicalize().ok();
    let top = output("git", &["rev-parse", "--show-toplevel"]).and_then(canonical);
    let own = top.is_some() && top == canonical(".".into());
    let git = |arguments: &[&str]| own.then(|| output("git", arguments)).flatten();
    let commit = git(&["rev-parse", "HEAD"]).or_else(published).unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=GIT_COMMIT={commit}");
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    println!("cargo::rustc-env=GIT_DIRTY={dirty}");
}

/// The commit that `cargo package` records in a package.
fn published() -> Option<String> {
    let text = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    Some(text.split("\"sha1\": \"").nth(1)?.split('"').next()?.to_string())
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

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect()
}
