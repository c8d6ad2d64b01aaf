//! Where the images are: what a file is, and which file of a directory is meant.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::authors::Layout;
use super::{Fault, Set, Split, assets, listed, open};
use crate::error::{Error, Result, shown};
use crate::store::formats::foreign;

pub(super) enum Container {
    /// A directory of the authors' files.
    Files(Layout),
    /// A tar of them.
    Archive {
        gzip: bool,
    },
    Parquet,
    Zip,
}

/// The container that `path` is, or holds, and its own path, or those of its shards.
/// In a directory unpacked files come first, then archives, parquet and zip.
pub(super) fn find(set: Set, split: Split, path: &Path) -> Result<(Container, Vec<PathBuf>)> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(metadata) if metadata.is_file() => return Ok((recognise(set, path)?, vec![path.to_path_buf()])),
        Ok(_) => {
            return Err(Fault::new("a file or a directory", "neither").at(set, path));
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Err(Error::Missing {
                path: path.to_path_buf(),
                what: format!("no such file or directory; {set} is expected there"),
                remedy: set.remedy(),
            });
        }
        Err(error) => return Err(Error::io("read", path)(error)),
    }
    for layout in Layout::BOTH {
        for dir in [path.to_path_buf(), path.join(layout.directory(set))] {
            if layout.files(set, split).iter().any(|file| dir.join(file).is_file()) {
                return Ok((Container::Files(layout), vec![dir]));
            }
        }
    }
    if let Some(file) = names(set, split).into_iter().map(|name| path.join(name)).find(|file| file.is_file())
    {
        return Ok((recognise(set, &file)?, vec![file]));
    }
    for dir in ["", "data", hub_directory(set), set.name()] {
        let shards = shards(set, split, &path.join(dir))?;
        if !shards.is_empty() {
            return Ok((Container::Parquet, shards));
        }
    }
    Err(missing(set, split, path))
}

/// The files `SPLIT-00000-of-00002.parquet` and so on of a directory, or those of its
/// directory SPLIT, in order; or all parquet files of a directory in which no name says
/// what it is of, which are taken for training images.
///
/// # Errors
/// `Missing` for a shard that is not there.
fn shards(set: Set, split: Split, dir: &Path) -> Result<Vec<PathBuf>> {
    let names = |dir: &Path| -> Result<Vec<String>> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(Error::io("list", dir)(error)),
        };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| name.ends_with(".parquet") && !name.starts_with('.'));
        names.sort();
        Ok(names)
    };
    // Some writers add a digest to the count.
    let numbers = |name: &str| -> Option<(usize, usize)> {
        let (index, rest) = name.strip_prefix(&format!("{split}-"))?.split_once("-of-")?;
        let count = rest.split(['-', '.']).next()?;
        Some((index.parse().ok()?, count.parse().ok()?))
    };
    let all = names(dir)?;
    let numbered: Vec<(usize, usize, &String)> =
        all.iter().filter_map(|name| numbers(name).map(|(index, count)| (index, count, name))).collect();
    if let Some((_, count, _)) = numbered.first() {
        if let Some(index) = (0..*count).find(|i| !numbered.iter().any(|(index, ..)| index == i)) {
            return Err(Error::Missing {
                path: dir.join(format!("{split}-{index:05}-of-{count:05}.parquet")),
                what: format!("the other shards of {set} are there"),
                remedy: "get it from where they are from, or name one of them to read it alone".into(),
            });
        }
        if numbered.len() != *count {
            let found = format!("{}", numbered.len());
            return Err(Fault::new(format!("{count} shards of {split}"), found).at(set, dir));
        }
        return Ok(numbered.iter().map(|(.., name)| dir.join(name)).collect());
    }
    let below = dir.join(split.to_string());
    let mut files: Vec<PathBuf> = names(&below)?.iter().map(|name| below.join(name)).collect();
    let single = format!("{split}.parquet");
    files.extend(all.contains(&single).then(|| dir.join(single)).filter(|_| files.is_empty()));
    let says = |name: &String| ["train", "test", "val", "-of-"].iter().any(|part| name.contains(part));
    if files.is_empty() && split == Split::Train && !all.iter().any(says) {
        files.extend(all.iter().map(|name| dir.join(name)));
    }
    Ok(files)
}

fn hub_directory(set: Set) -> &'static str {
    match set {
        Set::Cifar10 => "plain_text",
        Set::Cifar100 => "cifar100",
    }
}

/// What a file is, by its first bytes.
fn recognise(set: Set, path: &Path) -> Result<Container> {
    let mut magic = Vec::new();
    open(set, path)?.take(512).read_to_end(&mut magic).map_err(Error::io("read", path))?;
    match magic.as_slice() {
        [0x1f, 0x8b, ..] => Ok(Container::Archive { gzip: true }),
        [b'P', b'A', b'R', b'1', ..] => Ok(Container::Parquet),
        [b'P', b'K', 3, 4, ..] => Ok(Container::Zip),
        start if is_tar(start) => Ok(Container::Archive { gzip: false }),
        start => {
            let expected =
                "a .tar.gz archive, a parquet file or a zip (unpacked files: name their directory)";
            let found = match foreign(start) {
                Some(what) => format!("a file that is {what}"),
                None => format!("a file that begins with {}", start[..start.len().min(4)].escape_ascii()),
            };
            Err(Fault::new(expected, found).at(set, path))
        }
    }
}

/// Whether a file begins with the header of a tar's member: its sum, in octal digits, is
/// that of its bytes with blanks in the place of the sum.
fn is_tar(start: &[u8]) -> bool {
    let (Some(sum), 512) = (start.get(148..156), start.len()) else { return false };
    let digits = String::from_utf8_lossy(sum);
    let blanks = 8 * u32::from(b' ');
    let bytes = start.iter().map(|byte| u32::from(*byte)).sum::<u32>() + blanks
        - sum.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    u32::from_str_radix(digits.trim_matches(['\0', ' ']), 8) == Ok(bytes)
}

/// Names in a directory: the authors', the hub's and EDM's, and those of
/// `fetch`, on a mirror and in a store.
fn names(set: Set, split: Split) -> Vec<String> {
    let n = set.classes();
    let parquet = format!("{split}-00000-of-00001.parquet");

    let mut names: Vec<String> = Layout::BOTH.map(|layout| layout.archive(set).to_string()).into();
    names.extend([format!("{}/{parquet}", hub_directory(set)), parquet]);
    if split == Split::Train {
        names.push(format!("cifar{n}-32x32.zip"));
    }
    for asset in assets(set, split) {
        names.push(asset.id.to_string());
        names.extend(asset.sha256().map(String::from));
    }
    names
}

fn missing(set: Set, split: Split, dir: &Path) -> Error {
    let mut held: Vec<String> = match fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|entry| shown(&entry.file_name().to_string_lossy())).collect(),
        Err(error) => return Error::io("read", dir)(error),
    };
    held.sort();
    Error::Missing {
        path: dir.join(&Layout::Binary.files(set, split)[0]),
        what: format!(
            "{set} needs it, or the python files, an archive, a parquet file or EDM's zip under its official \
             name; the directory holds {}",
            listed(&held)
        ),
        remedy: set.remedy(),
    }
}
