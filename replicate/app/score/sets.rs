//! Sets of images and of features. They come in batches, so that the memory does not depend on their
//! length.

use crate::data::Images;
use crate::error::Result;
use crate::measure::metrics::Features;
use crate::measure::statistics::Statistics;

/// Largest number of images, or of rows of features, in a batch.
pub const BATCH: usize = 64;

/// Largest number of bytes of pixels in a batch of more than one image.
const BATCH_BYTES: usize = 1 << 26;

/// Largest height and width of an image.
pub(super) const LARGEST: usize = 4096;

/// Returns the number of images of this size in a batch.
pub(super) fn batch_of(size: usize) -> usize {
    (BATCH_BYTES / (3 * size * size)).clamp(1, BATCH)
}

/// A set of RGB images.
pub struct ImageSet {
    /// Kind of the source, for a report: "PNG folder".
    pub kind: &'static str,
    pub len: usize,
    /// Height and width in pixels.
    pub size: usize,
    /// Images of the full data set, if it is known.
    pub full: Option<usize>,
    /// Batches with `len` images in all, 3 x `size` x `size` each.
    pub batches: Box<dyn Iterator<Item = Result<Images>>>,
}

impl ImageSet {
    /// Keeps the first `n` images, or all if there are fewer.
    pub fn first(self, n: usize) -> ImageSet {
        let len = self.len.min(n);
        let mut left = len;
        let batches = self.batches.map_while(move |batch| {
            let mut images = match batch {
                Ok(_) if left == 0 => return None,
                Ok(images) => images,
                Err(error) => return Some(Err(error)),
            };
            let taken = images.len().min(left);
            images.pixels.truncate(taken * 3 * images.size * images.size);
            left -= taken;
            Some(Ok(images))
        });
        ImageSet { len, batches: Box::new(batches), ..self }
    }
}

/// Features, and logits if the file has them.
pub type Rows = (Features, Option<Features>);

/// Features that another program extracted.
pub struct FeatureSet {
    pub len: usize,
    pub dim: usize,
    /// Number of columns of the logits.
    pub classes: Option<usize>,
    /// Batches with `len` rows in all.
    pub batches: Box<dyn Iterator<Item = Result<Rows>>>,
}

/// An opened input, whose content is read on use.
pub enum Input {
    Images(ImageSet),
    Features(FeatureSet),
    Statistics(Statistics),
}
