//! Zero insertion, padding, a separable filter and decimation: StyleGAN2's `upfirdn2d`.

use candle_core::{Result, Tensor};

/// Resampling along one axis of pixels: inserts zeros, pads the ends, applies the filter and keeps
/// every `down`th value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resample {
    /// Distance between two pixels after zeros are inserted behind each.
    pub up: usize,
    /// Zeros before and after; if negative, that many values are cut off.
    pub pad: [isize; 2],
    /// The filter; it must be symmetric.
    pub taps: &'static [f32],
    pub down: usize,
}

impl Resample {
    /// Length of the output for `n` pixels.
    pub fn output(&self, n: usize) -> usize {
        let padded = (n * self.up) as isize + self.pad[0] + self.pad[1];
        (padded + 1 - self.taps.len() as isize).max(0).unsigned_abs().div_ceil(self.down)
    }

    /// Returns the resampling that takes a gradient of the output back to `n` pixels.
    pub fn transposed(&self, n: usize) -> Resample {
        let reach = self.taps.len() as isize - 1;
        let before = reach - self.pad[0];
        let after = ((n - 1) * self.up) as isize + 1 + reach - (self.output(n) * self.down) as isize - before;
        Resample { up: self.down, pad: [before, after], taps: self.taps, down: self.up }
    }

    /// Returns the input pixels below `n` that contribute to output `at`, each with its filter tap.
    pub fn covered(&self, at: usize, n: usize) -> impl Iterator<Item = (usize, f32)> + use<> {
        let Resample { up, pad: [before, _], taps, down } = *self;
        taps.iter().enumerate().filter_map(move |(k, tap)| {
            let place = (at * down + k).checked_add_signed(-before)?;
            (place.is_multiple_of(up) && place / up < n).then_some((place / up, *tap))
        })
    }

    /// Resamples one axis of `x` with candle's operations.
    pub fn along(&self, x: &Tensor, axis: usize) -> Result<Tensor> {
        let (n, m) = (x.dim(axis)?, self.output(x.dim(axis)?));
        let inner: usize = x.dims()[axis + 1..].iter().product();
        let mut dims = x.dims().to_vec();
        let mut x = x.contiguous()?.reshape(((), n, 1, inner))?;
        x = x.pad_with_zeros(2, 0, self.up - 1)?.reshape(((), n * self.up, inner))?;
        for (at_end, pad) in self.pad.into_iter().enumerate() {
            let (zeros, cut) = (pad.max(0) as usize, (-pad).max(0) as usize);
            let (left, right) = if at_end == 1 { (0, zeros) } else { (zeros, 0) };
            let from = if at_end == 1 { 0 } else { cut };
            x = x.narrow(1, from, x.dim(1)? - cut)?.pad_with_zeros(1, left, right)?;
        }
        let reach = x.dim(1)? + 1 - self.taps.len();
        let mut y: Option<Tensor> = None;
        for (k, tap) in self.taps.iter().enumerate() {
            let part = (x.narrow(1, k, reach)? * f64::from(*tap))?;
            y = Some(y.map_or(Ok(part.clone()), |y| y + part)?);
        }
        let y = y.expect("a filter has taps").pad_with_zeros(1, 0, m * self.down - reach)?;
        dims[axis] = m;
        y.reshape(((), m, self.down, inner))?.narrow(2, 0, 1)?.reshape(dims)
    }
}
