//! EDM's preconditioning (Karras et al. 2022, Table 1), in float32 on the host.

/// Standard deviation of the data, as EDM's preconditioning assumes it.
pub const SIGMA_DATA: f32 = 0.5;

/// Coefficients of D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), one for each image.
pub struct Precondition {
    pub skip: Vec<f32>,
    pub out: Vec<f32>,
    pub input: Vec<f32>,
    pub noise: Vec<f32>,
}

impl Precondition {
    /// Computes the coefficients at noise levels `sigma` (B).
    pub fn at(sigma: &[f32]) -> Precondition {
        let d2 = SIGMA_DATA * SIGMA_DATA;
        let each = |f: &dyn Fn(f32) -> f32| sigma.iter().map(|s| f(*s)).collect();
        Precondition {
            skip: each(&|s| d2 / (s * s + d2)),
            out: each(&|s| s * SIGMA_DATA / (s * s + d2).sqrt()),
            input: each(&|s| 1.0 / (s * s + d2).sqrt()),
            noise: each(&|s| libm::logf(s) / 4.0),
        }
    }

    /// Derivatives of the coefficients with respect to sigma.
    pub fn slopes(sigma: &[f32]) -> Precondition {
        let d2 = SIGMA_DATA * SIGMA_DATA;
        let each = |f: &dyn Fn(f32, f32) -> f32| sigma.iter().map(|s| f(*s, s * s + d2)).collect();
        Precondition {
            skip: each(&|s, v| -2.0 * s * d2 / (v * v)),
            out: each(&|_, v| SIGMA_DATA * d2 / (v * v.sqrt())),
            input: each(&|s, v| -s / (v * v.sqrt())),
            noise: each(&|s, _| 0.25 / s),
        }
    }
}
