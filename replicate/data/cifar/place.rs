//! Finds the files of images: recognises a file's container, and selects files of a directory.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::authors::Layout;
use super::{Fault, Refusal, Set, Split, assets, edm, listed, open};
use crate::error::{Error, Result, shown};
use crate::store::formats::{LeftOut, called, is_hidden};

pub(super) enum Container {
    /// A directory of the authors' files.
    Files(Layout),
    /// A tar of them.
    Archive {
        gzip: bool,
    },
    Parquet,
    Zip,
    /// The directory that EDM's zip unpacks to.
    Folder,
}

/// Returns the container at `path`, or in the directory `path`, its files, and what the directory has
/// beside them. In a directory, unpacked files come first, then archives, parquet and zip.
pub(super) fn find(
    set: Set,
    split: Split,
    path: &Path,
) -> std::result::Result<(Container, Vec<PathBuf>, LeftOut), Refusal> {
    let mut left_out = LeftOut::default();
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(metadata) if metadata.is_file() => {
            return Ok((recognise(set, path)?, vec![path.to_path_buf()], left_out));
        }
        Ok(_) => {
            return Err(Fault::new("a file or a directory", "neither").at(set, path).into());
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            let what = format!("no such file or directory; {set} is expected there");
            return Err(Error::missing(path, what, set.remedy()).into());
        }
        Err(error) => return Err(Error::io("read", path)(error).into()),
    }
    for layout in Layout::BOTH {
        for dir in [path.to_path_buf(), path.join(layout.directory(set))] {
            if layout.files(set, split).iter().any(|file| names_file(&dir.join(file))) {
                hidden(path, &dir, &mut left_out);
                return Ok((Container::Files(layout), vec![dir], left_out));
            }
        }
    }
    if names_file(&path.join(edm::LABELS)) {
        return Ok((Container::Folder, vec![path.to_path_buf()], left_out));
    }
    if let Some(file) =
        names(set, split).into_iter().map(|name| path.join(name)).find(|file| names_file(file))
    {
        hidden(path, file.parent().unwrap_or(path), &mut left_out);
        // By its name it is the set, whatever is in it.
        return Ok((recognise(set, &file).map_err(Error::from)?, vec![file], left_out));
    }
    for dir in ["", "data", hub_directory(set), "default", set.name()] {
        let shards = shards(set, split, &path.join(dir), &mut left_out)?;
        if let Some(first) = shards.first() {
            hidden(path, first.parent().unwrap_or(path), &mut left_out);
            return Ok((Container::Parquet, shards, left_out));
        }
    }
    Err(Refusal::Apart(missing(set, split, path)))
}

/// True for a file, or for a link that leads nowhere: a missing file is not another container.
fn names_file(path: &Path) -> bool {
    path.is_file() || path.is_symlink() && !path.exists()
}

/// Counts the hidden names in `dir` and in the directories from `root` to it. Ignores directories that
/// cannot be listed.
fn hidden(root: &Path, dir: &Path, left_out: &mut LeftOut) {
    for dir in dir.ancestors().take_while(|dir| dir.starts_with(root)) {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let names: BTreeSet<OsString> =
            entries.map(|entry| entry.file_name()).filter(|name| is_hidden(name)).collect();
        names.iter().for_each(|name| left_out.hidden(name));
    }
}

/// Lists the visible parquet files of a directory, in order; none if it does not exist.
fn parquet_files(dir: &Path) -> Result<Vec<OsString>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(Error::io("list", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("list", dir))?.file_name();
        let is_parquet =
            Path::new(&name).extension().is_some_and(|kind| kind.eq_ignore_ascii_case("parquet"));
        if is_parquet && !is_hidden(&name) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Parses prefix, index and count of `train-00000-of-00002.parquet`; some writers add a digest to the count.
fn numbers(name: &str) -> Option<(&str, usize, usize)> {
    let (head, rest) = name.split_once("-of-")?;
    let (prefix, index) = head.rsplit_once('-')?;
    Some((prefix, index.parse().ok()?, rest.split(['-', '.']).next()?.parse().ok()?))
}

/// Words that name a split.
const SPLITS: [&str; 6] = ["train", "test", "val", "valid", "validation", "dev"];

/// Returns the splits that a file name contains as words, as in `cifar10-train_0.parquet`.
fn splits(name: &str) -> Vec<&'static str> {
    let words: Vec<String> =
        name.split(|c: char| !c.is_ascii_alphabetic()).map(str::to_ascii_lowercase).collect();
    SPLITS.into_iter().filter(|split| words.iter().any(|word| word == split)).collect()
}

/// True if a file name says that it has the other set, as in `cifar-100_train.parquet`.
fn is_other(set: Set, name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let Some((_, rest)) = name.split_once("cifar") else { return false };
    let digits = rest.trim_start_matches(['-', '_']);
    let digits = &digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len())];
    ["10", "100"].contains(&digits) && digits != set.classes().to_string()
}

