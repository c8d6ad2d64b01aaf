//! iPNDM (Zhang and Chen 2023, arXiv 2204.13902; Liu et al. 2022, arXiv 2202.09778), a linear
//! multistep method of order 4. AMED-Plugin uses it for the student and the teacher.

use super::{Denoise, slope, start};
use candle_core::{Result, Tensor};
use std::collections::VecDeque;

/// Adams-Bashforth coefficients for equal steps, that of the present slope first.
const COEFFICIENTS: [&[f64]; 4] = [
    &[1.0],
    &[3.0 / 2.0, -1.0 / 2.0],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

/// Slopes of a trajectory so far, the latest first.
#[derive(Default)]
pub struct History(VecDeque<Tensor>);

impl History {
    /// Returns the direction of a step from a state with slope `d`, and adds `d`, held constant, to
    /// the history. The order is the highest that the history allows, up to 4. iPNDM uses the
    /// coefficients of equal steps although its steps are not equal.
    pub fn direction(&mut self, d: &Tensor) -> Result<Tensor> {
        let order = COEFFICIENTS.len().min(self.0.len() + 1);
        let (first, rest) = COEFFICIENTS[order - 1].split_first().expect("every order has coefficients");
        let direction = rest.iter().zip(&self.0).try_fold((d * *first)?, |sum, (c, p)| sum + (p * *c)?)?;
        self.0.truncate(COEFFICIENTS.len() - 2);
        self.0.push_front(d.detach());
        Ok(direction)
    }
}

/// Computes the states (B, C, H, W) at each of `levels` from latents `z` ~ N(0, I), in float64,
/// with one call for each step.
pub fn ipndm(denoise: Denoise, z: &Tensor, levels: &[f64]) -> Result<Vec<Tensor>> {
    let mut states = vec![start(z, levels)?];
    let mut history = History::default();
    for pair in levels.windows(2) {
        let (x, sigma) = (&states[states.len() - 1], pair[0]);
        let direction = history.direction(&slope(denoise, x, sigma)?)?;
        states.push((x + (direction * (pair[1] - sigma))?)?);
    }
    Ok(states)
}
