//! Stage 1, line 1 of both algorithms: pre-training by denoising score matching.

use crate::method::equations::{diffuse, dsm};
use crate::method::noise::Levels;
use crate::network::params::{Arrays, Source};
use crate::network::unet::{Config, Denoiser};
use crate::train::Method;
use crate::train::adam::{AdamConfig, cosine, warmed_up};
use crate::train::batch::Batch;
use crate::train::net::{Learned, Net};
use candle_core::{Device, Result, Tensor};

#[derive(Clone, Debug, PartialEq)]
pub struct Pretraining {
    pub images: u64,
    pub batch: usize,
    pub lr: f64,
    /// Linear warm-up of the learning rate.
    pub warmup_images: u64,
    /// After the warm-up: half a cosine down to 0, or EDM's constant rate.
    pub cosine: bool,
    pub adam: AdamConfig,
    pub ema_half_life: u64,
    pub levels: Levels,
}

/// Denoising score matching (Eq 3) at `levels`.
pub struct ScoreMatching {
    settings: Pretraining,
    levels: Levels,
    net: Net<Denoiser>,
}

/// Images of a step in memory at a time, as EDM's 512 on eight devices.
pub const MICROBATCH: usize = 64;

impl ScoreMatching {
    /// `cell` names the random streams.
    pub fn new(
        device: &Device,
        network: &Config,
        settings: &Pretraining,
        levels: Levels,
        cell: &str,
    ) -> Result<ScoreMatching> {
        let none = Arrays::new();
        let source = Source { given: &none, drawn: &[""], cell };
        let net = Net::new(device, &source, settings.adam, |vb| Denoiser::new(network, vb))?
            .averaged(settings.ema_half_life)?;
        Ok(ScoreMatching { settings: settings.clone(), levels, net })
    }
}

impl Method for ScoreMatching {
    fn columns(&self) -> &'static [&'static str] {
        &["loss"]
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        let (s, levels) = (&self.settings, self.levels);
        let decay = if s.cosine { cosine(s.warmup_images, s.images, batch) } else { 1.0 };
        let lr = warmed_up(s.lr, s.warmup_images, batch) * decay;
        self.net.descend(batch, lr, |denoiser, b| {
            let (x0, labels) = b.augment("augment", &b.images("index")?)?;
            let sigma = levels.draw(b, "sigma")?;
            let xt = diffuse(&x0, &sigma, &b.normal("noise")?)?;
            Ok(vec![dsm(&denoiser.forward(&xt, &sigma, labels.as_deref())?, &x0, &sigma)?])
        })
    }

    fn nets(&mut self) -> Vec<(&'static str, &mut Learned)> {
        vec![("denoiser", &mut self.net.learned)]
    }
}
