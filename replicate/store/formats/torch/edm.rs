//! Extracts EDM's network from a snapshot, with the names of [`crate::network::unet`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{Checkpoint, Tensor};
use crate::error::{Error, Result};
use crate::store::Array;

/// Prefix of the averaged network in a snapshot {ema, loss_fn, augment_pipe, dataset_kwargs}.
const EMA: &str = "ema.";
/// Beginning of the names of the network's encoder.
const ENCODER: &str = "model.enc.";
const FILTER: &str = ".resample_filter";
const FILTER_SHAPE: [usize; 4] = [1, 1, 2, 2];
const FILTER_VALUE: f32 = 0.25;

impl Checkpoint {
    /// Extracts the parameters of EDM's averaged network. A snapshot's `ema.NAME` becomes `NAME`, and
    /// so does `PREFIX.NAME` where the file has no other network. `NAME` is the name in
    /// [`crate::network::unet::Denoiser`] (`model.map_layer0.weight`,
    /// `model.enc.32x32_block0.conv0.weight`, …); nothing else is renamed.
    ///
    /// Leaves out the `resample_filter` buffers. They are not learned, and the network here has the
    /// filter \[1, 1\] built in.
    ///
    /// # Errors
    /// `Malformed` if a filter is a different one, or if there is no network.
    pub fn edm_network(self) -> Result<BTreeMap<String, Array>> {
        let Checkpoint { path, format, tensors, mut unread } = self;
        let (prefix, tensors) = network(tensors);
        unread.retain(|(name, _)| name.starts_with(&prefix));
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

/// Returns the prefix of the averaged network's names in the file, and its tensors by their names
/// behind that prefix. Without an average it is the only network of the file; a training state, a
/// checkpoint of Lightning and PyTorch's wrappers put names before those of the network.
fn network(tensors: Vec<(String, Tensor)>) -> (String, Vec<(String, Tensor)>) {
    let is_snapshot = tensors.iter().any(|(name, _)| name.starts_with(EMA));
    let mut prefix = if is_snapshot { EMA.to_string() } else { String::new() };
    let place = |name: &str| {
        let (place, _) = name.strip_prefix(&*prefix)?.split_once(ENCODER)?;
        (place.is_empty() || place.ends_with('.')).then(|| place.to_string())
    };
    let places: BTreeSet<String> = tensors.iter().filter_map(|(name, _)| place(name)).collect();
    if let (1, Some(place)) = (places.len(), places.first()) {
        prefix += place;
    }
    let inner = |(name, tensor): (String, Tensor)| Some((name.strip_prefix(&*prefix)?.to_string(), tensor));
    let tensors = tensors.into_iter().filter_map(inner).collect();
    (prefix, tensors)
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
