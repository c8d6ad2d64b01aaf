//! Extracts EDM's network from a snapshot, with the names of [`crate::network::unet`].

use std::collections::BTreeMap;
use std::path::Path;

use super::{Checkpoint, Tensor};
use crate::error::{Error, Result};
use crate::store::Array;

/// Prefix of the averaged network in a snapshot {ema, loss_fn, augment_pipe, dataset_kwargs}.
const EMA: &str = "ema.";
/// Prefixes of all names that DistributedDataParallel and torch.compile add.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];
const FILTER: &str = ".resample_filter";
const FILTER_SHAPE: [usize; 4] = [1, 1, 2, 2];
const FILTER_VALUE: f32 = 0.25;

impl Checkpoint {
    /// Extracts the parameters of EDM's averaged network. A snapshot's `ema.NAME` becomes `NAME`;
    /// the names of a state dict stay. The prefixes of PyTorch's wrappers are dropped. `NAME` is the name
    /// in [`crate::network::unet::Denoiser`] (`model.map_layer0.weight`,
    /// `model.enc.32x32_block0.conv0.weight`, …); nothing else is renamed.
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
        if !parameters.clone().any(|(_, tensor)| tensor.dtype.is_float()) {
            return Err(Error::malformed(
                path,
                "the parameters of EDM's network",
                format!("no floating-point numbers ({} tensors in all)", parameters.count()),
                "use an EDM snapshot (edm-cifar10-32x32-uncond-vp.pkl) or its state dict",
            ));
        }
        without_filters(&path, Checkpoint { path: path.clone(), format, tensors, unread }.arrays()?)
    }
}

fn averaged(mut tensors: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    let below = |prefix: &str, tensors: Vec<(String, Tensor)>| -> Vec<(String, Tensor)> {
        let of = |(name, tensor): (String, Tensor)| Some((name.strip_prefix(prefix)?.to_string(), tensor));
        tensors.into_iter().filter_map(of).collect()
    };
    if tensors.iter().any(|(name, _)| name.starts_with(EMA)) {
        tensors = below(EMA, tensors);
    }
    let all = |prefix: &&str, tensors: &[(String, Tensor)]| {
        !tensors.is_empty() && tensors.iter().all(|(name, _)| name.starts_with(*prefix))
    };
    while let Some(prefix) = WRAPPERS.into_iter().find(|prefix| all(prefix, &tensors)) {
        tensors = below(prefix, tensors);
    }
    tensors
}

fn without_filters(path: &Path, mut arrays: BTreeMap<String, Array>) -> Result<BTreeMap<String, Array>> {
    let filters = arrays.iter().filter(|(name, _)| name.ends_with(FILTER));
    for (name, filter) in filters {
        if filter.shape != FILTER_SHAPE || filter.data.iter().any(|value| *value != FILTER_VALUE) {
            return Err(Error::malformed(
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
