//! The hub's parquet files: PNG bytes in the column `img.bytes`, and a column
//! `label` (CIFAR-10) or `fine_label` (CIFAR-100) of 64-bit numbers.

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use parquet::column::reader::{ColumnReader, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int64Type};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};

use super::{Fault, Gathered, Set, listed, png, shown, thrift};

const IMAGES: &str = "img.bytes";
/// Images that are decoded at a time.
const BATCH: usize = 256;
/// Bytes of the description of a file; of each row group it may repeat two images.
const MOST_METADATA: u64 = 1 << 24;
/// Bytes of an unpacked page; usual writers end a page at 1 MB.
const MOST_PAGE: i64 = 1 << 26;
/// Bytes of a page's header, with the smallest and largest image as statistics.
const MOST_HEADER: u64 = 1 << 16;

/// Every row of a file.
pub(super) fn read(file: File, gathered: &mut Gathered) -> Result<(), Fault> {
    caught(|| read_groups(file, gathered)).unwrap_or_else(|| Err(damaged(&"a broken structure")))
}

fn read_groups(mut file: File, gathered: &mut Gathered) -> Result<(), Fault> {
    check_metadata(&mut file)?;
    let mut pages = file.try_clone().map_err(|error| damaged(&error))?;
    let reader = SerializedFileReader::new(file).map_err(|error| damaged(&error))?;
    let metadata = reader.metadata();
    let labels = match gathered.set {
        Set::Cifar10 => "label",
        Set::Cifar100 => "fine_label",
    };
    let [images, labels] = [column(metadata, IMAGES)?, column(metadata, labels)?];
    for (i, group) in metadata.row_groups().iter().enumerate() {
        let rows = usize::try_from(group.num_rows()).ok().filter(|rows| *rows <= gathered.split.full());
        let Some(rows) = rows else {
            return Err(Fault::new(
                format!("at most {} rows", gathered.split.full()),
                format!("{} of them", group.num_rows()),
            ));
        };
        for column in [images, labels] {
            check_pages(&mut pages, group.column(column), rows)?;
        }
        let group = reader.get_row_group(i).map_err(|error| damaged(&error))?;
        read_rows(&*group, [images, labels], rows, gathered)?;
    }
    Ok(())
}

fn read_rows(
    group: &dyn RowGroupReader,
    [images, labels]: [usize; 2],
    rows: usize,
    gathered: &mut Gathered,
) -> Result<(), Fault> {
    let mut images: Column<ByteArrayType> = Column::open(group, images)?;
    let mut labels: Column<Int64Type> = Column::open(group, labels)?;
    let mut done = 0;
    while done < rows {
        let count = BATCH.min(rows - done);
        let (pngs, labels) = (images.next(count)?, labels.next(count)?);
        for (bytes, label) in pngs.iter().zip(labels) {
            let row = || format!("row {}", gathered.images.labels.len());
            let bytes: &ByteArray = bytes;
            if bytes.len() > png::MOST_BYTES {
                let found = format!("{} bytes, in {}", bytes.len(), row());
                return Err(Fault::new(format!("PNGs of at most {} bytes", png::MOST_BYTES), found));
            }
            let pixels = png::decode(bytes.data()).map_err(|fault| fault.within(row()))?;
            let row = row();
            gathered.push(label, &pixels).map_err(|fault| fault.within(row))?;
        }
        done += count;
    }
    Ok(())
}

/// A column of a row group without missing values.
struct Column<T: DataType>(parquet::column::reader::ColumnReaderImpl<T>);

impl<T: DataType> Column<T> {
    fn open(group: &dyn RowGroupReader, column: usize) -> Result<Column<T>, Fault> {
        let reader: ColumnReader = group.get_column_reader(column).map_err(|error| damaged(&error))?;
        Ok(Column(get_typed_column_reader(reader)))
    }

    /// The next `count` values.
    fn next(&mut self, count: usize) -> Result<Vec<T::T>, Fault> {
        let (mut values, mut levels) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let read = self.0.read_records(count, Some(&mut levels), None, &mut values);
        let (rows, there, _) = read.map_err(|error| damaged(&error))?;
        match (rows, there) == (count, count) {
            true => Ok(values),
            false => Err(damaged(&format!("{there} values in {count} rows"))),
        }
    }
}

