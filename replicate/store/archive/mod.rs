//! Archives of a store: a zip of uncompressed files with a list `SHA256SUMS`, which anybody can
//! check. The zip's comment is the SHA-256 of every byte before it, so every change is detected.

mod metadata;

pub use self::metadata::{About, METADATA, metadata};
use super::files::{Content, dir_of, lock_to_change, sync_dir};
use super::formats::uncompressed;
use super::formats::unzip::{Entry, entries};
use super::{EXPERIMENT, MANIFEST, Manifest, sha256_hex};
use crate::error::{Error, Result, shown, shown_path};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The list of all other files, in the format of `sha256sum -c`.
pub const SUMS: &str = "SHA256SUMS";
/// Begin of the comment, before its 64 digits.
const COMMENT: &str = "sha256 ";
const DIGITS: u64 = 64;

/// Writes an archive, which gets its name when it is complete.
pub struct Writer {
    path: PathBuf,
    partial: PathBuf,
    zip: zip::ZipWriter<File>,
    sums: BTreeMap<String, String>,
    /// Held by the one process that writes the archive.
    _lock: File,
}

impl Writer {
    /// Begins an archive.
    ///
    /// # Errors
    /// `Usage` if `path` is no file, or if another process writes the same archive; `Io` if it cannot
    /// be written.
    pub fn create(path: &Path) -> Result<Writer> {
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            let path = shown_path(path);
            return Err(Error::Usage(format!(
                "{path} is a directory or a device: name a file for the archive"
            )));
        }
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let lock = lock_to_change(&partial, &mut |_| {
            Err(Error::Usage(format!("another process is writing {}", shown_path(path))))
        })?;
        let file = OpenOptions::new().read(true).write(true).truncate(true).open(&partial);
        let zip = zip::ZipWriter::new(file.map_err(Error::io("write", path))?);
        Ok(Writer { path: path.into(), partial, zip, sums: BTreeMap::new(), _lock: lock })
    }

    /// Adds a file with this content, uncompressed.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.copy(name, bytes.len() as u64, &mut &bytes[..])
    }

    /// Adds the file at `path`, of any size.
    pub fn add_file(&mut self, name: &str, path: &Path) -> Result<()> {
        let open = || File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (bytes, file) = open().map_err(Error::io("read", path))?;
        self.copy(name, bytes, &mut BufReader::new(file))
    }

    fn copy(&mut self, name: &str, bytes: u64, content: &mut dyn Read) -> Result<()> {
        let stored = uncompressed().large_file(bytes >= u64::from(u32::MAX));
        let copied = || -> io::Result<Content> {
            self.zip.start_file(name, stored)?;
            Content::copy(content, &mut self.zip)
        };
        let copied = copied().map_err(Error::io("write", &self.path))?;
        self.sums.insert(name.into(), copied.sha256);
        Ok(())
    }

    /// Adds the list of digests and the comment, and renames the archive to its path.
    pub fn finish(mut self) -> Result<()> {
        let sums: String = self.sums.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect();
        self.add(SUMS, sums.as_bytes())?;
        let Writer { path, partial, mut zip, _lock, .. } = self;
        let finish = || -> io::Result<()> {
            zip.set_comment(format!("{COMMENT}{}", "0".repeat(DIGITS as usize)))?;
            let mut file = zip.finish()?;
            let digest = digest_before_comment(&mut file)?;
            file.seek(SeekFrom::End(-(DIGITS as i64)))?;
            file.write_all(digest.as_bytes())?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            sync_dir(dir_of(&path))
        };
        finish().map_err(Error::io("write", &path))
    }
}

/// Returns the SHA-256 of the file without its last 64 bytes.
fn digest_before_comment(file: &mut File) -> io::Result<String> {
    let length = file.seek(SeekFrom::End(0))?.saturating_sub(DIGITS);
    file.rewind()?;
    digest(file.take(length))
}

