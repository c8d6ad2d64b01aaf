//! Unpacks the pages of a parquet column, with a bound for each page and for the column. The parquet
//! crate would allocate as much memory as a page claims to need.

use std::io::{self, Read};

use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::serialized_reader::SerializedPageReader;

use super::headers::Checked;

/// Most bytes of an unpacked page; usual writers end a page at 1 MB.
const MOST: u64 = 1 << 26;

pub(super) struct Pages {
    /// Returns the pages as they are in the file.
    pub packed: SerializedPageReader<Checked>,
    pub codec: Compression,
    /// True if there are repetition levels, and if there are definition levels.
    pub levels: [bool; 2],
    /// Remaining bytes that may be unpacked.
    pub left: u64,
}

impl Pages {
    fn unpack(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        let most = self.left.min(MOST);
        let unpacked = unpack(self.codec, bytes, most)?;
        match self.left.checked_sub(unpacked.len() as u64) {
            Some(left) if unpacked.len() as u64 <= most => self.left = left,
            _ => return Err(ParquetError::General(format!("a page of more than {most} bytes"))),
        }
        Ok(unpacked)
    }

    /// Checks that the counts of a page are possible, because the crate allocates memory for them.
    fn check(&self, page: &Page) -> Result<()> {
        let buffer = page.buffer();
        let counted = match (page, page.encoding()) {
            // Each value takes at least four bytes.
            (Page::DictionaryPage { num_values, .. }, _) => *num_values as u64 <= buffer.len() as u64 / 4,
            (_, Encoding::DELTA_LENGTH_BYTE_ARRAY | Encoding::DELTA_BYTE_ARRAY) => {
                let values = self.values(page).ok_or_else(|| ParquetError::General("a short page".into()))?;
                // The header has the size of a block, its parts, and the number of values.
                delta_count(values).is_some_and(|count| count <= page.num_values() as u64)
            }
            _ => true,
        };
        match counted {
            true => Ok(()),
            false => Err(ParquetError::General("a page of more values than bytes".into())),
        }
    }

    /// Returns the bytes after the levels of a data page.
    fn values<'a>(&self, page: &'a Page) -> Option<&'a [u8]> {
        let buffer = &page.buffer()[..];
        if let Page::DataPageV2 { def_levels_byte_len, rep_levels_byte_len, .. } = page {
            return buffer.get((*def_levels_byte_len as usize).checked_add(*rep_levels_byte_len as usize)?..);
        }
        self.levels.iter().filter(|there| **there).try_fold(buffer, |rest, _| {
            let (length, rest) = rest.split_first_chunk()?;
            rest.get(u32::from_le_bytes(*length) as usize..)
        })
    }
}

/// Reads the third number of a delta encoding's header; numbers have seven bits in each byte.
fn delta_count(bytes: &[u8]) -> Option<u64> {
    let mut bytes = bytes.iter();
    let mut number = || {
        let mut number = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = *bytes.next()?;
            number |= ((byte & 0x7f) as u64) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    };
    number()?;
    number()?;
    number()
}

/// Unpacks `bytes`. A result of more than `most` bytes may be cut off or refused.
fn unpack(codec: Compression, bytes: &[u8], most: u64) -> Result<Vec<u8>> {
    let whole = |reader: &mut dyn Read| -> io::Result<Vec<u8>> {
        let mut unpacked = Vec::new();
        reader.take(most + 1).read_to_end(&mut unpacked)?;
        Ok(unpacked)
    };
    let damaged = |error: io::Error| ParquetError::General(error.to_string());
    let broken = |error: &dyn std::fmt::Display| ParquetError::General(error.to_string());
    match codec {
        Compression::UNCOMPRESSED => Ok(bytes.to_vec()),
        Compression::SNAPPY => match snap::raw::decompress_len(bytes) {
            Ok(length) if length as u64 > most => {
                Err(ParquetError::General(format!("a page of {length} bytes, not at most {most}")))
            }
            _ => snap::raw::Decoder::new().decompress_vec(bytes).map_err(|error| broken(&error)),
        },
        Compression::GZIP(_) => whole(&mut flate2::read::MultiGzDecoder::new(bytes)).map_err(damaged),
        Compression::BROTLI(_) => {
            whole(&mut brotli_decompressor::Decompressor::new(bytes, 1 << 12)).map_err(damaged)
        }
        Compression::ZSTD(_) => match ruzstd::decoding::StreamingDecoder::new(bytes) {
            Ok(mut reader) => whole(&mut reader).map_err(damaged),
            Err(error) => Err(broken(&error)),
        },
        Compression::LZ4_RAW => lz4_block(bytes, most),
        // This name stands for three formats: Hadoop's, frames, and blocks.
        Compression::LZ4 => match lz4_hadoop(bytes, most) {
            Some(unpacked) => Ok(unpacked),
            None if bytes.starts_with(b"\x04\x22\x4d\x18") => {
                whole(&mut lz4_flex::frame::FrameDecoder::new(bytes)).map_err(damaged)
            }
            None => lz4_block(bytes, most),
        },
        Compression::LZO => Err(ParquetError::NYI(codec.to_string())),
    }
}

/// Unpacks an LZ4 block, which does not state its length; a byte unpacks to at most 255.
fn lz4_block(bytes: &[u8], most: u64) -> Result<Vec<u8>> {
    let mut unpacked = vec![0; most.min(255 * bytes.len() as u64) as usize];
    let length = lz4_flex::block::decompress_into(bytes, &mut unpacked);
    unpacked.truncate(length.map_err(|error| ParquetError::General(error.to_string()))?);
    unpacked.shrink_to_fit();
    Ok(unpacked)
}

/// Unpacks Hadoop's format: blocks after their unpacked and packed lengths. `None` for another format.
fn lz4_hadoop(mut bytes: &[u8], most: u64) -> Option<Vec<u8>> {
    let mut unpacked = Vec::new();
    while !bytes.is_empty() {
        let (sizes, rest) = bytes.split_first_chunk::<8>()?;
        let [size, packed] =
            [0, 4].map(|at| u32::from_be_bytes(sizes[at..at + 4].try_into().expect("4 bytes")));
        let block = rest.get(..packed as usize)?;
        let block = lz4_block(block, most.checked_sub(unpacked.len() as u64)?).ok()?;
        unpacked.extend((block.len() == size as usize).then_some(block)?);
        bytes = &rest[packed as usize..];
    }
    Some(unpacked)
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Result<Page>> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let Some(mut page) = self.packed.get_next_page()? else { return Ok(None) };
        match &mut page {
            Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => *buf = self.unpack(buf)?.into(),
            // The levels of this version are not packed.
            Page::DataPageV2 {
                buf,
                def_levels_byte_len: def,
                rep_levels_byte_len: rep,
                is_compressed,
                ..
            } => {
                let levels = (*def as usize).checked_add(*rep as usize);
                let split = levels.and_then(|levels| buf.split_at_checked(levels));
                let (levels, values) = split.ok_or_else(|| ParquetError::General("a short page".into()))?;
                if *is_compressed && !values.is_empty() {
                    *buf = [levels, &self.unpack(values)?].concat().into();
                }
            }
        }
        self.check(&page)?;
        Ok(Some(page))
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.packed.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.packed.skip_next_page()
    }
}
