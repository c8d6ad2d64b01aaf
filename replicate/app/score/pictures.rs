//! Folders and zips of PNG files, 8-bit RGB, square and of one size, in the order
//! of their paths. Every header is read before the first image is scored.

use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use png::{BitDepth, ColorType};

use super::source::{ImageSet, LARGEST, batch_of};
use crate::data::Images;
use crate::error::{Error, Result};
use crate::store::formats::unzip::Entry;

/// Bytes that are read of a file at most.
const LARGEST_FILE: u64 = 1 << 26;

/// Extensions of images that are not PNG.
const OTHER_IMAGES: [&str; 10] = ["jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif", "jxl", "ppm"];

/// The PNG files below a directory; `None` if there are none, and no other images.
///
/// # Errors
/// `Malformed` for images of another format, and for PNG files that differ in
/// size or are not 8-bit RGB.
pub(super) fn folder(root: &Path) -> Result<Option<ImageSet>> {
    let mut files = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        let path = root.join(&directory);
        for entry in fs::read_dir(&path).map_err(Error::io("list", &path))? {
            let entry = entry.map_err(Error::io("list", &path))?;
            let kind = entry.file_type().map_err(Error::io("read", &entry.path()))?;
            let inner = directory.join(entry.file_name());
            // Links to directories are left alone: they could form a circle.
            match kind.is_dir() {
                true => directories.push(inner),
                false if is_picture(&entry.path())? && entry.path().is_file() => files.push(inner),
                false => {}
            }
        }
    }
    // As EDM's dataset.py: by the text of the path, not directory by directory.
    files.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    let files = files.into_iter().map(|file| root.join(file)).collect();
    Pictures { files, open: |path: &PathBuf| File::open(path), path: PathBuf::clone }.set("PNG folder")
}

/// The PNG files in a zip; `None` if there are none, and no other images.
///
/// # Errors
/// As [`folder`].
pub(super) fn zip(path: &Path, entries: Vec<Entry>) -> Result<Option<ImageSet>> {
    let mut files = Vec::new();
    for entry in entries {
        if is_picture(&path.join(&entry.name))? {
            files.push(entry);
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let archive = File::open(path).map_err(Error::io("open", path))?;
    let path = path.to_path_buf();
    let open = move |entry: &Entry| entry.open(archive.try_clone()?);
    Pictures { files, open, path: move |entry: &Entry| path.join(&entry.name) }.set("zip of PNG files")
}

/// Whether a file is to be read. An image of another format is an error: what was
/// stored with loss is not what a generator made.
fn is_picture(path: &Path) -> Result<bool> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if OTHER_IMAGES.contains(&extension.as_str()) {
        return Err(Error::Malformed {
            path: path.to_path_buf(),
            expected: "PNG files".into(),
            found: format!("a .{extension} file"),
            remedy: "write the images as PNG where they are made: JPEG and the like change what is measured"
                .into(),
        });
    }
    Ok(extension == "png")
}

/// PNG files, each behind whatever opens it.
struct Pictures<Place, Open, Name> {
    files: Vec<Place>,
    open: Open,
    /// What a file is called in messages.
    path: Name,
}

impl<Place, Open, Name, Reader> Pictures<Place, Open, Name>
where
    Place: 'static,
    Open: Fn(&Place) -> std::io::Result<Reader> + 'static,
    Name: Fn(&Place) -> PathBuf + 'static,
    Reader: Read,
{
    fn set(self, kind: &'static str) -> Result<Option<ImageSet>> {
        let Some(first) = self.files.first() else { return Ok(None) };
        let size = self.check(first, None)?;
        for file in &self.files[1..] {
            self.check(file, Some(size))?;
        }
        let len = self.files.len();
        let most = batch_of(size);
        let batches = (0..len).step_by(most).map(move |first| {
            let mut batch = Images { channels: 3, size, pixels: Vec::new(), labels: Vec::new() };
            for file in &self.files[first..len.min(first + most)] {
                let rgb = self.decode(file, size)?;
                for channel in 0..3 {
                    batch.pixels.extend(rgb.as_chunks::<3>().0.iter().map(|pixel| pixel[channel]));
                }
            }
            Ok(batch)
        });
        Ok(Some(ImageSet { kind, len, size, full: None, batches: Box::new(batches) }))
    }

    /// The size of an image that can be read, and has the size of the others.
    fn check(&self, file: &Place, size: Option<usize>) -> Result<usize> {
        let path = (self.path)(file);
        let reader = |most| png::Decoder::new(Cursor::new(self.bytes(file, most)?)).read_info();
        // What comes before the pixels is rarely longer than this.
        let reader = reader(1 << 14).or_else(|_| reader(LARGEST_FILE));
        header(&path, reader.map_err(|error| not_png(&path, &error))?.info(), size)
    }

    /// The pixels, RGB by RGB.
    fn decode(&self, file: &Place, size: usize) -> Result<Vec<u8>> {
        let path = (self.path)(file);
        let rgb = || {
            let mut reader = png::Decoder::new(Cursor::new(self.bytes(file, LARGEST_FILE)?)).read_info()?;
            let mut rgb = vec![0; 3 * size * size];
            // Again: the file may have changed.
            let same = header(&path, reader.info(), Some(size)).map(|_| ());
            if same.is_ok() {
                reader.next_frame(&mut rgb)?;
            }
            Ok(same.map(|()| rgb))
        };
        rgb().map_err(|error| not_png(&path, &error))?
    }

    fn bytes(&self, file: &Place, most: u64) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        (self.open)(file)?.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

fn not_png(path: &Path, error: &png::DecodingError) -> Error {
    Error::Malformed {
        path: path.to_path_buf(),
        expected: "a PNG file".into(),
        found: error.to_string(),
        remedy: "write it again, or remove it".into(),
    }
}

fn header(path: &Path, info: &png::Info, size: Option<usize>) -> Result<usize> {
    let malformed = |expected: String, found: String| Error::Malformed {
        path: path.to_path_buf(),
        expected,
        found,
        remedy: "write all images as 8-bit RGB PNG files of one size".into(),
    };
    let depth = info.bit_depth as u8;
    let rgb = |found: &str| Err(malformed("an 8-bit RGB image".into(), found.into()));
    match (info.color_type, info.bit_depth) {
        (ColorType::Grayscale, _) => return rgb(&format!("{depth}-bit grayscale")),
        (ColorType::GrayscaleAlpha, _) => {
            return rgb(&format!("{depth}-bit grayscale with an alpha channel"));
        }
        (ColorType::Rgba, _) => return rgb(&format!("{depth}-bit RGB with an alpha channel")),
        (ColorType::Indexed, _) => return rgb("a palette"),
        (ColorType::Rgb, BitDepth::Eight) if info.trns.is_some() => {
            return rgb("RGB with a transparent colour");
        }
        (ColorType::Rgb, BitDepth::Eight) => {}
        (ColorType::Rgb, _) => return rgb(&format!("{depth}-bit RGB")),
    }
    let (width, height) = (info.width, info.height);
    let found = format!("{width}x{height} pixels");
    match size {
        Some(size) if (width as usize, height as usize) != (size, size) => {
            Err(malformed(format!("{size}x{size} pixels as the images before it"), found))
        }
        None if width != height => Err(malformed("a square image".into(), found)),
        None if width as usize > LARGEST => {
            Err(malformed(format!("at most {LARGEST}x{LARGEST} pixels"), found))
        }
        _ => Ok(width as usize),
    }
}