fn digest(content: impl Read) -> io::Result<String> {
    Ok(Content::copy(content, &mut io::sink())?.sha256)
}

/// Result of a verification.
#[derive(Debug, Default)]
pub struct Verified {
    pub files: usize,
    /// Number of results whose files all match their manifest.
    pub results: usize,
    /// One sentence for each problem; empty for a good archive.
    pub problems: Vec<String>,
}

/// Verifies every byte of the archive at `path`.
///
/// # Errors
/// `Io` if the system cannot read it.
pub fn verify(path: &Path) -> Result<Verified> {
    let mut verified = Verified::default();
    match check(path, &mut verified) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
            verified.problems.push(error.to_string());
        }
        Err(error) => return Err(Error::io("read", path)(error)),
    }
    Ok(verified)
}

fn wrong(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_string())
}

fn check(path: &Path, verified: &mut Verified) -> io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut comment = vec![0; (COMMENT.len() as u64 + DIGITS).min(length) as usize];
    file.seek(SeekFrom::End(-(comment.len() as i64)))?;
    file.read_exact(&mut comment)?;
    let recorded = comment.strip_prefix(COMMENT.as_bytes());
    if recorded != Some(digest_before_comment(&mut file)?.as_bytes()) {
        verified.problems.push("the archive does not end with the SHA-256 of what is before it".into());
    }
    let files = entries(BufReader::new(&file)).map_err(|fault| wrong(format!("it {fault}")))?;
    let mut found = BTreeMap::new();
    for entry in files.iter().filter(|entry| entry.name != SUMS) {
        let sum = digest(entry.open(BufReader::new(&file))?)
            .map_err(|error| wrong(format!("{}: {error}", shown(&entry.name))))?;
        found.insert(entry.name.as_str(), sum);
    }
    verified.files = found.len();
    let text = |name: &str| -> io::Result<String> {
        let entry: Option<&Entry> = files.iter().find(|entry| entry.name == name);
        let mut text = String::new();
        entry
            .ok_or_else(|| wrong(format!("{} is missing", shown(name))))?
            .open(BufReader::new(&file))?
            .read_to_string(&mut text)?;
        Ok(text)
    };
    let sums = text(SUMS)?;
    let sums: BTreeMap<&str, &str> =
        sums.lines().filter_map(|line| line.split_once("  ")).map(|(sum, name)| (name, sum)).collect();
    for name in found.keys().chain(sums.keys().filter(|name| !found.contains_key(*name))) {
        let problem = match (found.get(name), sums.get(name)) {
            (Some(found), Some(sum)) if found == sum => continue,
            (Some(_), Some(_)) => format!("does not have the SHA-256 that {SUMS} records"),
            (Some(_), None) => format!("is not in {SUMS}"),
            (None, _) => "is missing".into(),
        };
        verified.problems.push(format!("{} {problem}", shown(name)));
    }
    for name in found.keys().filter(|name| name.ends_with(&format!("/{MANIFEST}"))) {
        let dir = name.trim_end_matches(MANIFEST);
        let problem = match Manifest::parse(text(name)?.as_bytes()) {
            Err(what) => Some(what),
            Ok(manifest) => {
                let is = |file: &str, sum: &str| {
                    found.get(format!("{dir}{file}").as_str()).is_some_and(|found| found == sum)
                };
                let key = sha256_hex(manifest.experiment.as_bytes());
                let altered = |(file, content): (&String, &Content)| {
                    (!is(file, &content.sha256)).then(|| format!("does not match {}", shown(file)))
                };
                match manifest.key == key && is(EXPERIMENT, &key) {
                    false => Some(format!("belongs to another {EXPERIMENT}")),
                    true => manifest.outputs.iter().find_map(altered),
                }
            }
        };
        match problem {
            Some(problem) => verified.problems.push(format!("{} {problem}", shown(name))),
            None => verified.results += 1,
        }
    }
    Ok(())
}
