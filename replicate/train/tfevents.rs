//! Writes the records of a TensorBoard events file: TFRecord framing around the protocol buffers
//! `Event` and `Summary`, reduced to the fields used here. Field numbers are those of TensorBoard's
//! `event.proto` and `summary.proto`. A file is a [`version`] record followed by any others.

/// File version in the first record, which TensorBoard requires.
const FILE_VERSION: &str = "brain.Event:2";
/// `Summary.Image.colorspace` of RGB.
const RGB: u64 = 3;

/// Makes the first record of a file. Here and below `wall` is in seconds since 1970 UTC.
pub fn version(wall: f64) -> Vec<u8> {
    record(&[double(1, wall), bytes(3, FILE_VERSION.as_bytes())].concat())
}

/// Makes a record with the values of several curves at one step, as (tag, value).
pub fn scalars(wall: f64, step: u64, values: &[(&str, f32)]) -> Vec<u8> {
    let values: Vec<_> =
        values.iter().map(|(tag, v)| bytes(1, &[bytes(1, tag.as_bytes()), float(2, *v)].concat())).collect();
    summary(wall, step, &values.concat())
}

/// Makes a record with an RGB image of `width` x `height` pixels, given as a PNG file.
pub fn image(wall: f64, step: u64, tag: &str, width: u32, height: u32, png: &[u8]) -> Vec<u8> {
    let image = [varint(1, height.into()), varint(2, width.into()), varint(3, RGB), bytes(4, png)].concat();
    summary(wall, step, &bytes(1, &[bytes(1, tag.as_bytes()), bytes(4, &image)].concat()))
}

fn summary(wall: f64, step: u64, values: &[u8]) -> Vec<u8> {
    record(&[double(1, wall), varint(2, step), bytes(5, values)].concat())
}

/// Frames a record: length, checksum of the length, `event`, checksum of `event`.
fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), event, &masked(event)].concat()
}

/// Masks a checksum as TFRecord does, because the CRC of data that contains its own CRC is weak.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8).to_le_bytes()
}

/// CRC with Castagnoli's polynomial, reflected (RFC 3720, appendix B.4).
pub fn crc32c(bytes: &[u8]) -> u32 {
    let shift = |crc: u32| (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc)))
}

/// Encodes a field; the wire types here are 0 (varint), 1 (64 bits), 2 (length and bytes) and 5 (32
/// bits).
fn varint(field: u8, value: u64) -> Vec<u8> {
    [vec![field << 3], base128(value)].concat()
}

fn double(field: u8, value: f64) -> Vec<u8> {
    [&[field << 3 | 1][..], &value.to_le_bytes()].concat()
}

fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    [&[field << 3 | 2][..], &base128(value.len() as u64), value].concat()
}

fn float(field: u8, value: f32) -> Vec<u8> {
    [&[field << 3 | 5][..], &value.to_le_bytes()].concat()
}

/// Encodes seven bits in a byte, the lowest first; the top bit says that more follow.
fn base128(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}
