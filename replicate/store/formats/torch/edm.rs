//! EDM's network out of a snapshot, under the names of [`crate::network::unet`].

use std::collections::BTreeMap;

use super::{Checkpoint, Dtype, malformed};
use crate::error::Result;
use crate::store::Array;

/// The averaged network of a snapshot {ema, loss_fn, augment_pipe,
/// dataset_kwargs}.
const EMA: &str = "ema.";
const FILTER: &str = ".resample_filter";
const FILTER_SHAPE: [usize; 4] = [1, 1, 2, 2];
const FILTER_VALUE: f64 = 0.25;

impl Checkpoint {
    /// The parameters of EDM's averaged network: a snapshot's `ema.NAME`
    /// becomes `NAME`, a state dict's names stay. `NAME` is what
    /// [`crate::network::unet::Denoiser`] calls the parameter (`model.map_layer0.weight`,
    /// `model.enc.32x32_block0.conv0.weight`, …): nothing else is renamed.
    ///
    /// The `resample_filter` buffers are left out. They are not learned, and the
    /// network here has the filter \[1, 1\] built in.
    ///
    /// # Errors
    /// `Malformed` when a filter is another one, or when there is no network.
    pub fn edm_network(self) -> Result<BTreeMap<String, Array>> {
        let Checkpoint { path, format, tensors } = self;
        let snapshot = tensors.iter().any(|(name, _)| name.starts_with(EMA));
        let mut network = Vec::new();
        for (name, tensor) in tensors {
            let name = match name.strip_prefix(EMA) {
                Some(name) => name.to_string(),
                None if snapshot => continue,
                None => name,
            };
            if !name.ends_with(FILTER) {
                network.push((name, tensor));
            } else if tensor.shape != FILTER_SHAPE || tensor.values().any(|value| value != FILTER_VALUE) {
                return Err(malformed(
                    &path,
                    format!("{name} to be 2 x 2 values of {FILTER_VALUE} (EDM's resample_filter [1, 1])"),
                    format!("{:?} of {:?}", tensor.shape, tensor.values().take(16).collect::<Vec<_>>()),
                    "use a network with that filter: the U-Net here has no other",
                ));
            }
        }
        if !network.iter().any(|(_, tensor)| tensor.dtype == Dtype::F32) {
            return Err(malformed(
                &path,
                "the parameters of EDM's network".into(),
                format!("none of them f32 ({} tensors in all)", network.len()),
                "use an EDM snapshot (edm-cifar10-32x32-uncond-vp.pkl) or its state dict",
            ));
        }
        Checkpoint { path, format, tensors: network }.arrays()
    }
}
