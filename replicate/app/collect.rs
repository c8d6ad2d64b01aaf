//! Writes images to a folder of PNG files, to a zip like EDM's data sets, or to a NumPy array.
//!
//! `OUT.partial` holds the pixels so far, in order, their digests, and a record of their origin. An
//! output gets its final name when it is complete.

use crate::data::Images;
use crate::data::grid::png_of;
use crate::error::{Error, Result, shown_path};
use crate::store::formats::{npz, uncompressed};
use crate::store::{Content, dir_of, hex, lock_file, sha256_hex, sync_dir, write_atomically};
use crate::train::watch::say;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Read, Seek, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Name of the record in a folder or a zip: how its images were made.
const RECORD: &str = "sample.txt";
const PIXELS: &str = "pixels";
/// Name of the file with lines `N SHA256` of the pixels, one line for each batch.
const DIGESTS: &str = "digests";
/// Largest number of bytes read from the file of digests; a line has at most 80.
const MOST_DIGESTS: u64 = 1 << 26;
const LOCK: &str = "lock";
/// Name of the complete output before it gets its final name.
const WHOLE: &str = "whole";
/// Images read at a time when the output is written.
const AT_ONCE: usize = 1000;

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// `000000.png`, as EDM's `generate.py`.
    Folder,
    /// `00000/img00000000.png` and `dataset.json`, as EDM's `dataset_tool.py`.
    Zip,
    /// `arr_0`, uint8 (N, H, W, 3).
    Npz,
}

impl Container {
    /// Chooses the kind by the file name extension.
    ///
    /// # Errors
    /// `Usage` for any other extension.
    pub fn of(out: &Path) -> Result<Container> {
        let extension = out.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        match &*extension {
            "zip" => Ok(Container::Zip),
            "npz" => Ok(Container::Npz),
            "npy" | "tar" | "gz" | "png" | "jpg" | "parquet" => Err(Error::Usage(format!(
                "--out {}: a folder, a .zip and an .npz can be written, but no .{extension}",
                out.display()
            ))),
            _ => Ok(Container::Folder),
        }
    }
}

/// An output in progress.
pub struct Collecting {
    out: PathBuf,
    container: Container,
    partial: PathBuf,
    record: String,
    pixels: File,
    digests: File,
    size: usize,
    numbers: Range<u64>,
    done: u64,
    _lock: File,
}

impl Collecting {
    /// Starts an output of the images `numbers`, RGB with `size` x `size` pixels, or resumes one.
    /// The lines of `record` describe the images.
    ///
    /// # Errors
    /// `Usage` if `out` exists, if the output in progress has another record, or if another process
    /// is writing it.
    pub fn begin(out: &Path, record: &str, size: usize, numbers: Range<u64>) -> Result<Collecting> {
        let container = Container::of(out)?;
        let is_empty = |dir: &Path| fs::read_dir(dir).is_ok_and(|mut content| content.next().is_none());
        if out.symlink_metadata().is_ok() && !(container == Container::Folder && is_empty(out)) {
            return Err(Error::Usage(format!(
                "{} exists and is not overwritten: remove it, or choose another --out",
                out.display()
            )));
        }
        let mut name = out.file_name().unwrap_or(out.as_os_str()).to_os_string();
        name.push(".partial");
        let partial = out.with_file_name(name);
        fs::create_dir_all(&partial).map_err(Error::io("create", &partial))?;
        let lock = lock_file(&partial.join(LOCK), &mut |_| {
            Err(Error::Usage(format!("another process is writing {}", out.display())))
        })?;
        match fs::read_to_string(partial.join(RECORD)) {
            Ok(begun) if begun == record => {}
            Ok(begun) => {
                let different = begun.lines().zip(record.lines()).find(|(a, b)| a != b);
                let (theirs, ours) = different.unwrap_or((&begun, record));
                return Err(Error::Usage(format!(
                    "{} was begun with '{theirs}', this is '{ours}'\n  \
                     remove it to begin anew, or choose another --out",
                    partial.display()
                )));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                write_atomically(&partial, RECORD, record.as_bytes())?;
            }
            Err(error) => return Err(Error::io("read", &partial.join(RECORD))(error)),
        }
        let path = partial.join(PIXELS);
        let whole = || -> std::io::Result<(File, File, u64, bool)> {
            let open =
                |name| OpenOptions::new().create(true).read(true).append(true).open(partial.join(name));
            let (mut pixels, mut digests) = (open(PIXELS)?, open(DIGESTS)?);
            let image = (3 * size * size) as u64;
            let (done, kept, altered) =
                verified(&mut pixels, &mut digests, image, numbers.end - numbers.start)?;
            pixels.set_len(done * image)?;
            digests.set_len(kept)?;
            Ok((pixels, digests, done, altered))
        };
        let (pixels, digests, done, altered) = whole().map_err(Error::io("open", &path))?;
        if altered {
            let path = shown_path(&path);
            say(&format!(
                "{path} was altered since it was stopped: {done} images count, the others are made again"
            ));
        }
        let (out, record) = (out.to_path_buf(), record.to_string());
        Ok(Collecting { out, container, partial, record, pixels, digests, size, numbers, done, _lock: lock })
    }

    /// Returns the number of the next image, or the end of the range if all are there.
    pub fn next(&self) -> u64 {
        self.numbers.start + self.done
    }

