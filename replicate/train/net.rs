//! A network in training, and the code that all methods share: gradient accumulation, optimiser
//! step, moving average, saving and restoring.

use crate::network::Variables;
use crate::network::device::Compute;
use crate::network::params::{Arrays, Params, Source};
use crate::train::adam::{Adam, AdamConfig, Ema};
use crate::train::batch::Batch;
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};

/// A network in training, with and without gradients.
pub struct Net<M> {
    pub state: TrainState,
    pub model: M,
    /// The network on the same parameters without gradients; it follows every update.
    pub frozen: M,
    /// Consecutive images whose loss must be computed together, also in microbatches.
    group: usize,
    /// Bound of each element of a gradient.
    clip: Option<f64>,
}

/// State that a training changes: parameters, optimiser, moving averages.
pub struct TrainState {
    pub params: Params,
    optimiser: Adam,
    /// Average that is published.
    average: Option<Ema>,
    /// Average of a target network that the loss uses.
    target: Option<Ema>,
}

impl<M> Net<M> {
    /// Builds the network and its optimiser.
    ///
    /// # Errors
    /// If a given array is missing or has the wrong shape.
    pub fn new(
        compute: &Compute,
        source: &Source,
        optimiser: AdamConfig,
        build: impl Fn(Variables) -> Result<M>,
    ) -> Result<Net<M>> {
        let (params, model) = Params::build(compute, source, &build)?;
        let frozen = params.frozen(&build)?;
        let optimiser = Adam::new(optimiser, &params)?;
        Ok(Net {
            state: TrainState { params, optimiser, average: None, target: None },
            model,
            frozen,
            group: 1,
            clip: None,
        })
    }

    /// Keeps and publishes a moving average of the parameters, with a half-life in images.
    pub fn with_ema(mut self, half_life: u64) -> Result<Net<M>> {
        self.state.average = Some(Ema::new(half_life, &self.state.params)?);
        Ok(self)
    }

    /// Also returns a target network whose weights are a moving average of these; each optimiser
    /// step keeps `decay` of the average.
    pub fn with_target(mut self, decay: f64, build: impl Fn(Variables) -> Result<M>) -> Result<(Net<M>, M)> {
        let target = Ema::of_steps(decay, &self.state.params)?;
        let network = target.network(&self.state.params, build)?;
        self.state.target = Some(target);
        Ok((self, network))
    }

    /// Keeps every `images` consecutive images of a batch in one microbatch.
    pub fn in_groups(mut self, images: usize) -> Net<M> {
        self.group = images;
        self
    }

    /// Clips each element of a gradient to [-bound, bound].
    pub fn clipped(mut self, bound: f64) -> Net<M> {
        self.clip = Some(bound);
        self
    }

    /// Takes one optimiser step on the first value of `loss`, which must be a mean over its images;
    /// the other values are only logged. Returns the values for the whole batch as scalars on the
    /// device, because reading them would wait for the GPU.
    pub fn descend(
        &mut self,
        batch: &Batch,
        lr: f64,
        loss: impl Fn(&M, &Batch) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        let (gradients, values) = self.gradients(batch, loss)?;
        self.update(batch, gradients, lr)?;
        Ok(values)
    }

    /// Takes `times` steps with [`Net::descend`], each with separate draws. Returns the values of
    /// the last step.
    pub fn descend_times(
        &mut self,
        times: usize,
        batch: &Batch,
        lr: f64,
        loss: impl Fn(&M, &Batch) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        (0..times).try_fold(Vec::new(), |_, nth| self.descend(&batch.nth(nth), lr, &loss))
    }

    /// Computes the gradients of the first value of `loss` over the whole batch, and all values.
    pub fn gradients(
        &self,
        batch: &Batch,
        loss: impl Fn(&M, &Batch) -> Result<Vec<Tensor>>,
    ) -> Result<(GradStore, Vec<Tensor>)> {
        let (mut sum, mut totals) = (None, Vec::new());
        for part in batch.microbatches(self.group) {
            let values = loss(&self.model, &part)?;
            let values: Vec<Tensor> =
                values.into_iter().map(|v| shared(v, part.share())).collect::<Result<_>>()?;
            sum = Some(self.state.params.add_gradients(sum, self.state.params.gradients(&values[0])?)?);
            let values = values.iter().map(Tensor::detach);
            totals = match totals.is_empty() {
                true => values.collect(),
                false => values.zip(&totals).map(|(v, total)| total + v).collect::<Result<_>>()?,
            };
        }
        Ok((sum.expect("a batch is not empty"), totals))
    }

    /// Takes the optimiser's step, then updates the averages.
    pub fn update(&mut self, batch: &Batch, mut gradients: GradStore, lr: f64) -> Result<()> {
        let TrainState { params, optimiser, average, target } = &mut self.state;
        if let Some(bound) = self.clip {
            for (_, var) in params.iter() {
                if let Some(gradient) = gradients.remove(var) {
                    gradients.insert(var, gradient.clamp(-bound, bound)?);
                }
            }
        }
        optimiser.update(params, &gradients, lr)?;
        for average in average.iter_mut().chain(target) {
            average.update(params, batch.images_seen(), batch.size)?;
        }
        Ok(())
    }
}

impl TrainState {
    /// Returns the published weights: the average if there is one, else the parameters.
    pub fn weights(&self) -> Result<Arrays> {
        match &self.average {
            Some(average) => average.arrays(),
            None => self.params.arrays(),
        }
    }

    /// Adds everything that the next step depends on to `into`, with names that begin with
    /// `prefix`.
    pub fn save(&self, prefix: &str, into: &mut Arrays) -> Result<()> {
        let mut add = |kind: &str, arrays: Arrays| {
            into.extend(arrays.into_iter().map(|(name, array)| (format!("{prefix}.{kind}.{name}"), array)));
        };
        add("weights", self.params.arrays()?);
        add("adam", self.optimiser.arrays()?);
        for (kind, average) in [("ema", &self.average), ("target", &self.target)] {
            if let Some(average) = average {
                add(kind, average.arrays()?);
            }
        }
        Ok(())
    }

    /// Restores what [`TrainState::save`] added.
    ///
    /// # Errors
    /// If an array is missing or has the wrong shape.
    pub fn restore(&mut self, prefix: &str, from: &Arrays) -> Result<()> {
        let of = |kind: &str| strip(from, &format!("{prefix}.{kind}."));
        self.params.assign(&of("weights"))?;
        self.optimiser.restore(&of("adam"))?;
        for (kind, average) in [("ema", &mut self.average), ("target", &mut self.target)] {
            if let Some(average) = average {
                average.restore(&of(kind))?;
            }
        }
        Ok(())
    }
}

/// Returns the arrays whose names start with `prefix`, without the prefix.
pub fn strip(arrays: &Arrays, prefix: &str) -> Arrays {
    arrays.iter().filter_map(|(n, a)| Some((n.strip_prefix(prefix)?.to_string(), a.clone()))).collect()
}

/// Weights the value of a microbatch by its share of the batch.
fn shared(value: Tensor, share: f64) -> Result<Tensor> {
    if share == 1.0 { Ok(value) } else { value * share }
}
