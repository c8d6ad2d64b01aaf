//! Checks the headers of a parquet file before the parquet crate reads them. The crate skips as many
//! elements of an unknown list as the list claims, beyond the end of the file as well: a damaged file of
//! 4 kB took minutes. What is left is the description at the end of a file: the crate reads its fields
//! by number, whatever their types are, and can so come upon a list that this check takes for something
//! else. It ends at the end of the description, or after 1.5 s, for a list of Booleans.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::Result;
use parquet::file::reader::{ChunkReader, Length};

/// Most structures within each other; the crate has the same limit for what it skips.
const MOST_DEEP: usize = 64;

/// A field that the crate reads by its number, whatever type the file gives it. With another type, the
/// crate would read other bytes than are checked.
struct Field {
    number: i16,
    kind: u8,
    /// Fields of a structure.
    of: &'static [Field],
}

impl Field {
    const fn integer(number: i16) -> Field {
        Field { number, kind: I32, of: &[] }
    }

    const fn structure(number: i16, of: &'static [Field]) -> Field {
        Field { number, kind: STRUCTURE, of }
    }
}

const I32: u8 = 5;
const STRUCTURE: u8 = 12;
const INTEGERS: &[Field] = &[
    Field::integer(1),
    Field::integer(2),
    Field::integer(3),
    Field::integer(4),
    Field::integer(5),
    Field::integer(6),
];
/// Headers of pages in the format's `parquet.thrift`. The crate skips their statistics.
const PAGE: &[Field] = &[
    Field::integer(1),
    Field::integer(2),
    Field::integer(3),
    Field::integer(4),
    Field::structure(5, INTEGERS.split_at(4).0),
    Field::structure(6, &[]),
    Field::structure(7, INTEGERS.split_at(2).0),
    Field::structure(8, INTEGERS),
];

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
        check(self.0.get_read(start)?, self.len().saturating_sub(start), PAGE)?;
        self.0.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.0.get_bytes(start, length)
    }
}

/// Checks the description at the end of a file, in its last `length` bytes.
pub(super) fn check_description(reader: impl BufRead, length: u64) -> io::Result<()> {
    check(reader, length, &[])
}

/// Walks through a structure of Thrift's compact protocol. Fails if it goes on beyond `length` bytes, if its
/// lists have more elements in total than that, or if one of `known` fields has another type.
fn check(reader: impl BufRead, length: u64, known: &[Field]) -> io::Result<()> {
    Walk { reader: reader.take(length), left: length }.structure(MOST_DEEP, known)
}

struct Walk<R> {
    reader: io::Take<R>,
    /// Elements that may still come.
    left: u64,
}

impl<R: BufRead> Walk<R> {
    fn structure(&mut self, deep: usize, known: &[Field]) -> io::Result<()> {
        let mut number = 0i16;
        loop {
            let field = self.byte()?;
            if field == 0 {
                return Ok(());
            }
            number = match field >> 4 {
                0 => self.field_number()?,
                step => number.checked_add(step.into()).ok_or_else(|| damaged("too many fields"))?,
            };
            let known = known.iter().find(|known| known.number == number);
            if known.is_some_and(|known| known.kind != field & 15) {
                return Err(damaged("a field of another type"));
            }
            self.value(field & 15, deep, known.map_or(&[], |known| known.of))?;
        }
    }

    /// `known` are the fields of a structure.
    fn value(&mut self, kind: u8, deep: usize, known: &[Field]) -> io::Result<()> {
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
            STRUCTURE => self.structure(deep, known),
            13 => self.skip(16),
            _ => Err(damaged("an unknown type")),
        }
    }

    fn elements(&mut self, count: u64, kinds: &[u8], deep: usize) -> io::Result<()> {
        let left = self.left.checked_sub(count);
        self.left = left.ok_or_else(|| damaged("a list of more elements than bytes"))?;
        for _ in 0..count {
            kinds.iter().try_for_each(|kind| self.value(*kind, deep, &[]))?;
        }
        Ok(())
    }

    /// Reads the number of a field, which has 16 bits: the last one is the sign.
    fn field_number(&mut self) -> io::Result<i16> {
        let number = u16::try_from(self.number()?).map_err(|_| damaged("a field of a large number"))?;
        Ok((number >> 1) as i16 ^ -((number & 1) as i16))
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