/// Returns the files `SPLIT-00000-of-00002.parquet` and so on of a directory, or those of its
/// directory SPLIT, or those that name the split among other words, in order. If no file name of the
/// directory contains a split, all its parquet files are taken for training images.
///
/// # Errors
/// `Missing` for a missing shard.
fn shards(set: Set, split: Split, dir: &Path, left_out: &mut LeftOut) -> Result<Vec<PathBuf>> {
    let split_name = split.to_string();
    // The second is the name of a partition.
    let below = [split_name.clone(), format!("split={split_name}")].map(|name| dir.join(name));
    let below = if below[0].is_dir() { &below[0] } else { &below[1] };
    let (all, inner) = (parquet_files(dir)?, parquet_files(below)?);
    let says = |name: &OsString, parts: &[&str]| {
        let name = name.to_string_lossy();
        parts.iter().any(|part| name.contains(part))
    };
    let is_numbered =
        |name: &&OsString| numbers(&name.to_string_lossy()).is_some_and(|(prefix, ..)| prefix == split_name);
    let single = OsString::from(format!("{split}.parquet"));
    let numbered: Vec<&OsString> = all.iter().filter(is_numbered).collect();
    let of_set: Vec<&OsString> = all.iter().filter(|name| !is_other(set, &name.to_string_lossy())).collect();
    let is_named = |name: &&OsString| splits(&name.to_string_lossy()) == [split_name.as_str()];
    let named: Vec<&OsString> = of_set.iter().copied().filter(is_named).collect();
    let (place, taken) = if !numbered.is_empty() {
        (dir, numbered)
    } else if !inner.is_empty() {
        (below.as_path(), inner.iter().collect())
    } else if all.contains(&single) {
        (dir, vec![&single])
    } else if !named.is_empty() {
        (dir, named)
    } else if split == Split::Train
        && !of_set.iter().any(|name| says(name, &["train", "test", "val", "-of-"]))
    {
        (dir, of_set)
    } else {
        return Ok(Vec::new());
    };
    complete(set, place, &taken)?;
    let files: BTreeSet<PathBuf> = taken.into_iter().map(|name| place.join(name)).collect();
    let other = if split == Split::Train { "test" } else { "train" };
    let beside =
        |(dir, name): (&Path, &OsString)| Some(dir.join(name)).filter(|_| !says(name, &[other, "val"]));
    let of_dir = all.iter().map(|name| (dir, name));
    let beside = of_dir.chain(inner.iter().map(|name| (below.as_path(), name))).filter_map(beside);
    beside.filter(|file| !files.contains(file)).for_each(|file| {
        left_out.beside(file.strip_prefix(dir).unwrap_or(&file));
    });
    Ok(files.into_iter().collect())
}

/// Fails if the names number shards, and one of these is missing in `dir` or is there twice.
fn complete(set: Set, dir: &Path, names: &[&OsString]) -> Result<()> {
    let names: Vec<_> = names.iter().map(|name| name.to_string_lossy()).collect();
    let numbered: Vec<(&str, usize, usize)> = names.iter().filter_map(|name| numbers(name)).collect();
    let Some((prefix, _, count)) = numbered.first() else { return Ok(()) };
    let indices: BTreeSet<usize> = numbered.iter().map(|(_, index, _)| *index).collect();
    if let Some(index) = (0..*count).find(|index| !indices.contains(index)) {
        return Err(Error::missing(
            dir.join(format!("{prefix}-{index:05}-of-{count:05}.parquet")),
            format!("the other shards of {set} are there"),
            "get it from where they are from, or name one of them to read it alone",
        ));
    }
    match numbered.len() == *count {
        true => Ok(()),
        false => Err(Fault::new(format!("{count} shards {prefix}"), numbered.len().to_string()).at(set, dir)),
    }
}

fn hub_directory(set: Set) -> &'static str {
    match set {
        Set::Cifar10 => "plain_text",
        Set::Cifar100 => "cifar100",
    }
}

/// Recognises a container by its first bytes.
fn recognise(set: Set, path: &Path) -> std::result::Result<Container, Refusal> {
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
            let begins = || format!("a file that begins with {}", start[..start.len().min(4)].escape_ascii());
            let found = called(start).unwrap_or_else(begins);
            Err(Refusal::Apart(Fault::new(expected, found).at(set, path)))
        }
    }
}

/// True if a file begins with the header of a tar member. Its checksum, in octal digits, is the sum of
/// the header's bytes with blanks in place of the checksum.
pub(super) fn is_tar(start: &[u8]) -> bool {
    let (Some(sum), 512) = (start.get(148..156), start.len()) else { return false };
    let digits = String::from_utf8_lossy(sum);
    let blanks = 8 * u32::from(b' ');
    let bytes = start.iter().map(|byte| u32::from(*byte)).sum::<u32>() + blanks
        - sum.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    u32::from_str_radix(digits.trim_matches(['\0', ' ']), 8) == Ok(bytes)
}

/// Returns the file names to look for in a directory: those of the authors, of the hub and of EDM, and
/// those of `fetch` on a mirror and in a store.
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
    let what = format!(
        "{set} needs it, or the python files, an archive, a parquet file or EDM's zip under its official name; \
         the directory holds {}",
        listed(&held)
    );
    Error::missing(dir.join(&Layout::Binary.files(set, split)[0]), what, set.remedy())
}
