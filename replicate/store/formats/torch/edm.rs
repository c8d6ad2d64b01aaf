//! EDM's network out of a snapshot, under the names of [`crate::network::unet`].

use std::collections::BTreeMap;
use std::path::Path;

use super::{Checkpoint, Dtype, malformed};
use crate::error::Result;
use crate::store::Array;

/// The averaged network of a snapshot {ema, loss_fn, augment_pipe,
/// dataset_kwargs}.
const EMA: &str = "ema.";
const FILTER: &str = ".resample_filter";
const FILTER_SHAPE: [usize; 4] = [1, 1, 2, 2];
const FILTER_VALUE: f32 = 0.25;

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
        let tensors = averaged(tensors);
        let parameters = tensors.iter().filter(|(name, _)| !name.ends_with(FILTER));
        if !parameters.clone().any(|(_, tensor)| tensor.dtype == Dtype::F32) {
            return Err(malformed(
                &path,
                "the parameters of EDM's network".into(),
                format!("none of them f32 ({} tensors in all)", parameters.count()),
                "use an EDM snapshot (edm-cifar10-32x32-uncond-vp.pkl) or its state dict",
            ));
        }
        without_filters(&path, Checkpoint { path: path.clone(), format, tensors }.arrays()?)
    }
}

/// [`Checkpoint::edm_network`] of what was written as safetensors.
///
/// # Errors
/// `Malformed` when a filter is another one.
pub fn edm_network(path: &Path, arrays: BTreeMap<String, Array>) -> Result<BTreeMap<String, Array>> {
    without_filters(path, averaged(arrays.into_iter().collect()).into_iter().collect())
}

fn averaged<T>(tensors: Vec<(String, T)>) -> Vec<(String, T)> {
    if !tensors.iter().any(|(name, _)| name.starts_with(EMA)) {
        return tensors;
    }
    let of = |(name, tensor): (String, T)| Some((name.strip_prefix(EMA)?.to_string(), tensor));
    tensors.into_iter().filter_map(of).collect()
}

fn without_filters(path: &Path, mut arrays: BTreeMap<String, Array>) -> Result<BTreeMap<String, Array>> {
    let filters = arrays.iter().filter(|(name, _)| name.ends_with(FILTER));
    for (name, filter) in filters {
        if filter.shape != FILTER_SHAPE || filter.data.iter().any(|value| *value != FILTER_VALUE) {
            return Err(malformed(
                path,
                format!("{name} to be 2 x 2 values of {FILTER_VALUE} (EDM's resample_filter [1, 1])"),
                format!("{:?} of {:?}", filter.shape, filter.data.iter().take(16).collect::<Vec<_>>()),
                "use a network with that filter: the U-Net here has no other",
            ));
        }
    }
    arrays.retain(|name, _| !name.ends_with(FILTER));
    Ok(arrays)
}
