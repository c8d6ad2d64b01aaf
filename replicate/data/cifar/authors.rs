//! The authors' files, in a directory or in a `.tar.gz`: five training batches and one test batch
//! (CIFAR-10), or one file of each (CIFAR-100), as binary records or as pickled NumPy arrays.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};
use std::path::Path;

use flate2::bufread::GzDecoder;

use super::{Fault, Gathered, IMAGE_LEN, Set, Split, binary, listed, open, place, python, read_whole, shown};
use crate::error::{self, Error};
use crate::store::formats::{foreign, is_hidden};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Binary,
    Python,
}

/// Most bytes of an unpacked archive; the largest has 186 MB.
const MOST_UNPACKED: u64 = 1 << 28;

impl Layout {
    pub const BOTH: [Layout; 2] = [Layout::Binary, Layout::Python];

    /// Returns the directory that an archive unpacks to.
    pub fn directory(self, set: Set) -> &'static str {
        match (self, set) {
            (Layout::Binary, Set::Cifar10) => "cifar-10-batches-bin",
            (Layout::Binary, Set::Cifar100) => "cifar-100-binary",
            (Layout::Python, Set::Cifar10) => "cifar-10-batches-py",
            (Layout::Python, Set::Cifar100) => "cifar-100-python",
        }
    }

    /// Returns the name of the authors' archive.
    pub fn archive(self, set: Set) -> &'static str {
        match (self, set) {
            (Layout::Binary, Set::Cifar10) => "cifar-10-binary.tar.gz",
            (Layout::Binary, Set::Cifar100) => "cifar-100-binary.tar.gz",
            (Layout::Python, Set::Cifar10) => "cifar-10-python.tar.gz",
            (Layout::Python, Set::Cifar100) => "cifar-100-python.tar.gz",
        }
    }

    /// Returns the names of a split's files.
    pub fn files(self, set: Set, split: Split) -> Vec<String> {
        let names: &[&str] = match (set, split) {
            (Set::Cifar10, Split::Train) => {
                &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"]
            }
            (Set::Cifar10, Split::Test) => &["test_batch"],
            (Set::Cifar100, Split::Train) => &["train"],
            (Set::Cifar100, Split::Test) => &["test"],
        };
        let extension = match self {
            Layout::Binary => ".bin",
            Layout::Python => "",
        };
        names.iter().map(|name| format!("{name}{extension}")).collect()
    }

    /// Reads every file of the split in `dir`.
    pub fn read_files(self, dir: &Path, gathered: &mut Gathered) -> error::Result<()> {
        let (set, split) = (gathered.set, gathered.split);
        for name in self.files(set, split) {
            let path = dir.join(name);
            let mut file = open(set, &path)?;
            let length = file.metadata().map_err(Error::io("read", &path))?.len();
            self.read(&mut file, length, gathered).map_err(|fault| fault.at(set, &path))?;
        }
        Ok(())
    }

    /// Reads one file of the split, of `length` bytes.
    fn read(self, reader: &mut dyn Read, length: u64, gathered: &mut Gathered) -> Result<(), Fault> {
        let most = gathered.split.full() / self.files(gathered.set, gathered.split).len();
        match self {
            Layout::Binary => {
                let bytes = read_whole(reader, length, most * binary::record_len(gathered.set))?;
                binary::read(&bytes, gathered)
            }
            // A record's file name and labels take up to 50 bytes.
            Layout::Python => python::read(&read_whole(reader, length, most * (IMAGE_LEN + 1024))?, gathered),
        }
    }
}

/// Reads every file of the split in a `.tar`, with or without gzip. It reads the whole archive, which
/// verifies gzip's checksum, and writes nothing.
pub(super) fn read_archive(file: File, gzip: bool, gathered: &mut Gathered) -> Result<(), Fault> {
    let file = BufReader::with_capacity(1 << 16, file);
    let unpacked: Box<dyn Read> = match gzip {
        true => Box::new(Members { decoder: Some(GzDecoder::new(file)) }),
        false => Box::new(file),
    };
    let mut unpacked = unpacked.take(MOST_UNPACKED);
    let mut start = Vec::new();
    unpacked.by_ref().take(512).read_to_end(&mut start).map_err(damaged)?;
    if !start.is_empty() && !place::is_tar(&start) && start.iter().any(|byte| *byte != 0) {
        // Damage may have made it unlike one.
        io::copy(&mut unpacked, &mut io::sink()).map_err(damaged)?;
        let what = foreign(&start).unwrap_or("no tar archive");
        return Err(Fault::new("a .tar.gz archive", format!("a gzip file whose content is {what}")).apart());
    }
    let mut archive = tar::Archive::new(Cursor::new(start).chain(unpacked));
    let read = read_members(&mut archive, gathered);
    let mut rest = archive.into_inner();
    let read = read.and_then(|()| io::copy(&mut rest, &mut io::sink()).map(drop).map_err(damaged));
    match rest.into_inner().1.limit() {
        0 => Err(Fault::new(format!("an archive of less than {MOST_UNPACKED} bytes unpacked"), "more")),
        _ => read,
    }
}

