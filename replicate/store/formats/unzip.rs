//! Streams the files in a zip, stored or deflated. The reader bounds the cost of each file, and
//! nothing is written to the disk.

use std::io::{self, Cursor, ErrorKind, Read, Seek, SeekFrom, Take};

use flate2::Crc;
use flate2::read::DeflateDecoder;
use zip::{CompressionMethod, ZipArchive};

use super::Fault;
use crate::error::shown;

const LINK: &str = "a symbolic link in place of a file";

/// One file of an archive, as described in the archive's directory.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    /// Length of the content.
    pub bytes: u64,
    start: u64,
    packed: u64,
    packing: Packing,
    crc: u32,
}

#[derive(Clone, Debug)]
enum Packing {
    Stored,
    Deflated,
    /// Not supported; the text says why: "encrypted", "compressed with …, not stored or deflated".
    Other(String),
    /// A symbolic link, whose content is its target.
    Link,
}

/// Lists the files of an archive, without its directories, in the archive's order. No two of them
/// have the same name or share bytes. A file that cannot be unpacked is an error only when it is
/// opened.
pub fn entries<R: Read + Seek>(archive: R) -> Result<Vec<Entry>, Fault> {
    let wrong = |error: &zip::result::ZipError, what: &str| Fault::of(error, || format!("{what}: {error}"));
    let mut zip =
        ZipArchive::new(archive).map_err(|error| wrong(&error, "is cut off or is not a zip file"))?;
    // The archive of the crate has only one file of each name.
    if zip.has_duplicate_names() {
        return Err("has two files of one name".into());
    }
    let unreadable = |error| wrong(&error, "has an unreadable part");
    // Overlapping files could take much longer to read than the archive is long.
    if zip.has_overlapping_files().map_err(unreadable)? {
        return Err("has files that overlap".into());
    }
    let mut entries = Vec::new();
    for i in 0..zip.len() {
        let file = zip.by_index_raw(i).map_err(unreadable)?;
        if file.is_dir() {
            continue;
        }
        let name = file.name().map_err(|error| wrong(&error, "has an unreadable name"))?.into_owned();
        let packing = match file.compression() {
            _ if file.is_symlink() => Packing::Link,
            _ if file.encrypted() => Packing::Other("encrypted".into()),
            CompressionMethod::Stored => Packing::Stored,
            CompressionMethod::DEFLATE => Packing::Deflated,
            other => Packing::Other(format!("compressed with {other}, not stored or deflated")),
        };
        let Some(start) = file.data_start() else {
            return Err(format!("holds {}, which has no content", shown(&name)).into());
        };
        let (bytes, packed, crc) = (file.size(), file.compressed_size(), file.crc32());
        entries.push(Entry { name, bytes, start, packed, packing, crc });
    }
    Ok(entries)
}

impl Entry {
    /// Describes the packing if it is not supported.
    pub fn unread(&self) -> Option<&str> {
        match &self.packing {
            Packing::Other(how) => Some(how),
            Packing::Link => Some(LINK),
            Packing::Deflated | Packing::Stored => None,
        }
    }

    /// True for a symbolic link, which is not followed.
    pub fn is_link(&self) -> bool {
        matches!(self.packing, Packing::Link)
    }

    /// Opens the content; `archive` must be the one that the entry is from.
    pub fn open<R: Read + Seek>(&self, mut archive: R) -> io::Result<Content<R>> {
        archive.seek(SeekFrom::Start(self.start))?;
        let packed = archive.take(self.packed);
        let packed = match &self.packing {
            Packing::Deflated => Packed::Deflated(DeflateDecoder::new(packed)),
            Packing::Stored => Packed::Stored(packed),
            Packing::Other(how) => return Err(io::Error::new(ErrorKind::Unsupported, how.as_str())),
            Packing::Link => return Err(io::Error::new(ErrorKind::Unsupported, LINK)),
        };
        Ok(Content { packed, left: self.bytes, crc: Crc::new(), expected: self.crc })
    }

    /// Returns the content as a slice of the archive after verifying its length and checksum;
    /// `None` if it is compressed.
    pub fn stored<'a>(&self, archive: &'a [u8]) -> io::Result<Option<&'a [u8]>> {
        if matches!(self.packing, Packing::Deflated) {
            return Ok(None);
        }
        io::copy(&mut self.open(Cursor::new(archive))?, &mut io::sink())?;
        // An empty file may claim to begin after the archive's end.
        let content = archive.get(self.start as usize..).and_then(|rest| rest.get(..self.bytes as usize));
        Ok(Some(content.unwrap_or_default()))
    }
}

/// Content of an entry. Reading fails at the end unless length and checksum match the archive's
/// directory.
pub struct Content<R> {
    packed: Packed<R>,
    left: u64,
    crc: Crc,
    expected: u32,
}

enum Packed<R> {
    Stored(Take<R>),
    Deflated(DeflateDecoder<Take<R>>),
}

impl<R: Read> Read for Packed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Packed::Stored(packed) => packed.read(buffer),
            Packed::Deflated(packed) => packed.read(buffer),
        }
    }
}

impl<R: Read> Read for Content<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let read = self.packed.read(buffer)?;
        let damaged = |what| Err(io::Error::new(ErrorKind::InvalidData, what));
        match self.left.checked_sub(read as u64) {
            None => return damaged("longer than the archive says"),
            Some(1..) if read == 0 => return damaged("cut off"),
            Some(left) => self.left = left,
        }
        self.crc.update(&buffer[..read]);
        if read == 0 && self.crc.sum() != self.expected {
            return damaged("its checksum differs");
        }
        Ok(read)
    }
}
