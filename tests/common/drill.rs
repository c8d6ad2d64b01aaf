//! Stand-ins for the files that the paper's scale fetches, in the publishers'
//! formats and of the formats' real shapes: what is in them is made from
//! formulas. Every machine makes the same bytes.

#![allow(unused_imports)]

mod cifar;
mod edm;
mod inception;
mod npz;
mod pickle;
mod torch;

pub use cifar::{Set, cifar_archive};
pub use edm::{edm_snapshot, sid_snapshot};
pub use inception::inception_pth;
pub use npz::fid_reference;
use replicate::network::unet::Config;

/// Training images of each class in the archives that the program's table of
/// assets lists.
pub const CIFAR10_PER_CLASS: usize = 20;
pub const CIFAR100_PER_CLASS: usize = 10;

/// EDM's network for CIFAR, but narrow and shallow: 32x32, attention at 16x16.
pub fn network() -> Config {
    Config {
        size: 32,
        image_channels: 3,
        model_channels: 8,
        channel_mult: vec![1, 2],
        blocks: 1,
        attention_sizes: vec![16],
        augment_labels: 9,
    }
}
