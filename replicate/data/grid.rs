//! Draws many images in one PNG.

use crate::data::Images;

/// Columns and zoom of the grids of samples.
pub const GRID: (usize, usize) = (10, 3);

/// Grey level of the lines between the images.
const SEPARATOR: u8 = 128;

/// Draws all images in rows of `columns` as a PNG (8-bit RGB). Each pixel is enlarged to `zoom` x
/// `zoom`, with lines of one pixel between and around the images. The same images give the same
/// bytes.
///
/// # Panics
/// If there is no image, or if the images do not have three channels.
pub fn png_grid(images: &Images, columns: usize, zoom: usize) -> Vec<u8> {
    let tiles: Vec<&[u8]> = (0..images.len()).map(|i| images.image(i)).collect();
    let rows: Vec<&[&[u8]]> = tiles.chunks(columns).collect();
    png(&rows, images.channels, images.size, columns, zoom)
}

/// As [`png_grid`], with one row for each set of images, for example the samples of the same noise at
/// several moments of a training.
///
/// # Panics
/// As [`png_grid`]; also if the sets have different sizes.
pub fn png_strip(rows: &[&Images], zoom: usize) -> Vec<u8> {
    let tiles: Vec<Vec<&[u8]>> =
        rows.iter().map(|images| (0..images.len()).map(|i| images.image(i)).collect()).collect();
    let columns = tiles.iter().map(Vec::len).max().unwrap_or(0);
    let (channels, size) = (rows[0].channels, rows[0].size);
    assert!(rows.iter().all(|images| (images.channels, images.size) == (channels, size)), "sizes differ");
    png(&tiles.iter().map(Vec::as_slice).collect::<Vec<_>>(), channels, size, columns, zoom)
}

fn png(rows: &[&[&[u8]]], channels: usize, size: usize, columns: usize, zoom: usize) -> Vec<u8> {
    assert_eq!(channels, 3, "a PNG grid shows RGB images");
    let pitch = size * zoom + 1;
    let (width, height) = (columns * pitch + 1, rows.len() * pitch + 1);
    let mut canvas = vec![SEPARATOR; width * height * channels];
    for (row, tiles) in rows.iter().enumerate() {
        for (column, tile) in tiles.iter().enumerate() {
            for y in 0..size * zoom {
                for x in 0..size * zoom {
                    let from = y / zoom * size + x / zoom;
                    let to = ((row * pitch + 1 + y) * width + column * pitch + 1 + x) * channels;
                    for channel in 0..channels {
                        canvas[to + channel] = tile[channel * size * size + from];
                    }
                }
            }
        }
    }
    png_of(&canvas, width, height)
}

/// Encodes `rgb`, `width` x `height` interleaved pixels, as a PNG. The same pixels give the same
/// bytes.
pub fn png_of(rgb: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // `Fast` uses fdeflate, whose bytes do not depend on the zlib that the build links.
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().expect("the size of a PNG is not zero");
    writer.write_image_data(rgb).expect("writing to memory");
    writer.finish().expect("writing to memory");
    bytes
}
