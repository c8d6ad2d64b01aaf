//! Mean and covariance of a feature network's outputs, in EDM's form: an `.npz` of
//! `mu` (d) and `sigma` (d x d), float64.

use crate::error::{Error, Result};
use crate::measure::metrics::frechet::Factor;
use crate::store::formats::npz::{self, Array};
use std::path::Path;

#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    pub mean: Vec<f64>,
    /// Row-major.
    pub covariance: Vec<f64>,
}

impl Statistics {
    /// # Errors
    /// `Malformed` unless `path` holds finite `mu` and a symmetric `sigma` of one size.
    pub fn read(path: &Path) -> Result<Statistics> {
        Statistics::parse(path).map_err(|found| Error::Malformed {
            path: path.to_path_buf(),
            expected: "an .npz with the arrays mu (d) and sigma (d x d)".into(),
            found: format!("it {found}"),
            remedy: "fetch or make it again".into(),
        })
    }

    /// The error says what is wrong with the file.
    pub fn parse(path: &Path) -> std::result::Result<Statistics, String> {
        let mut arrays = npz::read(path)?;
        let mut take = |name: &str| match arrays.remove(name) {
            None => Err(format!("has no array {name}")),
            Some(array) if array.data.iter().any(|x| !x.is_finite()) => {
                Err(format!("has {name} with NaN or infinity"))
            }
            Some(array) => Ok(array),
        };
        let (mean, covariance) = (take("mu")?, take("sigma")?);
        let d = mean.data.len();
        if d == 0 || mean.shape != [d] {
            return Err(format!("has mu of the shape {:?}", mean.shape));
        }
        if covariance.shape != [d, d] {
            return Err(format!("has sigma of the shape {:?} beside mu of {d}", covariance.shape));
        }
        let largest = covariance.data.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        let apart = |i: usize, j: usize| (covariance.data[i * d + j] - covariance.data[j * d + i]).abs();
        match (0..d).flat_map(|i| (0..i).map(move |j| (i, j))).find(|&(i, j)| apart(i, j) > 1e-9 * largest) {
            Some((i, j)) => Err(format!("has a sigma that is not symmetric, at ({i}, {j})")),
            None => Ok(Statistics { mean: mean.data, covariance: covariance.data }),
        }
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
