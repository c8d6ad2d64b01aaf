//! The reader of CIFAR, for tests of the images alone.

#![allow(dead_code)]

pub use replicate::data::cifar::*;

use replicate::data::Images;
use replicate::error::Result;
use std::path::Path;

/// The training images in `path`.
pub fn train(set: Set, path: &Path) -> Result<Images> {
    Ok(read(set, Split::Train, path)?.0)
}

/// The test images in `path`.
pub fn test(set: Set, path: &Path) -> Result<Images> {
    Ok(read(set, Split::Test, path)?.0)
}
