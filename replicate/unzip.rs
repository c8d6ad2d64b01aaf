//! The files in a zip, stored or deflated, as streams: what one may cost is
//! bounded by what its reader asks for. Nothing is written to the disk.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Take};

use flate2::Crc;
use flate2::read::DeflateDecoder;
use zip::{CompressionMethod, ZipArchive};

/// One file of an archive, as the archive's directory describes it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    /// Length of the content.
    pub bytes: u64,
    start: u64,
    packed: u64,
    deflated: bool,
    crc: u32,
}

/// The files of an archive, without its directories, in the archive's order. The
/// error says what is wrong with the archive.
pub fn entries<R: Read + Seek>(archive: R) -> Result<Vec<Entry>, String> {
    let mut zip = ZipArchive::new(archive).map_err(|error| format!("is not a zip file: {error}"))?;
    if zip.has_duplicate_names() {
        return Err("has two files of one name".into());
    }
    let mut entries = Vec::new();
    for i in 0..zip.len() {
        let file = zip.by_index_raw(i).map_err(|error| format!("has an unreadable part: {error}"))?;
        if file.is_dir() {
            continue;
        }
        let name = file.name().map_err(|error| format!("has an unreadable name: {error}"))?.into_owned();
        let deflated = match file.compression() {
            _ if file.encrypted() => return Err(format!("holds {name}, which is encrypted")),
            CompressionMethod::Stored => false,
            CompressionMethod::DEFLATE => true,
            other => return Err(format!("holds {name}, which is compressed with {other}")),
        };
        let start = file.data_start().ok_or_else(|| format!("has no content for {name}"))?;
        let (bytes, packed, crc) = (file.size(), file.compressed_size(), file.crc32());
        entries.push(Entry { name, bytes, start, packed, deflated, crc });
    }
    Ok(entries)
}

impl Entry {
    /// The content, from the archive that the entry is of.
    pub fn open<R: Read + Seek>(&self, mut archive: R) -> io::Result<Content<R>> {
        archive.seek(SeekFrom::Start(self.start))?;
        let packed = archive.take(self.packed);
        let packed = match self.deflated {
            true => Packed::Deflated(DeflateDecoder::new(packed)),
            false => Packed::Stored(packed),
        };
        Ok(Content { packed, left: self.bytes, crc: Crc::new(), expected: self.crc })
    }
}

/// Reading ends with an error unless length and checksum are those of the
/// archive's directory.
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
