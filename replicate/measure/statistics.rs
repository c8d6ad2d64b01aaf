//! Mean and covariance of a feature network's outputs, in EDM's form: an `.npz` of
//! `mu` (d) and `sigma` (d x d), float64.

use crate::error::Result;
use crate::measure::metrics::frechet::Factor;
use crate::store::formats::Fault;
use crate::store::formats::npz::{self, Array, Stored};
use crate::store::formats::torch::Dtype;
use std::path::Path;

#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    pub mean: Vec<f64>,
    /// Row-major and exactly symmetric.
    pub covariance: Vec<f64>,
}

/// Dimensions of the widest features.
pub const WIDEST: usize = 8192;

impl Statistics {
    /// # Errors
    /// `Malformed` unless `path` holds finite `mu` and a symmetric `sigma` of one size.
    pub fn read(path: &Path) -> Result<Statistics> {
        Statistics::parse(path).map_err(|fault| {
            fault.at(path, "an .npz with the arrays mu (d) and sigma (d x d)", "fetch or make it again")
        })
    }

    /// `mu` and `sigma` of a file, and none of what it may hold beside them. The
    /// two halves of `sigma` may differ by the rounding of float32, in which many
    /// programs sum, and are averaged.
    pub fn parse(path: &Path) -> std::result::Result<Statistics, Fault> {
        let (arrays, _) = npz::list(path)?;
        let find = |name: &str| {
            let array = arrays.iter().find(|array| array.name == name);
            array.ok_or_else(|| Fault::from(format!("has no array {name}")))
        };
        let (mu, sigma) = (find("mu")?, find("sigma")?);
        let d = *mu.shape.first().unwrap_or(&0);
        if !(1..=WIDEST).contains(&d) || mu.shape != [d] {
            return Err(format!("has mu of the shape {:?}", mu.shape).into());
        }
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
        let rounding = match sigma.kind() {
            Some((Dtype::F16, _)) => 1e-3,
            _ => 1e-6,
        };
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
        Ok(Statistics { mean, covariance })
    }

    /// What distances are taken of; costs about d^3.
    ///
    /// # Errors
    /// As [`Factor::new`].
    pub fn factor(&self) -> Result<Factor> {
        Factor::new(self.mean.clone(), &self.covariance)
    }

    /// As a file.
    pub fn to_npz(&self) -> Vec<u8> {
        let d = self.mean.len();
        let array = |shape: &[usize], data: &[f64]| Array { shape: shape.to_vec(), data: data.to_vec() };
        npz::write(&[("mu", &array(&[d], &self.mean)), ("sigma", &array(&[d, d], &self.covariance))])
    }
}
