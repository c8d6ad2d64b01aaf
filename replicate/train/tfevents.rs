//! Records of a TensorBoard events file, as bytes: TFRecord framing around the
//! protocol buffers `Event` and `Summary`, of which only the fields that are
//! written here exist. Field numbers are those of TensorBoard's `event.proto`
//! and `summary.proto`. A file is a [`version`] record and any others after it.

/// What TensorBoard wants to find in the first record.
const FILE_VERSION: &str = "brain.Event:2";
/// `Summary.Image.colorspace` of RGB.
const RGB: u64 = 3;

/// The record that a file begins with. `wall` is in seconds since 1970 UTC,
/// here and below.
pub fn version(wall: f64) -> Vec<u8> {
    record(&[double(1, wall), bytes(3, FILE_VERSION.as_bytes())].concat())
}

/// One record with the values of several curves at one step, as (tag, value).
pub fn scalars(wall: f64, step: u64, values: &[(&str, f32)]) -> Vec<u8> {
    let values: Vec<_> =
        values.iter().map(|(tag, v)| bytes(1, &[bytes(1, tag.as_bytes()), float(2, *v)].concat())).collect();
    summary(wall, step, &values.concat())
}

/// One record with an RGB image of `width` x `height` pixels, as the bytes of a
/// PNG file.
pub fn image(wall: f64, step: u64, tag: &str, width: u32, height: u32, png: &[u8]) -> Vec<u8> {
    let image = [varint(1, height.into()), varint(2, width.into()), varint(3, RGB), bytes(4, png)].concat();
    summary(wall, step, &bytes(1, &[bytes(1, tag.as_bytes()), bytes(4, &image)].concat()))
}

fn summary(wall: f64, step: u64, values: &[u8]) -> Vec<u8> {
    record(&[double(1, wall), varint(2, step), bytes(5, values)].concat())
}

/// Length, checksum of the length, `event`, checksum of `event`.
fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), event, &masked(event)].concat()
}

/// TFRecord's mask: a CRC of bytes that hold their own CRC would say little.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8).to_le_bytes()
}

/// The CRC of Castagnoli's polynomial, reflected (RFC 3720, appendix B.4).
pub fn crc32c(bytes: &[u8]) -> u32 {
    let shift = |crc: u32| (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc)))
}

/// A field of the wire types 0 (varint), 1 (64 bits), 2 (length and bytes) and 5
/// (32 bits).
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

/// Seven bits a byte, the lowest first; the top bit says that more follow.
fn base128(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}
