//! Where the images are: what a file is, and which file of a directory is meant.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::authors::Layout;
use super::{Fault, Set, Split, assets, listed, open};
use crate::error::{Error, Result};

pub(super) enum Container {
    /// A directory of the authors' files.
    Files(Layout),
    /// A `.tar.gz` of them.
    Archive,
    Parquet,
    Zip,
}

/// The container that `path` is, or holds, and its own path. In a directory
/// unpacked files come first, then archives, parquet and zip.
pub(super) fn find(set: Set, split: Split, path: &Path) -> Result<(Container, PathBuf)> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(metadata) if metadata.is_file() => return Ok((recognise(set, path)?, path.to_path_buf())),
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
                return Ok((Container::Files(layout), dir));
            }
        }
    }
    match names(set, split).into_iter().map(|name| path.join(name)).find(|file| file.is_file()) {
        Some(file) => Ok((recognise(set, &file)?, file)),
        None => Err(missing(set, split, path)),
    }
}

/// What a file is, by its first bytes.
fn recognise(set: Set, path: &Path) -> Result<Container> {
    let mut magic = Vec::new();
    open(set, path)?.take(4).read_to_end(&mut magic).map_err(Error::io("read", path))?;
    match magic.as_slice() {
        [0x1f, 0x8b, ..] => Ok(Container::Archive),
        b"PAR1" => Ok(Container::Parquet),
        b"PK\x03\x04" => Ok(Container::Zip),
        _ => {
            let expected =
                "a .tar.gz archive, a parquet file or a zip (unpacked files: name their directory)";
            Err(Fault::new(expected, format!("a file that begins with {}", magic.escape_ascii()))
                .at(set, path))
        }
    }
}

/// Names in a directory: the authors', the hub's and EDM's, and those of
/// `fetch`, on a mirror and in a store.
fn names(set: Set, split: Split) -> Vec<String> {
    let n = set.classes();
    let hub_directory = match set {
        Set::Cifar10 => "plain_text",
        Set::Cifar100 => "cifar100",
    };
    let parquet = format!("{split}-00000-of-00001.parquet");

    let mut names: Vec<String> = Layout::BOTH.map(|layout| layout.archive(set).to_string()).into();
    names.extend([format!("{hub_directory}/{parquet}"), parquet]);
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
        Ok(entries) => entries.flatten().map(|entry| entry.file_name().to_string_lossy().into()).collect(),
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
