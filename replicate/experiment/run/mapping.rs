//! Compares one-step generators as maps from latents to images.

use super::artifact::{Artifact, Outputs};
use super::outcome::{Outcome, read_values, values_text};
use super::weights::read_weights;
use super::{Runner, SCORES, keys};
use crate::error::Result;
use crate::experiment::{FULL_INITIALIZATION, Row};
use crate::judge::golden::Score;
use crate::measure::metrics::mapping::map_distance;
use crate::measure::sample::{ScoreLatents, generate};
use crate::network::params::Arrays;
use crate::store::Lock;
use crate::train::published;
use keys::MAP_LATENTS;
use std::collections::BTreeMap;

impl Runner<'_> {
    /// Measures the distance of `row`, as a map from latents to images, from the full multi-level
    /// initialisation with the same seed, before and after the second stage: the scores
    /// `map_distance_start` and `map_distance_end`. `None` if one of the two is not finished, for
    /// rows with the full initialisation, and for methods without an initialisation.
    pub fn mapping(&mut self, row: &Row, seed: u64) -> Result<Option<Vec<Score>>> {
        let Some((ours, theirs, artifact)) = self.compared(row, seed)? else { return Ok(None) };
        let made = self.make(artifact, |runner, lock| runner.compare(lock, &ours, &theirs))?;
        Ok(Some(self.named(&ours, made.entry.key(), read_values(&made)?)))
    }

    /// As [`Runner::mapping`], but `None` if it is not in the store. As with [`Runner::stored`], other
    /// code may have made it.
    pub fn stored_mapping(&mut self, row: &Row, seed: u64) -> Result<Option<Vec<Score>>> {
        let Some((mut ours, _, artifact)) = self.compared(row, seed)? else { return Ok(None) };
        if let Some(made) = self.find(&artifact)? {
            return Ok(Some(self.named(&ours, made.entry.key(), read_values(&made)?)));
        }
        let Some(made) = self.newest(&artifact.label, |made| {
            keys::same_without(keys::names_code, &made.experiment, &artifact.text)
                && (&made.parents, made.determinism.as_str()) == (&artifact.parents, self.class)
        })?
        else {
            return Ok(None);
        };
        ours.other_code.get_or_insert_with(|| keys::code_of(&made.manifest.experiment));
        Ok(Some(self.named(&ours, made.entry.key(), read_values(&made)?)))
    }

    fn compared(&mut self, row: &Row, seed: u64) -> Result<Option<(Outcome, Outcome, Artifact)>> {
        let reference = FULL_INITIALIZATION;
        let initialised =
            row.method.training.as_ref().is_some_and(|training| training.from_scratch.is_none());
        if !initialised || row.start == reference.start {
            return Ok(None);
        }
        let (Some(ours), Some(theirs)) = (self.stored(row, seed)?, self.stored(&reference, seed)?) else {
            return Ok(None);
        };
        let key = |outcome: &Outcome| outcome.weights.as_ref().map(|made| made.entry.key().to_string());
        let (Some(our_key), Some(their_key)) = (key(&ours), key(&theirs)) else { return Ok(None) };
        let artifact = Artifact {
            text: keys::mapping(&self.recipe, &our_key, &their_key, self.class),
            label: self.label(&format!("map-{}-s{seed}", row.id)),
            changes: self.recipe.sorted_changes(),
            seed,
            parents: BTreeMap::from([("row".to_string(), our_key), ("reference".to_string(), their_key)]),
            ..Artifact::default()
        };
        Ok(Some((ours, theirs, artifact)))
    }

    fn compare(&mut self, lock: &Lock, ours: &Outcome, theirs: &Outcome) -> Result<Outputs> {
        let seed = ours.seed;
        let (config, device) = (self.recipe.network.clone(), self.settings.compute.device.clone());
        let mut maps = Vec::new();
        for outcome in [ours, theirs] {
            let row = &outcome.row;
            let (start, cell) = (self.starting_weights(row)?, self.streams(seed));
            let setup = self.setup(row, &start, &cell);
            let training = row.method.training.as_ref().expect("only trained rows are compared");
            let first = published(&mut *(training.build)(&setup)?)?;
            let images = |weights: &Arrays| {
                let sampler = (row.method.sampler)(&setup, weights)?;
                let latents =
                    ScoreLatents { config: &config, seed, device: &device, each: sampler.latents() };
                generate(0..MAP_LATENTS, |range| sampler.sample(&latents.at(range)?))
            };
            let trained = outcome.weights.as_ref().expect("only trained rows are compared");
            maps.push((images(&first)?, images(&read_weights(&trained.entry)?.0)?));
        }
        let len = config.image_channels * config.size * config.size;
        let distances = [
            ("map_distance_start", map_distance(&maps[0].0.pixels, &maps[1].0.pixels, len)),
            ("map_distance_end", map_distance(&maps[0].1.pixels, &maps[1].1.pixels, len)),
        ];
        lock.write(SCORES, values_text(distances.into_iter()).as_bytes())?;
        Ok(Outputs { names: vec![SCORES.to_string()], images: 0 })
    }
}
