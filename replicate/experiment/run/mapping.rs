//! The comparison of one-step generators as maps.

use super::{Claim, Outcome, Runner, SCORES, provenance, weights::read_weights, write_measured};
use crate::error::Result;
use crate::experiment::{FULL_INITIALIZATION, MAP_LATENTS, Row};
use crate::measure::metrics::mapping::map_distance;
use crate::measure::sample::{ScoreLatents, generate};
use crate::network::params::Arrays;
use crate::store::{Finished, Key, Manifest};
use crate::train::published;
use std::collections::BTreeMap;
use std::time::Instant;

impl Runner<'_> {
    /// How far `row` is, as a map from latents to images, from the full
    /// multi-level initialisation of the same seed, before the second stage and
    /// after it: the scores `map_distance_start` and `map_distance_end`. `None`
    /// where one of the two cells is not finished, for the full initialisation itself and
    /// for methods that know none; without `make`, also where nobody has measured it.
    pub fn mapping(&mut self, row: &Row, seed: u64, make: bool) -> Result<Option<Outcome>> {
        let reference = FULL_INITIALIZATION;
        let initialised =
            row.method.training.as_ref().is_some_and(|training| training.from_scratch.is_none());
        if *row == reference || !initialised || row.start == reference.start {
            return Ok(None);
        }
        let (Some(ours), Some(theirs)) = (self.stored(row, seed)?, self.stored(&reference, seed)?) else {
            return Ok(None);
        };
        let class = self.class;
        let (our_key, their_key) = (ours.entry.key().to_string(), theirs.entry.key().to_string());
        let text = self.recipe.mapping_text(&our_key, &their_key, class);
        let label = self.label(&format!("map-{}-s{seed}", row.id));
        let entry = self.store.entry(&Key::of(&text), &label);
        if !make {
            return match entry.finished()? {
                Finished::Yes(manifest) => Ok(Some(Outcome { entry, manifest })),
                _ => Ok(None),
            };
        }
        let lock = match self.claim(&entry)? {
            Claim::Finished(manifest) => return Ok(Some(Outcome { entry, manifest })),
            Claim::Ours(lock) => lock,
        };
        let started = Instant::now();
        let (config, device) = (self.recipe.network.clone(), self.settings.device.clone());
        let latents = ScoreLatents { config: &config, seed, device: &device };
        let mut maps = Vec::new();
        for (row, outcome) in [(row, &ours), (&reference, &theirs)] {
            let (start, cell) = (self.starting_weights(row)?, self.streams(seed));
            let setup = self.setup(row, start.as_ref(), &cell);
            let training = row.method.training.as_ref().expect("only trained rows are compared");
            let first = published(&mut *(training.build)(&setup)?)?;
            let images = |weights: &Arrays| {
                let sampler = (row.method.sampler)(&setup, weights)?;
                generate(0..MAP_LATENTS, |range| sampler.sample(&latents.at(range)?))
            };
            maps.push((images(&first)?, images(&read_weights(&outcome.entry)?.0)?));
        }
        let len = config.image_channels * config.size * config.size;
        let distances = [
            ("map_distance_start", map_distance(&maps[0].0.pixels, &maps[1].0.pixels, len)),
            ("map_distance_end", map_distance(&maps[0].1.pixels, &maps[1].1.pixels, len)),
        ];
        write_measured(&lock, row, &self.recipe, seed, class, distances.into_iter())?;
        let manifest = Manifest {
            experiment: text,
            seed,
            determinism: class.to_string(),
            parents: BTreeMap::from([("cell".to_string(), our_key), ("reference".to_string(), their_key)]),
            provenance: provenance(started.elapsed(), &device),
            ..Manifest::default()
        };
        let manifest = lock.publish(manifest, &[SCORES])?;
        Ok(Some(Outcome { entry, manifest }))
    }
}
