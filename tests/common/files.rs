//! Files as NumPy, Pillow and zip tools write them.

#![allow(dead_code)]

use flate2::{Compression, Crc, write::DeflateEncoder};
use std::io::Write;

pub fn npy(dtype: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    npy_ordered(dtype, shape, data, "False")
}

pub fn npy_ordered(dtype: &str, shape: &[usize], data: &[u8], fortran: &str) -> Vec<u8> {
    let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
    let shape =
        if shape.len() == 1 { sides.trim_end().to_string() } else { sides.trim_end_matches(", ").into() };
    let mut header = format!("{{'descr': '{dtype}', 'fortran_order': {fortran}, 'shape': ({shape}), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// A zip, byte by byte: the zip crate of the tests cannot deflate.
pub fn zip(files: &[(&str, Vec<u8>)], deflate: bool) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let mut crc = Crc::new();
        crc.update(content);
        let packed = match deflate {
            false => content.clone(),
            true => {
                let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(content).unwrap();
                encoder.finish().unwrap()
            }
        };
        let method = if deflate { 8u16 } else { 0 };
        let mut common = [20u16, 0, method, 0, 0x21].map(u16::to_le_bytes).concat();
        common.extend(crc.sum().to_le_bytes());
        common.extend((packed.len() as u32).to_le_bytes());
        common.extend((content.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        let offset = archive.len() as u32;
        archive.extend([b"PK\x03\x04", &common[..], &[0; 2], name.as_bytes(), &packed].concat());
        let rest = [&[0; 12][..], &offset.to_le_bytes(), name.as_bytes()].concat();
        directory.extend([b"PK\x01\x02\x14\x00", &common[..], &rest].concat());
    }
    let (start, count) = (archive.len() as u32, files.len() as u16);
    let end =
        [&[0; 4][..], &count.to_le_bytes(), &count.to_le_bytes(), &(directory.len() as u32).to_le_bytes()];
    let end = [end.concat(), start.to_le_bytes().to_vec(), vec![0; 2]].concat();
    [archive, directory, b"PK\x05\x06".to_vec(), end].concat()
}

pub fn png_of(color: png::ColorType, depth: png::BitDepth, width: u32, height: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if color == png::ColorType::Indexed {
        encoder.set_palette(vec![0; 3 * 256]);
    }
    encoder.write_header().unwrap().write_image_data(data).unwrap();
    bytes
}