/// Unpacks all members of a gzip file; parallel packers and `cat` write several. Zeros after the last
/// one are padding.
struct Members<R> {
    /// `None` at the end.
    decoder: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.decoder {
            let read = decoder.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let mut rest = self.decoder.take().expect("there above").into_inner();
            loop {
                let bytes = rest.fill_buf()?;
                match bytes.iter().position(|byte| *byte != 0) {
                    _ if bytes.is_empty() => return Ok(0),
                    None => {
                        let zeros = bytes.len();
                        rest.consume(zeros);
                    }
                    Some(0) if bytes[0] == 0x1f => break,
                    Some(_) => {
                        let what = "bytes behind the end of the gzip file";
                        return Err(io::Error::new(ErrorKind::InvalidData, what));
                    }
                }
            }
            self.decoder = Some(GzDecoder::new(rest));
        }
        Ok(0)
    }
}

/// Most bytes of a long name.
const LONGEST_NAME: u64 = 1 << 16;

fn read_members<R: Read>(archive: &mut tar::Archive<R>, gathered: &mut Gathered) -> Result<(), Fault> {
    let wanted = Layout::BOTH.map(|layout| layout.files(gathered.set, gathered.split));
    let (mut layout, mut read, mut members, mut links) = (None, Vec::new(), Vec::new(), Vec::new());
    let mut long_name: Option<Vec<u8>> = None;
    // Reads raw entries, because the crate does not bound the length of long names.
    for entry in archive.entries().map_err(damaged)?.raw(true) {
        // Before a file of the set, the damage may be another set's.
        let of_no_set =
            |fault: Fault| Fault { apart: layout.is_none() && fault.unreadable.is_none(), ..fault };
        let mut entry = entry.map_err(|error| of_no_set(damaged(error)))?;
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            let mut bytes = Vec::new();
            entry.by_ref().take(LONGEST_NAME).read_to_end(&mut bytes).map_err(damaged)?;
            long_name = match kind.is_gnu_longname() {
                true => Some(bytes.into_iter().take_while(|byte| *byte != 0).collect()),
                false => {
                    let path = |field: &tar::PaxExtension| field.key_bytes() == b"path";
                    let mut fields = tar::PaxExtensions::new(&bytes).flatten();
                    fields.find(path).map(|field| field.value_bytes().to_vec())
                }
            };
            continue;
        }
        let path = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
        let path = String::from_utf8_lossy(&path).into_owned();
        let is_link = kind.is_symlink() || kind.is_hard_link();
        if !kind.is_file() && !is_link {
            continue;
        }
        if is_hidden(&path) {
            gathered.left_out.hidden(&path);
            continue;
        }
        let name = path.rsplit('/').next().unwrap_or_default().to_string();
        if is_link {
            if links.len() < MOST_MEMBERS && wanted.iter().any(|files| files.contains(&name)) {
                let target = entry.link_name_bytes().unwrap_or_default();
                links.push((
                    name,
                    format!("{}, a link to {}", shown(&path), shown(&String::from_utf8_lossy(&target))),
                ));
            }
            continue;
        }
        if members.len() < MOST_MEMBERS {
            members.push(shown(&path));
        }
        let ours = Layout::BOTH.into_iter().zip(&wanted).find(|(_, files)| files.contains(&name));
        let Some((this, _)) = ours.filter(|(this, _)| layout.is_none_or(|layout| layout == *this)) else {
            continue;
        };
        if read.contains(&name) {
            return Err(Fault::new(format!("one {name} in the archive"), "two"));
        }
        let length = entry.size();
        this.read(&mut entry, length, gathered).map_err(|fault| fault.within(shown(&path)))?;
        layout = Some(this);
        read.push(name);
    }
    let [binary, python] = &wanted;
    let expected = match layout {
        Some(Layout::Binary) => listed(binary),
        Some(Layout::Python) => listed(python),
        None => format!("{} (or without .bin)", listed(binary)),
    };
    if layout.is_some() && read.len() == binary.len() {
        return Ok(());
    }
    links.retain(|(name, _)| !read.contains(name));
    if let Some((_, link)) = links.first() {
        let packed =
            format!("an archive with {expected} as files (tar -h --hard-dereference packs links as files)");
        return Err(Fault::new(packed, link.clone()));
    }
    let fault = Fault::new(format!("an archive with {expected}"), listed(&members));
    Err(if layout.is_none() { fault.apart() } else { fault })
}

/// Most names that are kept for a message; the authors' archives have 8.
const MOST_MEMBERS: usize = 100;

fn damaged(error: io::Error) -> Fault {
    Fault::damage("a whole .tar.gz archive", &error)
}
