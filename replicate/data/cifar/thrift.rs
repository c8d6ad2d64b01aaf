//! Thrift's compact protocol, as far as to walk over it (its specification:
//! thrift-compact-protocol.md). The parquet crate reserves memory for what lists
//! and pages claim before it looks whether the bytes are there; so the claims
//! are checked here first.

/// Parquet's own structures nest less deep.
const MOST_DEPTH: usize = 32;

/// Walks over one structure at the beginning of `bytes`, and gives the whole
/// numbers among its fields, by field id, and its length in bytes. `None` where
/// it is broken, or claims more elements than there are bytes.
pub(super) fn structure(bytes: &[u8]) -> Option<(Vec<(i16, i64)>, usize)> {
    let mut walk = Walk { bytes };
    let numbers = walk.structure(0)?;
    Some((numbers, bytes.len() - walk.bytes.len()))
}

struct Walk<'a> {
    /// What is left.
    bytes: &'a [u8],
}

#[rustfmt::skip]
mod kind {
    pub const STOP: u8 = 0;
    pub const TRUE: u8 = 1;
    pub const FALSE: u8 = 2;
    pub const BYTE: u8 = 3;
    pub const I16: u8 = 4;
    pub const I32: u8 = 5;
    pub const I64: u8 = 6;
    pub const DOUBLE: u8 = 7;
    pub const BINARY: u8 = 8;
    pub const LIST: u8 = 9;
    pub const SET: u8 = 10;
    pub const MAP: u8 = 11;
    pub const STRUCT: u8 = 12;
    pub const UUID: u8 = 13;
}

impl Walk<'_> {
    fn structure(&mut self, depth: usize) -> Option<Vec<(i16, i64)>> {
        let mut numbers = Vec::new();
        let mut id = 0i16;
        loop {
            let header = self.byte()?;
            let kind = header & 0x0f;
            if kind == kind::STOP {
                return Some(numbers);
            }
            id = match header >> 4 {
                0 => i16::try_from(self.number()?).ok()?,
                step => id.checked_add(step as i16)?,
            };
            match kind {
                // A field's truth is its kind.
                kind::TRUE | kind::FALSE => {}
                kind::I16 | kind::I32 | kind::I64 if depth == 0 => numbers.push((id, self.number()?)),
                _ => self.value(kind, depth + 1)?,
            }
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > MOST_DEPTH {
            return None;
        }
        match kind {
            kind::TRUE | kind::FALSE | kind::BYTE => self.skip(1),
            kind::I16 | kind::I32 | kind::I64 => self.number().map(drop),
            kind::DOUBLE => self.skip(8),
            kind::UUID => self.skip(16),
            kind::BINARY => {
                let length = self.count()?;
                self.skip(length)
            }
            kind::LIST | kind::SET => {
                let header = self.byte()?;
                let count = match header >> 4 {
                    15 => self.count()?,
                    count => count as usize,
                };
                self.elements(count, &[header & 0x0f], depth)
            }
            kind::MAP => match self.count()? {
                0 => Some(()),
                count => {
                    let kinds = self.byte()?;
                    self.elements(count, &[kinds >> 4, kinds & 0x0f], depth)
                }
            },
            kind::STRUCT => self.structure(depth).map(drop),
            _ => None,
        }
    }

    /// Every element has one byte at least.
    fn elements(&mut self, count: usize, kinds: &[u8], depth: usize) -> Option<()> {
        if count > self.bytes.len() {
            return None;
        }
        for _ in 0..count {
            for &kind in kinds {
                self.value(kind, depth + 1)?;
            }
        }
        Some(())
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    fn skip(&mut self, length: usize) -> Option<()> {
        self.bytes = self.bytes.get(length..)?;
        Some(())
    }

    /// Seven bits a byte, the low ones first.
    fn unsigned(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= ((byte & 0x7f) as u64) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn count(&mut self) -> Option<usize> {
        usize::try_from(self.unsigned()?).ok()
    }

    /// Zigzag: 0, -1, 1, -2 …
    fn number(&mut self) -> Option<i64> {
        let value = self.unsigned()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }
}