    /// Adds the next images. They are on the disk when this returns.
    ///
    /// # Panics
    /// If the images have another size, or are more than the remaining ones.
    pub fn push(&mut self, images: &Images) -> Result<()> {
        assert_eq!((images.channels, images.size), (3, self.size), "images of another shape");
        assert!(self.next() + images.len() as u64 <= self.numbers.end, "more images than announced");
        let line = format!("{} {}\n", images.len(), sha256_hex(&images.pixels));
        let written = self.pixels.write_all(&images.pixels).and_then(|()| self.pixels.sync_data());
        let written = written
            .and_then(|()| self.digests.write_all(line.as_bytes()))
            .and_then(|()| self.digests.sync_data());
        written.map_err(Error::io("write", &self.partial.join(PIXELS)))?;
        self.done += images.len() as u64;
        Ok(())
    }

    /// Gives the output its final name. Returns the SHA-256 of all pixels, N x 3 x H x W, as
    /// `score` prints it.
    pub fn finish(mut self) -> Result<String> {
        assert_eq!(self.next(), self.numbers.end, "an image is missing");
        let whole = self.partial.join(WHOLE);
        // Removes what a killed process left here.
        _ = fs::remove_dir_all(&whole);
        _ = fs::remove_file(&whole);
        let written = match self.container {
            Container::Folder => self.folder(&whole),
            Container::Zip => self.zip(&whole),
            Container::Npz => self.npz(&whole),
        };
        let digest = written.map_err(Error::io("write", &self.out))?;
        let named = fs::rename(&whole, &self.out).and_then(|()| sync_dir(dir_of(&self.out)));
        named.map_err(Error::io("write", &self.out))?;
        fs::remove_dir_all(&self.partial).map_err(Error::io("remove", &self.partial))?;
        Ok(digest)
    }

    /// Calls `each` with the number and pixels of each image; returns the SHA-256 of all pixels.
    fn read(&mut self, mut each: impl FnMut(u64, &[u8]) -> std::io::Result<()>) -> std::io::Result<String> {
        self.pixels.rewind()?;
        let image = 3 * self.size * self.size;
        let (mut hash, mut number) = (Sha256::new(), self.numbers.start);
        let mut buffer = vec![0; AT_ONCE * image];
        while number < self.numbers.end {
            let n = AT_ONCE.min((self.numbers.end - number) as usize);
            let pixels = &mut buffer[..n * image];
            self.pixels.read_exact(pixels)?;
            hash.update(&*pixels);
            for pixels in pixels.chunks_exact(image) {
                each(number, pixels)?;
                number += 1;
            }
        }
        Ok(hex(hash.finalize()))
    }

    fn folder(&mut self, dir: &Path) -> std::io::Result<String> {
        fs::create_dir(dir)?;
        fs::write(dir.join(RECORD), &self.record)?;
        // The names sort in the order of the numbers.
        let digits = (self.numbers.end - 1).to_string().len().max(6);
        let size = self.size;
        self.read(|number, pixels| {
            fs::write(dir.join(format!("{number:0digits$}.png")), png_of(&interleaved(pixels), size, size))
        })
    }

    fn zip(&mut self, path: &Path) -> std::io::Result<String> {
        let mut zip = zip::ZipWriter::new(BufWriter::new(File::create(path)?));
        let size = self.size;
        let digest = self.read(|number, pixels| {
            let png = png_of(&interleaved(pixels), size, size);
            zip.start_file(format!("{:05}/img{number:08}.png", number / 1000), uncompressed())?;
            zip.write_all(&png)
        })?;
        for (name, text) in [("dataset.json", r#"{"labels": null}"#), (RECORD, &self.record)] {
            zip.start_file(name, uncompressed())?;
            zip.write_all(text.as_bytes())?;
        }
        zip.finish()?.into_inner()?.sync_all()?;
        Ok(digest)
    }

    fn npz(&mut self, path: &Path) -> std::io::Result<String> {
        let n = (self.numbers.end - self.numbers.start) as usize;
        let shape = [n, self.size, self.size, 3];
        let bytes = shape.iter().product::<usize>() as u64;
        let options = uncompressed().large_file(bytes >= u32::MAX as u64 / 2);
        let mut zip = zip::ZipWriter::new(BufWriter::new(File::create(path)?));
        zip.start_file("arr_0.npy", options)?;
        zip.write_all(&npz::begin("|u1", &shape))?;
        let digest = self.read(|_, pixels| zip.write_all(&interleaved(pixels)))?;
        zip.finish()?.into_inner()?.sync_all()?;
        Ok(digest)
    }
}

/// Returns the number of verified images, the bytes of their digests, and true if other images were
/// altered. An unfinished write of a killed process does not count as altered.
fn verified(
    pixels: &mut File,
    digests: &mut File,
    image: u64,
    most: u64,
) -> std::io::Result<(u64, u64, bool)> {
    let mut text = String::new();
    // An unreadable file verifies no image.
    _ = Read::by_ref(digests).take(MOST_DIGESTS).read_to_string(&mut text);
    let (mut done, mut kept) = (0, 0);
    for line in text.split_inclusive('\n') {
        let parts = line.strip_suffix('\n').and_then(|line| line.split_once(' '));
        let Some((Ok(n), digest)) = parts.map(|(n, digest)| (n.parse::<u64>(), digest)) else {
            return Ok((done, kept, line.ends_with('\n')));
        };
        if n == 0 || n > most - done {
            return Ok((done, kept, true));
        }
        let found = Content::copy(Read::by_ref(pixels).take(n * image), &mut std::io::sink())?;
        if (found.bytes, found.sha256.as_str()) != (n * image, digest) {
            return Ok((done, kept, true));
        }
        (done, kept) = (done + n, kept + line.len() as u64);
    }
    Ok((done, kept, false))
}

/// Converts planes of channels to RGB pixels.
fn interleaved(pixels: &[u8]) -> Vec<u8> {
    let (red, rest) = pixels.split_at(pixels.len() / 3);
    let (green, blue) = rest.split_at(red.len());
    red.iter().zip(green).zip(blue).flat_map(|((r, g), b)| [*r, *g, *b]).collect()
}
