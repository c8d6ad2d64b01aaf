//! One quantity over seeds, and numbers as text.

/// Summary of one quantity over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    pub n: usize,
    pub mean: f64,
    /// Sample standard deviation (n - 1 in the denominator); `None` for one seed.
    pub sd: Option<f64>,
}

impl Sample {
    /// # Panics
    /// If there are no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Sample {
        let values: Vec<f64> = values.into_iter().collect();
        assert!(!values.is_empty(), "no values have no mean");
        let n = values.len();
        // The mean of equal values can differ from them in its last bit.
        let equal = values.iter().all(|x| *x == values[0]);
        let mean = if equal { values[0] } else { values.iter().sum::<f64>() / n as f64 };
        let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
        Sample { n, mean, sd: (n > 1).then(|| (squares / (n as f64 - 1.0)).sqrt()) }
    }

    /// Formats `58.41 ± 7.20 (n=3)`.
    pub fn text(&self, digits: usize) -> String {
        match self.sd {
            Some(sd) => format!("{:.digits$} ± {sd:.digits$} (n={})", self.mean, self.n),
            None => format!("{:.digits$} (n=1)", self.mean),
        }
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.text(decimals(self.mean)))
    }
}

/// Returns the decimals that show at least three digits of `x`, and none of a large whole number.
pub(super) fn decimals(x: f64) -> usize {
    match x.abs() {
        a if a >= 1000.0 && a.fract() == 0.0 => 0,
        a if a >= 1.0 || a == 0.0 || !a.is_finite() => 2,
        a => (2.0 - a.log10().floor()).clamp(3.0, 12.0) as usize,
    }
}

/// Formats a single number.
pub(crate) fn plain(x: f64) -> String {
    if x.fract() == 0.0 { format!("{x}") } else { format!("{x:.*}", decimals(x)) }
}

/// As [`plain`], with a proper minus sign.
pub(crate) fn signed(x: f64) -> String {
    if x < 0.0 { format!("−{}", plain(-x)) } else { plain(x) }
}

/// Formats `seed 0` or `seeds 0, 1, 2`.
pub(crate) fn seeds(seeds: impl IntoIterator<Item = u64>) -> String {
    let all: Vec<String> = seeds.into_iter().map(|seed| seed.to_string()).collect();
    format!("{} {}", if all.len() == 1 { "seed" } else { "seeds" }, all.join(", "))
}
