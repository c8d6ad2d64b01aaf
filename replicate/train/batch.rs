//! Inputs of one iteration: images and random numbers, by name. They are pure functions of (cell,
//! name, step), so no generator state is saved, and rows of a seed that draw under the same name
//! see the same images and noise.

use crate::data::Images;
use crate::network;
use crate::network::unet::Masks;
use crate::rng::{Draws, Stream};
use crate::train::augment::{self, Augmentation, Draw};
use candle_core::{Device, Result, Tensor, bail};
use std::collections::BTreeMap;
use std::ops::Range;

/// Source of the batches of a training.
pub struct Batches<'a> {
    pub images: &'a Images,
    pub device: Device,
    /// Images of one iteration.
    pub size: usize,
    /// Most images of a batch in memory at a time.
    pub microbatch: usize,
    pub augmentation: Augmentation,
    /// Key of the random streams.
    pub cell: String,
}

impl Batches<'_> {
    /// Returns the batch of iteration `step`, counted from 0.
    pub fn at(&self, step: u64) -> Batch<'_> {
        Batch { source: Source::Drawn(self), step, size: self.size, nth: 0, rows: 0..self.size }
    }
}

/// Values that are given instead of drawn, for a comparison with another program.
#[derive(Default)]
pub struct Given {
    /// Each (B, C, H, W), or (B) for one value per image.
    pub tensors: BTreeMap<String, Tensor>,
    pub augment: BTreeMap<String, Vec<Draw>>,
    pub microbatch: Option<usize>,
}

impl Given {
    /// Makes a batch of `size` images with these values.
    pub fn batch(&self, step: u64, size: usize) -> Batch<'_> {
        Batch { source: Source::Given(self), step, size, nth: 0, rows: 0..size }
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(tensor),
            None => bail!("no values are given for {name}"),
        }
    }
}

#[derive(Clone, Copy)]
enum Source<'a> {
    Drawn(&'a Batches<'a>),
    Given(&'a Given),
}

/// The images and random numbers of one iteration, or of a microbatch.
#[derive(Clone)]
pub struct Batch<'a> {
    source: Source<'a>,
    /// The iteration, counted from 0.
    pub step: u64,
    /// Images of the whole batch.
    pub size: usize,
    /// Index of the step if a network takes several in one iteration, counted from 0.
    nth: usize,
    rows: Range<usize>,
}

