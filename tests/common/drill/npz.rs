//! EDM's FID reference statistics, written.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;

/// `numpy.savez` of `mu` (d) and `sigma` (d x d, row-major), both float64: a zip
/// without compression, dated 1980.
///
/// Panics unless `sigma` has the square of `mu`'s length.
pub fn fid_reference(mu: &[f64], sigma: &[f64]) -> Vec<u8> {
    let d = mu.len();
    assert_eq!(sigma.len(), d * d);
    // NumPy asks for 64-bit sizes always.
    let options = SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .last_modified_time(zip::DateTime::default())
        .large_file(true);
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, shape, data) in
        [("mu.npy", format!("({d},)"), mu), ("sigma.npy", format!("({d}, {d})"), sigma)]
    {
        archive.start_file(name, options).unwrap();
        archive.write_all(&npy(&shape, data)).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// The format of `numpy.save`, version 1; the data begin at a multiple of 64.
fn npy(shape: &str, data: &[f64]) -> Vec<u8> {
    const FIRST: &[u8] = b"\x93NUMPY\x01\x00";
    let dictionary = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}");
    let begin = (FIRST.len() + 2 + dictionary.len() + 1).next_multiple_of(64);
    let header = format!("{dictionary:width$}\n", width = begin - FIRST.len() - 3);
    let length = (header.len() as u16).to_le_bytes();
    let data: Vec<u8> = data.iter().flat_map(|value| value.to_le_bytes()).collect();
    [FIRST, &length, header.as_bytes(), &data].concat()
}
