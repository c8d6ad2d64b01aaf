//! Decodes an image from PNG, the format in parquet files and EDM's zips.

use std::io::Cursor;

use ::png::{BitDepth, ColorType, Decoder, DecodingError, Limits};

use super::{Fault, IMAGE_LEN, SIZE};
use crate::data::planes;
use crate::store::formats::foreign;

/// Most bytes of a PNG; an uncompressed one takes 3.2 kB.
pub(super) const MOST_BYTES: usize = 1 << 14;

/// Decodes the pixels, channel-major. Accepts only 32 x 32 pixels of 8-bit RGB.
pub(super) fn decode(bytes: &[u8]) -> Result<[u8; IMAGE_LEN], Fault> {
    let damaged = |error: DecodingError| Fault::new("a whole PNG", format!("damage ({error})"));
    if let Some(what) = foreign(bytes).filter(|_| !bytes.starts_with(b"\x89PNG")) {
        return Err(Fault::new(format!("PNGs of {SIZE} x {SIZE} pixels, 8-bit RGB"), what));
    }
    let limits = Limits { bytes: 1 << 20 };
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), limits);
    let info = decoder.read_header_info().map_err(damaged)?;
    let is = (info.width, info.height, info.color_type, info.bit_depth);
    if is != (SIZE as u32, SIZE as u32, ColorType::Rgb, BitDepth::Eight) {
        return Err(Fault::new(
            format!("PNGs of {SIZE} x {SIZE} pixels, 8-bit RGB"),
            format!("{} x {}, {}-bit {:?}", is.0, is.1, is.3 as u8, is.2),
        ));
    }
    let mut reader = decoder.read_info().map_err(damaged)?;
    let mut interleaved = [0; IMAGE_LEN];
    reader.next_frame(&mut interleaved).map_err(damaged)?;
    reader.finish().map_err(damaged)?;
    let mut pixels = [0; IMAGE_LEN];
    pixels.iter_mut().zip(planes(&interleaved)).for_each(|(to, value)| *to = value);
    Ok(pixels)
}