impl<'a> Batch<'a> {
    /// Returns the batch for the `nth` step of one network in this iteration. The first step sees
    /// this batch; the others have separate draws, from streams such as "critic.z 1" and "critic.z
    /// 2".
    pub fn nth(&self, nth: usize) -> Batch<'a> {
        Batch { nth, ..self.clone() }
    }

    fn named(&self, name: &str) -> String {
        if self.nth == 0 { name.into() } else { format!("{name} {}", self.nth) }
    }

    fn stream(&self, batches: &Batches, name: &str) -> Stream {
        Stream::new(&batches.cell, &self.named(name))
    }

    /// Images in this microbatch.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True if there are no images.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Range of these images in the whole batch.
    pub fn places(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Images that the training has seen after this iteration.
    pub fn images_seen(&self) -> u64 {
        (self.step + 1) * self.size as u64
    }

    /// Images that the training has seen before this iteration.
    pub fn images_before(&self) -> u64 {
        self.step * self.size as u64
    }

    /// Fraction of the whole batch in this microbatch.
    pub fn share(&self) -> f64 {
        self.len() as f64 / self.size as f64
    }

    /// Splits the batch into microbatches without splitting a group of `group` images.
    pub fn microbatches(&self, group: usize) -> Vec<Batch<'a>> {
        let microbatch = match self.source {
            Source::Drawn(batches) => batches.microbatch,
            Source::Given(given) => given.microbatch.unwrap_or(usize::MAX),
        };
        let each = (microbatch.min(self.len()) / group.max(1)).max(1) * group.max(1);
        let part = |first: usize| Batch { rows: first..self.rows.end.min(first + each), ..self.clone() };
        self.rows.clone().step_by(each).map(part).collect()
    }

    /// Draws standard normal numbers with the shape of the images, (B, C, H, W).
    pub fn normal(&self, name: &str) -> Result<Tensor> {
        match self.source {
            Source::Drawn(b) => self.normal_of(name, (b.images.channels, b.images.size, b.images.size)),
            Source::Given(given) => self.rows_of(given.get(&self.named(name))?),
        }
    }

    /// Draws standard normal numbers (B, C, H, W) with another shape than the images.
    pub fn normal_of(&self, name: &str, (c, h, w): (usize, usize, usize)) -> Result<Tensor> {
        match self.source {
            Source::Drawn(b) => {
                let (stream, first) = (self.stream(b, name), self.rows.start * c * h * w);
                network::normals_from(&stream, self.step, first, (self.len(), c, h, w), &b.device)
            }
            Source::Given(given) => self.rows_of(given.get(&self.named(name))?),
        }
    }

    /// Returns the dropout mask of maps (channels, height, width) for probability `p`; `None` if it
    /// is 0.
    pub fn dropout(&self, name: &str, p: f64, maps: &[(usize, usize, usize)]) -> Result<Option<Masks>> {
        if p == 0.0 {
            return Ok(None);
        }
        // Normal numbers are below this bound with probability p.
        let bound = quantile(p);
        let mask = |(i, shape): (usize, &(usize, usize, usize))| {
            self.normal_of(&format!("{name} {i}"), *shape)? - bound
        };
        Ok(Some(Masks { keep: maps.iter().enumerate().map(mask).collect::<Result<_>>()?, p }))
    }

    /// Draws one value for each image; `draw` takes it from the stream `name`.
    pub fn each(&self, name: &str, mut draw: impl FnMut(&mut Draws) -> f32) -> Result<Vec<f32>> {
        match self.source {
            Source::Drawn(b) => {
                let mut draws = self.stream(b, name).at(self.step);
                let all: Vec<f32> = (0..self.rows.end).map(|_| draw(&mut draws)).collect();
                Ok(all[self.rows.clone()].to_vec())
            }
            Source::Given(given) => self.rows_of(given.get(&self.named(name))?)?.to_vec1(),
        }
    }

    /// Draws `n` values for the whole batch; they stay the same for `every` iterations.
    pub fn common(
        &self,
        name: &str,
        every: u64,
        n: usize,
        mut draw: impl FnMut(&mut Draws) -> f32,
    ) -> Result<Vec<f32>> {
        match self.source {
            Source::Drawn(b) => {
                let mut draws = self.stream(b, name).at(self.step / every);
                Ok((0..n).map(|_| draw(&mut draws)).collect())
            }
            Source::Given(given) => given.get(&self.named(name))?.to_vec1(),
        }
    }

    /// Mirrors half of the images `x` (B, C, H, W) if images are augmented; else returns `x`.
    pub fn mirror(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        match self.source {
            Source::Drawn(b) if b.augmentation.p > 0.0 => {
                let keep = self.each(name, |draws| draws.below(2) as f32)?;
                let turn: Vec<f32> = keep.iter().map(|keep| 1.0 - keep).collect();
                network::mix(x, &keep, &x.flip(&[3])?, &turn)
            }
            _ => Ok(x.clone()),
        }
    }

    /// Moves each image of `x` (B, C, H, W) by up to `most` pixels in either direction, and repeats
    /// its border. Gradients do not pass.
    pub fn shifted(&self, name: &str, x: &Tensor, most: usize) -> Result<Tensor> {
        let draw = |axis: &str| {
            self.each(&format!("{name}.{axis}"), |draws| draws.below(2 * most + 1) as f32 - most as f32)
        };
        let (down, right) = (draw("down")?, draw("right")?);
        let (_, c, h, w) = x.dims4()?;
        let from = x.flatten_all()?.to_vec1::<f32>()?;
        let mut to = Vec::with_capacity(from.len());
        let source =
            |at: usize, by: f32, n: usize| (at as isize - by as isize).clamp(0, n as isize - 1) as usize;
        for (plane, pixels) in from.chunks_exact(h * w).enumerate() {
            let (down, right) = (down[plane / c], right[plane / c]);
            for row in 0..h {
                let line = &pixels[source(row, down, h) * w..][..w];
                to.extend((0..w).map(|column| line[source(column, right, w)]));
            }
        }
        Tensor::from_vec(to, x.dims(), x.device())
    }

    /// Draws training images (B, C, H, W) in [-1, 1].
    pub fn images(&self, name: &str) -> Result<Tensor> {
        match self.source {
            Source::Drawn(b) => {
                let shape = (self.len(), b.images.channels, b.images.size, b.images.size);
                Tensor::from_vec(b.images.to_unit(&self.indices(name, b)), shape, &b.device)
            }
            Source::Given(given) => self.rows_of(given.get(&self.named(name))?),
        }
    }

    /// Returns the classes of the images that [`Batch::images`] draws with the same name.
    ///
    /// # Errors
    /// If values are given instead of drawn.
    pub fn labels(&self, name: &str) -> Result<Vec<u32>> {
        match self.source {
            Source::Drawn(b) => Ok(self.indices(name, b).into_iter().map(|i| b.images.labels[i]).collect()),
            Source::Given(_) => bail!("{name} has no labels where values are given"),
        }
    }

    /// Applies EDM's augmentation to `x` (B, C, H, W); also returns the labels, B x 9 in one row.
    /// Returns `x` itself if nothing is augmented. Gradients do not pass.
    pub fn augment(&self, name: &str, x: &Tensor) -> Result<(Tensor, Option<Vec<f32>>)> {
        let draws = match self.source {
            Source::Drawn(b) if b.augmentation.p > 0.0 => {
                let mut draws = self.stream(b, name).at(self.step);
                let all: Vec<Draw> = (0..self.rows.end).map(|_| b.augmentation.draw(&mut draws)).collect();
                all[self.rows.clone()].to_vec()
            }
            Source::Given(given) if given.augment.contains_key(&self.named(name)) => {
                given.augment[&self.named(name)][self.rows.clone()].to_vec()
            }
            _ => return Ok((x.clone(), None)),
        };
        let labels = draws.iter().flat_map(Draw::labels).collect();
        Ok((augment::apply_where_it_is(x, &draws)?, Some(labels)))
    }

    fn indices(&self, name: &str, b: &Batches) -> Vec<usize> {
        let mut draws = self.stream(b, name).at(self.step);
        let all: Vec<usize> = (0..self.rows.end).map(|_| draws.below(b.images.len())).collect();
        all[self.rows.clone()].to_vec()
    }

    fn rows_of(&self, all: &Tensor) -> Result<Tensor> {
        all.narrow(0, self.rows.start, self.len())
    }
}

