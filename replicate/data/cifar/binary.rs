//! The authors' binary layout: for each image its labels, one byte each (CIFAR-100: coarse, fine),
//! then 3 x 32 x 32 bytes.

use super::{Fault, Gathered, IMAGE_LEN, Set};
use crate::store::formats::called;

/// Number of coarse classes of CIFAR-100.
const COARSE: u8 = 20;

/// Returns the bytes of an image with its labels.
pub(super) fn record_len(set: Set) -> usize {
    match set {
        Set::Cifar10 => 1 + IMAGE_LEN,
        Set::Cifar100 => 2 + IMAGE_LEN,
    }
}

/// Reads every record of a file.
pub(super) fn read(bytes: &[u8], gathered: &mut Gathered) -> Result<(), Fault> {
    let record_len = record_len(gathered.set);
    let (count, rest) = (bytes.len() / record_len, bytes.len() % record_len);
    if count == 0 || rest != 0 {
        let found = format!("{} bytes: {count} records and {rest} bytes more", bytes.len());
        return Err(Fault::new(format!("records of {record_len} bytes"), called(bytes).unwrap_or(found)));
    }
    for (i, record) in bytes.chunks_exact(record_len).enumerate() {
        let (labels, pixels) = record.split_last_chunk().expect("a record is longer than an image");
        if let [coarse, _] = labels
            && *coarse >= COARSE
        {
            let found = format!("coarse label {coarse} in record {i}");
            return Err(Fault::new(format!("coarse labels from 0 to {}", COARSE - 1), found));
        }
        let label = labels[labels.len() - 1] as i64;
        gathered.push(label, pixels).map_err(|fault| fault.within(format!("record {i}")))?;
    }
    Ok(())
}
