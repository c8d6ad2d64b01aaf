//! A network in training, and all that is written once for every method: gradient
//! accumulation, the optimiser's step, the average, state and restore.

use crate::network::elsewhere;
use crate::network::params::{Arrays, Params, Source};
use crate::train::adam::{Adam, AdamConfig, Ema};
use crate::train::batch::Batch;
use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;

/// A network in training: what is learned, and the network with and without gradients.
pub struct Net<M> {
    pub learned: Learned,
    pub model: M,
    /// The same parameters without gradients; they follow every update.
    pub frozen: M,
    /// Images whose loss must be computed together, in microbatches too.
    group: usize,
    /// Bound of each element of a gradient.
    clip: Option<f64>,
}

/// What a training changes: parameters, the optimiser's state, the moving average.
pub struct Learned {
    pub params: Params,
    optimiser: Adam,
    /// Published.
    average: Option<Ema>,
    /// Of a network that the loss asks.
    target: Option<Ema>,
}

impl<M> Net<M> {
    pub fn new(
        device: &Device,
        source: &Source,
        optimiser: AdamConfig,
        build: impl Fn(VarBuilder) -> Result<M>,
    ) -> Result<Net<M>> {
        let (params, model) = Params::build(device, source, &build)?;
        let frozen = params.frozen(&build)?;
        let optimiser = Adam::new(optimiser, &params)?;
        Ok(Net {
            learned: Learned { params, optimiser, average: None, target: None },
            model,
            frozen,
            group: 1,
            clip: None,
        })
    }

    /// Keeps a moving average of the parameters, with a half-life in images; it is
    /// what is published.
    pub fn averaged(mut self, half_life: u64) -> Result<Net<M>> {
        self.learned.average = Some(Ema::new(half_life, &self.learned.params)?);
        Ok(self)
    }

    /// A network of the same kind whose weights follow these, each step of the optimiser
    /// leaving `decay` of the difference.
    pub fn followed(mut self, decay: f64, build: impl Fn(VarBuilder) -> Result<M>) -> Result<(Net<M>, M)> {
        let target = Ema::of_steps(decay, &self.learned.params)?;
        let network = target.network(build)?;
        self.learned.target = Some(target);
        Ok((self, network))
    }

    /// Never cuts `images` consecutive images of a batch apart.
    pub fn in_groups(mut self, images: usize) -> Net<M> {
        self.group = images;
        self
    }

    /// Bounds each element of a gradient to [-bound, bound].
    pub fn clipped(mut self, bound: f64) -> Net<M> {
        self.clip = Some(bound);
        self
    }

    /// One step of the optimiser down the first value of `loss`, a mean over the images
    /// that it is given; the others are watched. Gives the values of the whole batch:
    /// scalars on the device, because reading them would wait for a GPU.
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

    /// `times` steps as [`Net::descend`], each with draws of its own; the values of the last.
    pub fn descend_times(
        &mut self,
        times: usize,
        batch: &Batch,
        lr: f64,
        loss: impl Fn(&M, &Batch) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        (0..times).try_fold(Vec::new(), |_, nth| self.descend(&batch.nth(nth), lr, &loss))
    }

    /// The gradients of the first value of `loss` over the whole batch, and all values.
    pub fn gradients(
        &self,
        batch: &Batch,
        loss: impl Fn(&M, &Batch) -> Result<Vec<Tensor>>,
    ) -> Result<(GradStore, Vec<Tensor>)> {
        let (mut sum, mut totals) = (None, Vec::new());
        for part in batch.parts(self.group) {
            let values = loss(&self.model, &part)?;
            let values: Vec<Tensor> =
                values.into_iter().map(|v| shared(v, part.share())).collect::<Result<_>>()?;
            sum = Some(self.learned.params.add_gradients(sum, elsewhere::gradients(&values[0])?)?);
            let values = values.iter().map(Tensor::detach);
            totals = match totals.is_empty() {
                true => values.collect(),
                false => values.zip(&totals).map(|(v, total)| total + v).collect::<Result<_>>()?,
            };
        }
        Ok((sum.expect("a batch is not empty"), totals))
    }

    /// The optimiser's step, then those of the averages.
    pub fn update(&mut self, batch: &Batch, mut gradients: GradStore, lr: f64) -> Result<()> {
        let Learned { params, optimiser, average, target } = &mut self.learned;
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

impl Learned {
    /// What is published: the average where there is one, else the parameters.
    pub fn weights(&self) -> Result<Arrays> {
        match &self.average {
            Some(average) => average.arrays(),
            None => self.params.arrays(),
        }
    }

    /// Everything that the next step depends on, under names that begin with `prefix`.
    pub fn state(&self, prefix: &str, into: &mut Arrays) -> Result<()> {
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

/// The arrays whose names start with `prefix`, without it.
pub fn strip(arrays: &Arrays, prefix: &str) -> Arrays {
    arrays.iter().filter_map(|(n, a)| Some((n.strip_prefix(prefix)?.to_string(), a.clone()))).collect()
}

/// A value of a part of the batch, as much of it as the part is of the whole.
fn shared(value: Tensor, share: f64) -> Result<Tensor> {
    if share == 1.0 { Ok(value) } else { value * share }
}