/// Returns the z with P(N(0, 1) < z) = `p`, by bisection.
fn quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-10.0, 10.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        let below = 0.5 * libm::erfc(-middle * std::f64::consts::FRAC_1_SQRT_2);
        if below < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_shifted_and_their_border_repeated() -> Result<()> {
        let device = Device::Cpu;
        let x = Tensor::arange(0f32, 18.0, &device)?.reshape((2, 1, 3, 3))?;
        let by = |values: [f32; 2]| Tensor::new(&values, &device);
        let given = Given {
            tensors: [("shift.down".into(), by([1.0, 0.0])?), ("shift.right".into(), by([-1.0, 2.0])?)]
                .into(),
            ..Given::default()
        };
        let shifted = given.batch(0, 2).shifted("shift", &x, 2)?.flatten_all()?.to_vec1::<f32>()?;
        let first = [1.0, 2.0, 2.0, 1.0, 2.0, 2.0, 4.0, 5.0, 5.0];
        let second = [9.0, 9.0, 9.0, 12.0, 12.0, 12.0, 15.0, 15.0, 15.0];
        assert_eq!(shifted, [first, second].concat());
        Ok(())
    }

    #[test]
    fn quantiles_are_scipy_s() {
        // scipy.stats.norm.ppf
        for (p, z) in [(0.13, -1.1263911290388007), (0.5, 0.0), (0.999, 3.090232306167813)] {
            assert!((quantile(p) - z).abs() < 1e-9, "{p}");
        }
    }
}
