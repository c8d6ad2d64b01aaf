//! Extracts EDM's network from a snapshot, with the names of [`crate::network::unet`].

use std::collections::BTreeMap;
use std::path::Path;

use super::{Checkpoint, Dtype, malformed};
use crate::error::Result;
use crate::store::Array;

/// Prefix of the averaged network in a snapshot {ema, loss_fn, augment_pipe, dataset_kwargs}.
const EMA: &str = "ema.";
const FILTER: &str = ".resample_filter";
const FILTER_SHAPE: [usize; 4] = [1, 1, 2, 2];
const FILTER_VALUE: f32 = 0.25;

impl Checkpoint {
    /// Extracts the parameters of EDM's averaged network. A snapshot's `ema.NAME` becomes `NAME`;
    /// the names of a state dict stay. `NAME` is the name in [`crate::network::unet::Denoiser`]
    /// (`model.map_layer0.weight`, `model.enc.32x32_block0.conv0.weight`, …); nothing else is
    /// renamed.
    ///
    /// Leaves out the `resample_filter` buffers. They are not learned, and the network here has the
    /// filter \[1, 1\] built in.
    ///
    /// # Errors
    /// `Malformed` if a filter is a different one, or if there is no network.
    pub fn edm_network(self) -> Result<BTreeMap<String, Array>> {
        let Checkpoint { path, format, tensors, mut unread } = self;
        let is_snapshot = tensors.iter().any(|(name, _)| name.starts_with(EMA));
        unread.retain(|(name, _)| !is_snapshot || name.starts_with(EMA));
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
        without_filters(&path, Checkpoint { path: path.clone(), format, tensors, unread }.arrays()?)
    }
}

/// Does the same as [`Checkpoint::edm_network`] for arrays from a safetensors file.
///
/// # Errors
/// `Malformed` if a filter is a different one.
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
