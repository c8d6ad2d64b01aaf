//! What a run measured of its generator on the way.

use super::artifact::Made;
use crate::error::Result;
use crate::judge::golden::ALONG;
use crate::measure::evaluate::TARGETS;
use crate::measure::metrics::modes::collapse;
use crate::train::METRICS_FILE;

/// One line of metrics.csv that has scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    /// That the generator was trained on so far.
    pub images: u64,
    pub fd: f64,
    pub recall: f64,
    /// Effective number of target classes.
    pub classes: f64,
}

/// The moments of a training, the initialisation first; none where nothing was scored.
pub fn moments(training: &Made) -> Result<Vec<Moment>> {
    if !training.manifest.outputs.contains_key(METRICS_FILE) {
        return Ok(Vec::new());
    }
    Ok(read(&String::from_utf8_lossy(&training.entry.read(METRICS_FILE)?)))
}

fn read(csv: &str) -> Vec<Moment> {
    let mut lines = csv.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let column = |name: &str| header.iter().position(|column| *column == name);
    let moment = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let number = |name: &str| fields.get(column(name)?)?.parse::<f64>().ok();
        Some(Moment {
            images: fields.get(column("images")?)?.parse().ok()?,
            fd: number("fd")?,
            recall: number("recall")?,
            classes: number("classes")?,
        })
    };
    lines.filter_map(moment).collect()
}

/// The values of [`ALONG`]: recall and classes of the initialisation, the Fréchet distance
/// after half of the training, and the worst category up to there, the initialisation
/// excepted. None where a value is missing.
pub(super) fn summary(moments: &[Moment]) -> Vec<(String, f64)> {
    let (Some(first), Some(last)) = (moments.first().filter(|m| m.images == 0), moments.last()) else {
        return Vec::new();
    };
    let early: Vec<&Moment> = moments[1..].iter().filter(|m| 2 * m.images <= last.images).collect();
    let finite = early.iter().all(|m| !m.recall.is_nan() && !m.classes.is_nan());
    let (Some(halfway), true) = (early.last(), finite) else { return Vec::new() };
    let worst = early.iter().map(|m| collapse(m.recall, m.classes, TARGETS).code()).fold(0.0, f64::max);
    let values = [first.recall, first.classes, halfway.fd, worst];
    ALONG.iter().map(|name| name.to_string()).zip(values).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_summed_up_by_its_start_and_its_first_half() {
        let csv = "images,loss,fd,recall,classes\n0,,90,0.02,3\n10,1,80,0.05,4\n20,1,30,.6,9\n30,1,5,.9,9.9\n\
                   40,1,4,.95,10\n";
        let moments = read(csv);
        assert_eq!(moments.len(), 5);
        let named = |name: &str| summary(&moments).into_iter().find(|(n, _)| n == name).unwrap().1;
        assert_eq!([named("start_recall"), named("start_classes"), named("halfway_fd")], [0.02, 3.0, 30.0]);
        assert_eq!(named("early_collapse"), 2.0, "after 10 images");
        let healthy: Vec<Moment> = moments.iter().filter(|m| m.images != 10).copied().collect();
        assert_eq!(summary(&healthy)[3].1, 0.0, "that the initialisation meets the criterion does not count");
        assert!(summary(&moments[1..]).is_empty() && summary(&[]).is_empty());
    }
}