/// The index of a column of single values: of bytes if it is the images', of
/// 64-bit numbers otherwise.
fn column(metadata: &ParquetMetaData, name: &str) -> Result<usize, Fault> {
    let columns = metadata.file_metadata().schema_descr().columns();
    let physical = match name {
        IMAGES => parquet::basic::Type::BYTE_ARRAY,
        _ => parquet::basic::Type::INT64,
    };
    let is = |column: &parquet::schema::types::ColumnDescPtr| {
        column.path().string() == name && column.physical_type() == physical && column.max_rep_level() == 0
    };
    columns.iter().position(is).ok_or_else(|| {
        let held = columns.iter().map(|c| format!("{} ({})", c.path().string(), c.physical_type()));
        let held: Vec<String> = held.map(|text| shown(&text)).collect();
        Fault::new(format!("a column {name} ({physical})"), listed(&held))
    })
}

/// Whether the file ends in a description whose lists are as long as they say.
fn check_metadata(file: &mut File) -> Result<(), Fault> {
    let mut tail = [0; 8];
    let length = file.seek(SeekFrom::End(-8)).and_then(|at| file.read_exact(&mut tail).map(|()| at));
    let length = length.map_err(|error| damaged(&error))?;
    let [a, b, c, d, magic @ ..] = tail;
    let described = u32::from_le_bytes([a, b, c, d]) as u64;
    if magic != *b"PAR1" {
        return Err(damaged(&"it does not end in PAR1"));
    }
    if described > MOST_METADATA.min(length) {
        return Err(damaged(&format!("a description of {described} bytes")));
    }
    let bytes = read_at(file, length - described, described)?;
    match thrift::structure(&bytes) {
        Some(_) => Ok(()),
        None => Err(damaged(&"a broken description")),
    }
}

/// Whether the pages of a column lie within the file, and are not larger
/// unpacked than pages are.
fn check_pages(file: &mut File, chunk: &ColumnChunkMetaData, rows: usize) -> Result<(), Fault> {
    let first = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
    let (Ok(mut at), Ok(length)) = (u64::try_from(first), u64::try_from(chunk.compressed_size())) else {
        return Err(damaged(&"a column at no place"));
    };
    let file_length = file.metadata().map_err(|error| damaged(&error))?.len();
    let Some(end) = at.checked_add(length).filter(|end| *end <= file_length) else {
        return Err(damaged(&"a column beyond the end"));
    };
    // The dictionary, and pages of one value at least.
    for pages in 0.. {
        if at == end {
            return Ok(());
        }
        if pages > rows {
            break;
        }
        let header = read_at(file, at, MOST_HEADER.min(end - at))?;
        let Some((numbers, header_length)) = thrift::structure(&header) else {
            return Err(damaged(&"a page with a broken header"));
        };
        let field = |id| numbers.iter().rev().find(|(field, _)| *field == id).map(|(_, value)| *value);
        let (unpacked, packed) = (field(UNPACKED).unwrap_or(-1), field(PACKED).unwrap_or(-1));
        if !(0..=MOST_PAGE).contains(&unpacked) {
            return Err(Fault::new(
                format!("pages of at most {MOST_PAGE} bytes"),
                format!("{unpacked} bytes"),
            ));
        }
        let next =
            u64::try_from(packed).ok().and_then(|packed| at.checked_add(header_length as u64 + packed));
        at = match next {
            Some(next) if next <= end => next,
            _ => return Err(damaged(&format!("a page of {packed} bytes"))),
        };
    }
    Err(damaged(&"more pages than rows"))
}

/// What `f` returns, or `None` where it panics: the parquet crate takes it for
/// granted that a description names what a reader needs, and panics if not.
/// Nothing is printed then, since the file's error says it.
fn caught<T>(f: impl FnOnce() -> T) -> Option<T> {
    thread_local!(static CAUGHT: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !CAUGHT.get() {
                usual(panic);
            }
        }));
    });
    CAUGHT.set(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    CAUGHT.set(false);
    result.ok()
}

/// Fields of `PageHeader`: uncompressed_page_size, compressed_page_size.
const UNPACKED: i16 = 2;
const PACKED: i16 = 3;

fn read_at(file: &mut File, at: u64, length: u64) -> Result<Vec<u8>, Fault> {
    let mut bytes = vec![0; length as usize];
    let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes));
    read.map(|()| bytes).map_err(|error| damaged(&error))
}

fn damaged(what: &dyn std::fmt::Display) -> Fault {
    Fault::new("a whole parquet file", format!("damage ({})", shown(&what.to_string())))
}
