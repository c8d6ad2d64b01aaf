//! Student's t distribution, for golden intervals and claims, and Holm's correction.

/// Returns P(T <= t) of Student's t with `dof` > 0 degrees of freedom. The tail beyond |t| is half
/// the regularised incomplete beta function (DLMF 8.17).
pub fn t_cdf(t: f64, dof: f64) -> f64 {
    let tail = 0.5 * incomplete_beta(0.5 * dof, 0.5, dof / (dof + t * t));
    if t > 0.0 { 1.0 - tail } else { tail }
}

/// Returns the t with P(T <= t) = `p` for 0 < `p` < 1, by bisection of [`t_cdf`].
pub fn t_quantile(p: f64, dof: f64) -> f64 {
    if p < 0.5 {
        return -t_quantile(1.0 - p, dof);
    }
    let (mut low, mut high) = (0.0, 1.0);
    while t_cdf(high, dof) < p {
        (low, high) = (high, 2.0 * high);
    }
    // This many halvings of a bracket below 2 * low reach the last bits of a float64.
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if t_cdf(middle, dof) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Holm's step-down correction of p-values, in the order of `p`. They belong to a family of `tests`
/// tests, whose other p-values are larger.
pub fn holm(p: &[f64], tests: usize) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let (mut adjusted, mut largest) = (vec![0.0; p.len()], 0.0f64);
    for (rank, at) in order.into_iter().enumerate() {
        largest = largest.max(p[at] * tests.saturating_sub(rank) as f64).min(1.0);
        adjusted[at] = largest;
    }
    adjusted
}

/// Returns I_x(a, b) by the continued fraction DLMF 8.17.22 and Lentz's method.
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    // The fraction converges fast only below the mean; I_x(a, b) = 1 - I_{1-x}(b, a).
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let term = |m: f64, odd: bool| {
        if odd {
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
        } else {
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
        }
    };
    let nonzero = |v: f64| if v.abs() < 1e-300 { 1e-300 } else { v };
    let (mut c, mut d, mut fraction) = (1.0, 0.0, 1.0);
    for k in 1..500 {
        let numerator = term((k / 2) as f64, k % 2 == 1);
        d = 1.0 / nonzero(1.0 + numerator * d);
        c = nonzero(1.0 + numerator / c);
        fraction *= c * d;
        if (c * d - 1.0).abs() < 1e-16 {
            break;
        }
    }
    let log_beta = libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b);
    (a * x.ln() + b * (1.0 - x).ln() - log_beta).exp() / (a * fraction)
}
