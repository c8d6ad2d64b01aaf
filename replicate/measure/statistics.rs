//! Mean and covariance of a feature network's outputs, in EDM's format: an `.npz` with `mu` (d) and
//! `sigma` (d x d), float64.

use crate::error::Result;
use crate::measure::metrics::frechet::{Factor, Moments, SINGLE};
use crate::store::formats::Fault;
use crate::store::formats::npz::{self, Array, Stored};
use std::path::Path;

/// Mean and covariance of features.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    pub mean: Vec<f64>,
    /// Row-major and exactly symmetric.
    pub covariance: Vec<f64>,
    /// Rounding of the covariance relative to its largest entry, see [`SINGLE`].
    pub rounding: f64,
}

/// Rounding of statistics in float16, as [`SINGLE`].
const HALF: f64 = 1e-3;

/// Largest number of dimensions that is accepted.
pub const WIDEST: usize = 8192;

impl Statistics {
    /// Computes the statistics of features.
    pub fn of(moments: &Moments) -> Statistics {
        Statistics { mean: moments.mean(), covariance: moments.covariance(), rounding: SINGLE }
    }

    /// Reads statistics from a file.
    ///
    /// # Errors
    /// `Malformed` unless `path` holds a finite `mu` and a symmetric `sigma` of one size.
    pub fn read(path: &Path) -> Result<Statistics> {
        Statistics::parse(path).map_err(|fault| {
            let remedy = "fetch or make it again, with both as float32 or float64";
            fault.at(path, "an .npz with the arrays mu (d) and sigma (d x d)", remedy)
        })
    }

    /// Parses `mu` (d, or 1 x d) and `sigma` of a file and ignores other arrays. The two triangles of
    /// `sigma` may differ by the rounding of float32, in which many programs sum, or of float16 if
    /// all entries are numbers of float16, whatever their type; they are averaged.
    pub fn parse(path: &Path) -> std::result::Result<Statistics, Fault> {
        let (arrays, _) = npz::list(path)?;
        let find = |name: &str| {
            let array = arrays.iter().find(|array| array.name == name);
            array.ok_or_else(|| Fault::from(format!("has no array {name}")))
        };
        let (mu, sigma) = (find("mu")?, find("sigma")?);
        let d = match mu.shape[..] {
            [d] | [1, d] if (1..=WIDEST).contains(&d) => d,
            _ => return Err(format!("has mu of the shape {:?}", mu.shape).into()),
        };
        if sigma.shape != [d, d] {
            return Err(format!("has sigma of the shape {:?} beside mu of {d}", sigma.shape).into());
        }
        let finite = |array: &Stored| {
            let data = array.read(path)?.data;
            match data.iter().all(|x| x.is_finite()) {
                true => Ok(data),
                false => Err(Fault::from(format!("has {} with NaN or infinity", array.name))),
            }
        };
        let (mean, mut covariance) = (finite(mu)?, finite(sigma)?);
        let largest = covariance.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        let rounding = if covariance.iter().all(|x| is_half(*x)) { HALF } else { SINGLE };
        for i in 0..d {
            for j in 0..i {
                let (a, b) = (covariance[i * d + j], covariance[j * d + i]);
                if (a - b).abs() > rounding * largest {
                    return Err(format!("has a sigma that is not symmetric, at ({i}, {j})").into());
                }
                let mean = if a == b { a } else { a / 2.0 + b / 2.0 };
                (covariance[i * d + j], covariance[j * d + i]) = (mean, mean);
            }
        }
        Ok(Statistics { mean, covariance, rounding })
    }

    /// Factors the covariance for distances. Takes O(d^3) time.
    ///
    /// # Errors
    /// See [`Factor::rounded`].
    pub fn factor(&self) -> Result<Factor> {
        Factor::rounded(self.mean.clone(), &self.covariance, self.rounding)
    }

    /// Returns the content of an `.npz` file.
    pub fn to_npz(&self) -> Vec<u8> {
        let d = self.mean.len();
        let array = |shape: &[usize], data: &[f64]| Array { shape: shape.to_vec(), data: data.to_vec() };
        npz::write(&[("mu", &array(&[d], &self.mean)), ("sigma", &array(&[d, d], &self.covariance))])
    }
}

/// True for the numbers of float16: ten bits of fraction, at most 65504, multiples of 2^-24.
fn is_half(x: f64) -> bool {
    x.to_bits() << 22 == 0 && x.abs() <= 65504.0 && (x * 2f64.powi(24)).fract() == 0.0
}
