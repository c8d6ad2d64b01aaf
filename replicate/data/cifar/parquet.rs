//! Parquet files, as on the Hugging Face hub or rewritten by other tools: PNG bytes in one column, and
//! integers as labels in another.

use std::cell::Cell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};

use parquet::basic::{Compression, ConvertedType, Type};
use parquet::column::page::PageReader;
use parquet::column::reader::{ColumnReaderImpl, get_column_reader, get_typed_column_reader};
use parquet::data_type::{ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnDescPtr;

use super::headers::{self, Checked};
use super::pages::Pages;
use super::{Fault, Gathered, Set, listed, png, shown};

/// Images that are decoded at a time.
const BATCH: usize = 256;
/// Most bytes of a file's metadata, which may repeat two images of each row group.
const MOST_METADATA: u64 = 1 << 22;
/// Most bytes of a row besides its image: lengths, levels, the label, and repetitions of them.
const REST_OF_A_ROW: u64 = 64;
const CODECS: &str = "pages packed with snappy, gzip, zstd, brotli or lz4, or not at all";
/// Most bytes of a page besides its rows.
const REST: u64 = 1 << 16;

/// Reads every row of a file.
pub(super) fn read(file: File, gathered: &mut Gathered) -> Result<(), Fault> {
    caught(|| read_groups(file, gathered)).unwrap_or_else(|| Err(damaged("a broken structure")))
}

fn read_groups(file: File, gathered: &mut Gathered) -> Result<(), Fault> {
    let file = Arc::new(file);
    let metadata = metadata(&file)?;
    let [images, labels] = columns(&metadata, gathered.set)?;
    for group in metadata.row_groups() {
        let rows = usize::try_from(group.num_rows()).ok().filter(|rows| *rows <= gathered.split.full());
        let Some(rows) = rows else {
            let found = format!("{} of them", group.num_rows());
            return Err(Fault::new(format!("at most {} rows", gathered.split.full()), found));
        };
        let mut images: Column<ByteArrayType> = Column::open(&file, group, images, rows)?;
        let mut labels: Box<dyn Labels> = match group.column(labels).column_descr().physical_type() {
            Type::INT32 => Box::new(Column::<Int32Type>::open(&file, group, labels, rows)?),
            _ => Box::new(Column::<Int64Type>::open(&file, group, labels, rows)?),
        };
        for done in (0..rows).step_by(BATCH) {
            let count = BATCH.min(rows - done);
            for (bytes, label) in images.next(count)?.iter().zip(labels.next(count)?) {
                let row = || format!("row {}", gathered.images.labels.len());
                if bytes.len() > png::MOST_BYTES {
                    let found = format!("{} bytes, in {}", bytes.len(), row());
                    return Err(Fault::new(format!("PNGs of at most {} bytes", png::MOST_BYTES), found));
                }
                let pixels = png::decode(bytes.data()).map_err(|fault| fault.within(row()))?;
                let row = row();
                gathered.push(label, &pixels).map_err(|fault| fault.within(row))?;
            }
        }
    }
    Ok(())
}

/// Reads the metadata at the end of a file, if it is not too long.
fn metadata(file: &Arc<File>) -> Result<ParquetMetaData, Fault> {
    use std::io::{Read, Seek, SeekFrom};
    let mut tail = [0; 8];
    let mut end = &**file;
    let length = end.seek(SeekFrom::End(-8)).and_then(|at| end.read_exact(&mut tail).map(|()| at));
    let length = length.map_err(|error| Fault::damage("a whole parquet file", &error))?;
    let [a, b, c, d, magic @ ..] = tail;
    let described = u32::from_le_bytes([a, b, c, d]) as u64;
    if magic != *b"PAR1" {
        return Err(damaged("it does not end in PAR1"));
    }
    if described > MOST_METADATA.min(length) {
        return Err(damaged(&format!("a description of {described} bytes")));
    }
    let start = file.get_read(length - described).map_err(|error| broken(&error))?;
    headers::check_description(start, described)
        .map_err(|error| Fault::damage("a whole parquet file", &error))?;
    ParquetMetaDataReader::new().parse_and_finish(&**file).map_err(|error| broken(&error))
}

/// A column of a row group without missing values.
struct Column<T: DataType>(ColumnReaderImpl<T>);

impl<T: DataType> Column<T> {
    fn open(
        file: &Arc<File>,
        group: &RowGroupMetaData,
        column: usize,
        rows: usize,
    ) -> Result<Column<T>, Fault> {
        let chunk = group.column(column);
        if matches!(chunk.compression(), Compression::LZO) {
            return Err(Fault::new(CODECS, chunk.compression().to_string()));
        }
        let first = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
        let length = file.metadata().map_err(|error| Fault::damage("a parquet file", &error))?.len();
        let end = first.checked_add(chunk.compressed_size()).and_then(|end| u64::try_from(end).ok());
        if first < 0 || chunk.compressed_size() < 0 || end.is_none_or(|end| end > length) {
            return Err(damaged("a column beyond the end"));
        }
        // As "uncompressed", the crate returns the pages as they are in the file. Otherwise it would
        // allocate as much memory as a page claims.
        let packed = chunk.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build();
        let packed = packed
            .and_then(|chunk| SerializedPageReader::new(Arc::new(Checked(file.clone())), &chunk, rows, None));
        let left = rows as u64 * (png::MOST_BYTES as u64 + REST_OF_A_ROW) + REST;
        let descr = chunk.column_descr_ptr();
        let levels = [descr.max_rep_level() > 0, descr.max_def_level() > 0];
        let packed = packed.map_err(|error| broken(&error))?;
        let pages: Box<dyn PageReader> = Box::new(Pages { packed, codec: chunk.compression(), levels, left });
        Ok(Column(get_typed_column_reader(get_column_reader(descr, pages))))
    }

    /// Reads the next `count` values.
    fn next(&mut self, count: usize) -> Result<Vec<T::T>, Fault> {
        let (mut values, mut levels) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let read = self.0.read_records(count, Some(&mut levels), None, &mut values);
        let (rows, there, _) = read.map_err(|error| broken(&error))?;
        match (rows, there) == (count, count) {
            true => Ok(values),
            false if rows == count => Err(Fault::new(
                "an image and a label in every row",
                format!("{there} values in {count} rows"),
            )),
            false => Err(damaged(&format!("{there} values in {count} rows"))),
        }
    }
}

/// Integers of either width.
trait Labels {
    fn next(&mut self, count: usize) -> Result<Vec<i64>, Fault>;
}

impl<T: DataType> Labels for Column<T>
where
    T::T: Into<i64>,
{
    fn next(&mut self, count: usize) -> Result<Vec<i64>, Fault> {
        Ok(Column::next(self, count)?.into_iter().map(Into::into).collect())
    }
}

/// Finds the columns of images and of labels, by the hub's names, or as the only possible ones.
fn columns(metadata: &ParquetMetaData, set: Set) -> Result<[usize; 2], Fault> {
    let columns = metadata.file_metadata().schema_descr().columns();
    let (label, other_label) = match set {
        Set::Cifar10 => ("label", "fine_label"),
        Set::Cifar100 => ("fine_label", "label"),
    };
    let find = |names: &[&str], may: &dyn Fn(&str, &ColumnDescPtr) -> bool| {
        let may: Vec<(usize, String)> = (0..columns.len())
            .filter(|i| columns[*i].max_rep_level() == 0)
            .map(|i| (i, columns[i].path().string()))
            .filter(|(i, path)| may(path, &columns[*i]))
            .collect();
        let named = may.iter().find(|(_, path)| names.contains(&path.as_str()));
        named.or(if may.len() == 1 { may.first() } else { None }).map(|(i, _)| *i)
    };
    let is_bytes = |column: &ColumnDescPtr| column.physical_type() == Type::BYTE_ARRAY;
    // Texts say that they are.
    let is_plain = |column: &ColumnDescPtr| {
        column.converted_type() == ConvertedType::NONE && column.logical_type_ref().is_none()
    };
    let images = find(&["img.bytes", "image.bytes", "img", "image"], &|path, column| {
        is_bytes(column) && (path.ends_with(".bytes") || ["img", "image"].contains(&path))
    });
    let images = images.or_else(|| find(&[], &|_, column| is_bytes(column) && is_plain(column)));
    let labels = find(&[label, &format!("{label}s")], &|path, column| {
        let other = path.starts_with("coarse")
            || match set {
                Set::Cifar10 => path.starts_with("fine"),
                Set::Cifar100 => path == "label",
            };
        matches!(column.physical_type(), Type::INT32 | Type::INT64) && !other
    });
    let missing = |name: &str, kind: &str| {
        let held = |c: &ColumnDescPtr| format!("{} ({})", shown(&c.path().string()), c.physical_type());
        let held: Vec<String> = columns.iter().map(held).collect();
        Fault::new(format!("a column {name} ({kind})"), listed(&held))
    };
    Ok([
        images.ok_or_else(|| missing("img.bytes", "BYTE_ARRAY"))?,
        labels.ok_or_else(|| {
            let fault = missing(label, "INT64");
            let of_other = columns.iter().any(|column| column.path().string() == other_label);
            if of_other { fault.apart() } else { fault }
        })?,
    ])
}

/// Runs `f`; returns `None` if it panics. The parquet crate panics on incomplete metadata. The panic's
/// message is suppressed, because the caller reports the file.
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

fn broken(error: &parquet::errors::ParquetError) -> Fault {
    Fault::damage("a whole parquet file", error)
}

fn damaged(what: &str) -> Fault {
    Fault::new("a whole parquet file", format!("damage ({})", shown(what)))
}
