//! Checks the headers of a parquet file before the parquet crate reads them. The crate skips as many elements
//! of an unknown list as the list claims, beyond the end of the file as well: a damaged file of 4 kB took
//! minutes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::Result;
use parquet::file::reader::{ChunkReader, Length};

/// Most structures within each other; the crate has the same limit for what it skips.
const MOST_DEEP: usize = 64;

/// A file whose page headers are checked.
pub(super) struct Checked(pub Arc<File>);

impl Length for Checked {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for Checked {
    type T = BufReader<File>;

    /// Opens the file at `start`, where the crate expects a page header.
    fn get_read(&self, start: u64) -> Result<BufReader<File>> {
        check(self.0.get_read(start)?, self.len().saturating_sub(start))?;
        self.0.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.0.get_bytes(start, length)
    }
}

/// Walks through a structure of Thrift's compact protocol. Fails if it goes on beyond `length` bytes, or if its
/// lists have more elements in total than that.
pub(super) fn check(reader: impl BufRead, length: u64) -> io::Result<()> {
    Walk { reader: reader.take(length), left: length }.structure(MOST_DEEP)
}

struct Walk<R> {
    reader: io::Take<R>,
    /// Elements that may still come.
    left: u64,
}

impl<R: BufRead> Walk<R> {
    fn structure(&mut self, deep: usize) -> io::Result<()> {
        loop {
            let field = self.byte()?;
            if field == 0 {
                return Ok(());
            }
            if field >> 4 == 0 {
                self.number()?;
            }
            self.value(field & 15, deep)?;
        }
    }

    fn value(&mut self, kind: u8, deep: usize) -> io::Result<()> {
        let deep = deep.checked_sub(1).ok_or_else(|| damaged("structures within structures"))?;
        match kind {
            // The type of a Boolean field is its value. In a list, the crate reads no byte for it either.
            1 | 2 => Ok(()),
            3 => self.skip(1),
            4..=6 => self.number().map(drop),
            7 => self.skip(8),
            8 => {
                let length = self.number()?;
                self.skip(length)
            }
            9 | 10 => {
                let header = self.byte()?;
                let count = if header >> 4 == 15 { self.number()? } else { (header >> 4) as u64 };
                self.elements(count, &[header & 15], deep)
            }
            11 => match self.number()? {
                0 => Ok(()),
                count => {
                    let kinds = self.byte()?;
                    self.elements(count, &[kinds >> 4, kinds & 15], deep)
                }
            },
            12 => self.structure(deep),
            13 => self.skip(16),
            _ => Err(damaged("an unknown type")),
        }
    }

    fn elements(&mut self, count: u64, kinds: &[u8], deep: usize) -> io::Result<()> {
        let left = self.left.checked_sub(count);
        self.left = left.ok_or_else(|| damaged("a list of more elements than bytes"))?;
        for _ in 0..count {
            kinds.iter().try_for_each(|kind| self.value(*kind, deep))?;
        }
        Ok(())
    }

    /// Reads a number of seven bits in each byte.
    fn number(&mut self) -> io::Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= ((byte & 127) as u64) << shift;
            if byte < 128 {
                return Ok(number);
            }
        }
        Err(damaged("a number of more than 64 bits"))
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.reader.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        match io::copy(&mut self.reader.by_ref().take(bytes), &mut io::sink())? {
            skipped if skipped == bytes => Ok(()),
            _ => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}
