//! The comparison of one-step generators as maps.

use super::{Claim, Outcome, Runner, SCORES, provenance, weights::read_weights, write_measured};
use crate::error::Result;
use crate::experiment::{Cell, FULL_INITIALISATION, MAP_LATENTS, Method};
use crate::measure::metrics::mapping::map_distance;
use crate::method::sampler::edm::one_step;
use crate::network::params::Arrays;
use crate::store::{Finished, Key, Manifest};
use crate::train::{ScoreLatents, evaluating, generate};
use std::collections::BTreeMap;
use std::time::Instant;

impl Runner<'_> {
    /// How far `cell` is, as a map from latents to images, from the full
    /// multi-level initialisation of the same seed, before the second stage and
    /// after it: the scores `map_distance_start` and `map_distance_end`. `None`
    /// where one of the two cells is not finished, and for the full
    /// initialisation itself; without `make`, also where nobody has measured it.
    pub fn mapping(&mut self, cell: &Cell, seed: u64, make: bool) -> Result<Option<Outcome>> {
        let reference = FULL_INITIALISATION;
        if *cell == reference || cell.method == Method::Teacher || cell.start == reference.start {
            return Ok(None);
        }
        let (Some(ours), Some(theirs)) = (self.stored(cell, seed)?, self.stored(&reference, seed)?) else {
            return Ok(None);
        };
        let class = self.class;
        let (our_key, their_key) = (ours.entry.key().to_string(), theirs.entry.key().to_string());
        let text = self.recipe.mapping_text(&our_key, &their_key, class);
        let label = self.label(&format!("map-{}-s{seed}", cell.row));
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
        let sigma_init = self.recipe.one_step.sigma_init;
        let images = |weights: &Arrays| {
            let generator = evaluating(&config, weights, &device)?;
            generate(0..MAP_LATENTS, |range| one_step(&generator, &latents.at(range)?, sigma_init))
        };
        let mut maps = Vec::new();
        for (cell, outcome) in [(cell, &ours), (&reference, &theirs)] {
            let Method::OneStep(objective) = cell.method else {
                unreachable!("the teacher is answered above")
            };
            let weights = self.starting_weights(cell)?;
            let start = self.initial(objective, seed, weights.as_ref())?.averaged()?;
            maps.push((images(&start)?, images(&read_weights(&outcome.entry)?.0)?));
        }
        let len = config.image_channels * config.size * config.size;
        let distances = [
            ("map_distance_start", map_distance(&maps[0].0.pixels, &maps[1].0.pixels, len)),
            ("map_distance_end", map_distance(&maps[0].1.pixels, &maps[1].1.pixels, len)),
        ];
        write_measured(&lock, cell, &self.recipe, seed, class, distances.into_iter())?;
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
