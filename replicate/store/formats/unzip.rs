//! The files in a zip, stored or deflated, as streams: what one may cost is
//! bounded by what its reader asks for. Nothing is written to the disk.

use std::io::{self, Cursor, ErrorKind, Read, Seek, SeekFrom, Take};

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

/// The files of an archive, without its directories, in the archive's order. No
/// two of them have the same name, or bytes in common. The error says what is wrong
/// with the archive.
pub fn entries<R: Read + Seek>(archive: R) -> Result<Vec<Entry>, String> {
    let mut zip = ZipArchive::new(archive).map_err(|error| format!("is not a zip file: {error}"))?;
    if zip.has_duplicate_names() {
        return Err("has two files of one name".into());
    }
    let unreadable = |error| format!("has an unreadable part: {error}");
    // They could take much longer to read than the archive is long.
    if zip.has_overlapping_files().map_err(unreadable)? {
        return Err("has files that overlap".into());
    }
    let mut entries = Vec::new();
    for i in 0..zip.len() {
        let file = zip.by_index_raw(i).map_err(unreadable)?;
        if file.is_dir() {
            continue;
        }
        let name = file.name().map_err(|error| format!("has an unreadable name: {error}"))?.into_owned();
        let holds = |what: String| {
            let shown: String = name.escape_debug().take(100).collect();
            format!("holds {shown}, which {what}")
        };
        let deflated = match file.compression() {
            _ if file.encrypted() => return Err(holds("is encrypted".into())),
            CompressionMethod::Stored => false,
            CompressionMethod::DEFLATE => true,
            other => return Err(holds(format!("is compressed with {other}"))),
        };
        let start = file.data_start().ok_or_else(|| holds("has no content".into()))?;
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

    /// The content as a part of the archive, once its length and checksum were
    /// compared; `None` where it is compressed.
    pub fn stored<'a>(&self, archive: &'a [u8]) -> io::Result<Option<&'a [u8]>> {
        if self.deflated {
            return Ok(None);
        }
        io::copy(&mut self.open(Cursor::new(archive))?, &mut io::sink())?;
        // An empty file may be said to lie behind the archive's end.
        let content = archive.get(self.start as usize..).and_then(|rest| rest.get(..self.bytes as usize));
        Ok(Some(content.unwrap_or_default()))
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
