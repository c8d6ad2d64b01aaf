//! Reads the network's weights strictly from a checkpoint, and folds the batch normalisation into
//! the convolutions.

use super::Inception;
use super::topology::Conv;
use crate::error::{Error, Result};
use crate::network::cpu::Window;
use crate::network::params::Arrays;
use crate::store::Array;
use crate::store::formats::torch::{Checkpoint, Dtype, require};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Training counter of each normalisation, which inference does not need.
pub const COUNTER: &str = "num_batches_tracked";
/// Epsilon of the normalisations, as in the TensorFlow graph.
const EPS: f64 = 1e-3;

/// A convolution merged with its normalisation.
pub struct Folded {
    pub window: Window,
    /// Output channels, input channels, vertical, horizontal.
    pub shape: Vec<usize>,
    pub weight: Vec<f32>,
    /// One value for each output channel.
    pub bias: Vec<f32>,
    pub relu: bool,
}

/// The tensors that inference needs, complete.
pub struct Weights {
    path: PathBuf,
    arrays: Arrays,
}

impl Weights {
    /// Checks the tensors of a checkpoint.
    ///
    /// # Errors
    /// `Malformed` if a tensor is missing, extra, mis-shaped or not float32.
    pub fn new(mut checkpoint: Checkpoint) -> Result<Weights> {
        let (counters, needed): (Vec<_>, Vec<_>) =
            Inception::entries().into_iter().partition(|(name, _)| name.ends_with(COUNTER));
        let counters: BTreeSet<String> = counters.into_iter().map(|(name, _)| name).collect();
        checkpoint.tensors.retain(|(name, _)| !counters.contains(name));
        let other = checkpoint.tensors.iter().filter(|(_, tensor)| tensor.dtype != Dtype::F32);
        let other: Vec<String> = other.map(|(name, tensor)| format!("{name} ({})", tensor.dtype)).collect();
        let path = checkpoint.path.clone();
        let weights = Weights { arrays: checkpoint.arrays()?, path };
        require(&weights.path, &weights.arrays, &needed.into_iter().collect())?;
        match other.first() {
            None => Ok(weights),
            Some(first) => {
                let found = format!("{} of other types, the first {first}", other.len());
                Err(weights.unusable("f32 tensors", found))
            }
        }
    }

    /// Takes the values of a tensor.
    ///
    /// # Errors
    /// `Malformed` if a value is not finite.
    pub fn finite(&mut self, name: &str) -> Result<Vec<f32>> {
        let values = self.take(name).data;
        self.check(name, &values)?;
        Ok(values)
    }

    /// Folds a normalisation into its convolution in float64: the weight is w scale and the bias is
    /// beta - mean scale, with scale = gamma / sqrt(var + eps).
    ///
    /// # Errors
    /// `Malformed` if a result is not finite, for example because of a negative variance.
    pub fn folded(&mut self, conv: &Conv) -> Result<Folded> {
        let Array { shape, data: mut weight } = self.take(&format!("{}.conv.weight", conv.name));
        let mut of = |part: &str| {
            let array = self.take(&format!("{}.bn.{part}", conv.name));
            array.data.into_iter().map(f64::from)
        };
        let (gamma, beta, mean, var) = (of("weight"), of("bias"), of("running_mean"), of("running_var"));
        let scales: Vec<f64> = gamma.zip(var).map(|(gamma, var)| gamma / (var + EPS).sqrt()).collect();
        let bias = beta.zip(mean).zip(&scales).map(|((beta, mean), scale)| (beta - mean * scale) as f32);
        let bias: Vec<f32> = bias.collect();
        let inner = shape[1..].iter().product();
        for (weight, scale) in weight.chunks_exact_mut(inner).zip(&scales) {
            weight.iter_mut().for_each(|w| *w = (*w as f64 * scale) as f32);
        }
        self.check(&format!("{} with its normalisation", conv.name), &weight)?;
        self.check(&format!("{}.bn", conv.name), &bias)?;
        Ok(Folded { window: conv.window, shape, weight, bias, relu: true })
    }

    fn take(&mut self, name: &str) -> Array {
        self.arrays.remove(name).expect("`new` found every tensor of the network")
    }

    fn check(&self, name: &str, values: &[f32]) -> Result<()> {
        match values.iter().find(|v| !v.is_finite()) {
            None => Ok(()),
            Some(value) => Err(self.unusable("finite weights", format!("{value} in {name}"))),
        }
    }

    fn unusable(&self, expected: &str, found: String) -> Error {
        Error::malformed(&self.path, expected, found, "fetch pt_inception-2015-12-05-6726825d.pth again")
    }
}
