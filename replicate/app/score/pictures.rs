//! Reads folders and zips of PNG files in the order of their paths. The images must be 8-bit RGB,
//! square and of one size. Every header is read before the first image is scored.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use png::{BitDepth, ColorType};

use super::sets::{ImageSet, LARGEST, batch_of};
use crate::data::folder::walk;
use crate::data::{Images, planes};
use crate::error::{Error, Result};
use crate::store::formats::unzip::Entry;
use crate::store::formats::{Fault, LeftOut, foreign, is_hidden};

/// Largest number of bytes read from a file.
const LARGEST_FILE: u64 = 1 << 26;

/// Extensions of image files in other formats than PNG.
const OTHER_IMAGES: [&str; 26] = [
    "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "heic", "heif", "jxl",
    "jp2", "j2k", "ppm", "pgm", "pbm", "pam", "pnm", "tga", "qoi", "apng", "exr", "hdr",
];

/// Opens the PNG files below a directory, following links, and describes the skipped files. Returns
/// no set if there are neither PNG files nor other images.
///
/// # Errors
/// `Malformed` for images of another format, for PNG files that differ in size or are not 8-bit
/// RGB, and for circular links; `Missing` for a broken link.
pub(super) fn folder(root: &Path) -> Result<(Option<ImageSet>, LeftOut)> {
    let (mut files, mut left_out) = (Vec::new(), LeftOut::default());
    walk(root, &mut left_out, &mut |file, kind, left_out| {
        let path = root.join(&file);
        if !is_picture(&path)? {
            left_out.other(&file);
        } else if kind.is_file() {
            files.push(file);
        } else {
            let found = "no file but a device or a pipe";
            return Err(Error::malformed(path, "a PNG file", found, "remove it"));
        }
        Ok(())
    })?;
    // Sorted by the text of the path, like EDM's dataset.py, and not directory by directory.
    files.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    let files = files.into_iter().map(|file| root.join(file)).collect();
    let pictures = Pictures { files, open: |path: &PathBuf| File::open(path), path: PathBuf::clone };
    Ok((pictures.set("PNG folder")?, left_out))
}

/// Opens the PNG files in a zip and describes the skipped files. Returns no set if there are
/// neither PNG files nor other images.
///
/// # Errors
/// As [`folder`].
pub(super) fn zip(path: &Path, entries: Vec<Entry>) -> Result<(Option<ImageSet>, LeftOut)> {
    let (mut files, mut left_out) = (Vec::new(), LeftOut::default());
    for entry in entries {
        if is_hidden(&entry.name) {
            left_out.hidden(&entry.name);
        } else if entry.is_link() || is_picture(&path.join(&entry.name))? {
            // A link may lead to a folder of images, which would be missing without a word.
            if let Some(how) = entry.unread() {
                let remedy = match entry.is_link() {
                    true => "unpack it and name the folder, or zip it again without -y (--symlinks)",
                    false => "unpack it and name the folder, or zip it again with deflate",
                };
                return Err(Error::malformed(path.join(&entry.name), "a PNG file", how, remedy));
            }
            files.push(entry);
        } else {
            left_out.other(&entry.name);
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let archive = File::open(path).map_err(Error::io("open", path))?;
    let path = path.to_path_buf();
    let open = move |entry: &Entry| entry.open(archive.try_clone()?);
    let pictures = Pictures { files, open, path: move |entry: &Entry| path.join(&entry.name) };
    Ok((pictures.set("zip of PNG files")?, left_out))
}

/// True if the file is read. An image of another format is an error, because lossy compression
/// changes the generator's pixels.
fn is_picture(path: &Path) -> Result<bool> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if OTHER_IMAGES.contains(&extension.as_str()) {
        let remedy = "write the images as PNG where they are made: JPEG and the like change what is measured";
        return Err(Error::malformed(path, "PNG files", format!("a .{extension} file"), remedy));
    }
    Ok(extension == "png")
}

/// PNG files, each with a function that opens it.
struct Pictures<Place, Open, Name> {
    files: Vec<Place>,
    open: Open,
    /// Returns the name of a file for messages.
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
                batch.pixels.extend(planes(&self.decode(file, size)?));
            }
            Ok(batch)
        });
        Ok(Some(ImageSet { kind, len, size, full: None, batches: Box::new(batches) }))
    }

    /// Returns the size of an image; fails if it cannot be read or differs from the others.
    fn check(&self, file: &Place, size: Option<usize>) -> Result<usize> {
        let path = (self.path)(file);
        let start = self.bytes(file, 32).map_err(|error| not_png(&path, &error.into()))?;
        if start.is_empty() {
            return Err(Error::malformed(
                path,
                "a PNG file",
                "an empty file",
                "write it again, or remove it",
            ));
        }
        if let Some(what) = foreign(&start).filter(|_| !start.starts_with(b"\x89PNG")) {
            let remedy = "put the image itself in its place, as PNG from where it was made";
            return Err(Error::malformed(path, "a PNG file", what, remedy));
        }
        let reader = |most| png::Decoder::new(Cursor::new(self.bytes(file, most)?)).read_info();
        // The header before the pixels is rarely longer.
        let reader = reader(1 << 14).or_else(|_| reader(LARGEST_FILE));
        header(&path, reader.map_err(|error| not_png(&path, &error))?.info(), size)
    }

    /// Returns the pixels in the order of RGB pixels.
    fn decode(&self, file: &Place, size: usize) -> Result<Vec<u8>> {
        let path = (self.path)(file);
        let rgb = || {
            let mut reader = png::Decoder::new(Cursor::new(self.bytes(file, LARGEST_FILE)?)).read_info()?;
            let mut rgb = vec![0; 3 * size * size];
            // Checks the size again, because the file may have changed.
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
    let error: &(dyn std::error::Error + 'static) = match error {
        png::DecodingError::IoError(error) => error,
        error => error,
    };
    match Fault::of(error, || plain(error.to_string())) {
        Fault::Unreadable(error) => Error::io("read", path)(error),
        Fault::Content(found) => Error::malformed(path, "a PNG file", found, "write it again, or remove it"),
    }
}

/// Shortens the name of a chunk, which the PNG reader prints with all its properties.
fn plain(text: String) -> String {
    let name = text.split_once("ChunkType { type: ").and_then(|(before, rest)| {
        let (name, rest) = rest.split_once(", critical")?;
        Some(format!("{before}{name}{}", rest.split_once(" }")?.1))
    });
    name.unwrap_or(text)
}

fn header(path: &Path, info: &png::Info, size: Option<usize>) -> Result<usize> {
    let malformed = |expected: String, found: String| {
        Error::malformed(path, expected, found, "write all images as 8-bit RGB PNG files of one size")
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
