//! EDM's "SongUNet" in its DDPM++ form (positional embedding, [1, 1] resample filter, residual 1x1
//! skips), its preconditioning, and the critic built on the same encoder. Written from Karras et
//! al. 2022; tensor names are those of the published checkpoints.

mod blocks;
mod conditioning;
mod critic;
mod denoiser;
mod recognise;

pub use self::conditioning::{Conditioning, Masks};
pub use self::critic::{CRITIC_HEAD, Critic};
pub use self::denoiser::Denoiser;
pub use self::recognise::recognise;

use self::blocks::{Block, Conv, Dropped, Embedding, Linear, Resample, Widths, ZERO, norm};
use self::conditioning::{Positions, rows};
use crate::network::params::Arrays;
use crate::network::precondition::Precondition;
use crate::network::{self, Builder, Norm, Ops, Parameters, Plus, Walk, scale_images};
use crate::settings::{FIXED, Scale, Settings, settings};
use candle_core::{Result, Tensor, bail};

/// Conditioning of a network on a second noise level, the one to jump to. It belongs to a
/// method, not to the configuration of a scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SecondTime {
    #[default]
    None,
    /// BCM: a separate embedding, which `map_align` merges with the first.
    Aligned,
    /// CTM: a separate embedding, which every block adds through `affine_s`.
    PerBlock,
}

impl SecondTime {
    /// Detects the second time of the network with these weights.
    fn of(weights: &Arrays) -> SecondTime {
        let all = [SecondTime::Aligned, SecondTime::PerBlock];
        let has = |second: &SecondTime| weights.keys().any(|name| name.contains(second.layers()[0]));
        all.into_iter().find(has).unwrap_or_default()
    }

    /// Names of the layers that only a network with this second time has, as prefixes for
    /// [`Source::drawn`](crate::network::params::Source::drawn).
    pub fn layers(self) -> &'static [&'static str] {
        match self {
            SecondTime::None => &[],
            SecondTime::Aligned => &["map_layer0_u.", "map_layer1_u.", "map_align."],
            SecondTime::PerBlock => &["map_layer0_s.", "map_layer1_s.", "affine_s."],
        }
    }
}

settings! {
    /// The U-Net of every denoiser, and of the critic's encoder.
    pub struct Config: "network", "" {
        /// Pixels on a side.
        size: usize = [16, 16, 16, 32, 32], FIXED, "pixels";
        /// Colour channels of a pixel.
        image_channels: usize = [3], FIXED, "";
        /// Base number of channels, which each resolution multiplies.
        model_channels: usize = [8, 16, 16, 64, 128], 1..=4096, "";
        /// Channels of each resolution, as multiples of `model_channels`.
        channel_mult: Vec<usize> =
            [vec![1, 2], vec![1, 2], vec![1, 2], vec![1, 2, 2], vec![2, 2, 2]], 1..=16, "";
        /// Residual blocks of each resolution.
        blocks: usize = [1, 1, 1, 2, 4], 1..=16, "";
        /// Resolutions with self-attention.
        attention_sizes: Vec<usize> = [vec![8], vec![8], vec![8], vec![16], vec![16]], 1..=64, "pixels";
        /// Length of the augmentation label; 0 for none.
        augment_labels: usize = [0, 0, 0, 9, 9], FIXED, "";
    }
}

impl Config {
    /// EDM's network `edm-cifar10-32x32-uncond-vp`, with 55,733,891 parameters.
    pub fn cifar10() -> Config {
        Config::at(Scale::Paper)
    }

    fn embedding(&self, second: SecondTime) -> Widths {
        Widths { width: 4 * self.model_channels, second: second == SecondTime::PerBlock }
    }
}

impl std::fmt::Display for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(
            f,
            "songunet(size {}, image channels {}, channels {} x {:?}, blocks {}, attention at {:?}, augment labels {})",
            self.size,
            self.image_channels,
            self.model_channels,
            self.channel_mult,
            self.blocks,
            self.attention_sizes,
            self.augment_labels
        )
    }
}

enum EncoderBlock {
    First(Conv),
    Residual(Block),
}

/// Noise embedding and the downward half.
struct Encoder {
    positions: Positions,
    /// Length of the augmentation label.
    labels: usize,
    map_augment: Option<Linear>,
    map_layer0: Linear,
    map_layer1: Linear,
    second: Option<Second>,
    blocks: Vec<EncoderBlock>,
    /// Channels of each block's output, in order.
    channels: Vec<usize>,
    /// Channels, height and width of the map that each residual block applies dropout to.
    dropped: Vec<(usize, usize, usize)>,
}

/// Embedding of the second time.
struct Second {
    layer0: Linear,
    layer1: Linear,
    align: Option<Linear>,
}

impl Second {
    fn new(config: &Config, second: SecondTime, b: Builder) -> Result<Option<Second>> {
        let (ch, width) = (config.model_channels, config.embedding(second).width);
        let suffix = match second {
            SecondTime::None => return Ok(None),
            SecondTime::Aligned => "u",
            SecondTime::PerBlock => "s",
        };
        Ok(Some(Second {
            layer0: Linear::new(ch, width, true, b.pp(format!("map_layer0_{suffix}")))?,
            layer1: Linear::new(width, width, true, b.pp(format!("map_layer1_{suffix}")))?,
            align: match second {
                SecondTime::Aligned => Some(Linear::new(2 * width, width, false, b.pp("map_align"))?),
                _ => None,
            },
        }))
    }
}

impl Encoder {
    fn new(config: &Config, second: SecondTime, b: Builder) -> Result<Encoder> {
        let (ch, emb) = (config.model_channels, config.embedding(second));
        let mut blocks = Vec::new();
        let (mut channels, mut dropped) = (Vec::new(), Vec::new());
        let mut current = config.image_channels;
        let enc = b.pp("enc");
        for (level, mult) in config.channel_mult.iter().enumerate() {
            let size = config.size >> level;
            if level == 0 {
                let b = enc.pp(format!("{size}x{size}_conv"));
                blocks.push(EncoderBlock::First(Conv::new(current, ch, 3, 1.0, Resample::Keep, b)?));
                current = ch;
            } else {
                let b = enc.pp(format!("{size}x{size}_down"));
                let block = Block::new(current, current, emb, Resample::Down, false, b)?;
                blocks.push(EncoderBlock::Residual(block));
                dropped.push((current, size, size));
            }
            channels.push(current);
            for i in 0..config.blocks {
                let b = enc.pp(format!("{size}x{size}_block{i}"));
                let attention = config.attention_sizes.contains(&size);
                let block = Block::new(current, ch * mult, emb, Resample::Keep, attention, b)?;
                current = ch * mult;
                blocks.push(EncoderBlock::Residual(block));
                dropped.push((current, size, size));
                channels.push(current);
            }
        }
        Ok(Encoder {
            positions: Positions::new(ch),
            labels: config.augment_labels,
            map_augment: match config.augment_labels {
                0 => None,
                n => Some(Linear::new(n, ch, false, b.pp("map_augment"))?),
            },
            map_layer0: Linear::new(ch, emb.width, true, b.pp("map_layer0"))?,
            map_layer1: Linear::new(emb.width, emb.width, true, b.pp("map_layer1"))?,
            second: Second::new(config, second, b)?,
            blocks,
            channels,
            dropped,
        })
    }

    /// Makes the rows (B, channels) of conditioning in the order that [`Encoder::embed`] takes:
    /// embedded noise levels, those of the second time, labels.
    fn conditioning(&self, given: &Conditioning, x: &Tensor) -> Result<Vec<Tensor>> {
        let (images, device) = (x.dim(0)?, x.device());
        let seconds = [given.second.is_some(), self.second.is_some()].map(usize::from);
        if seconds[0] != seconds[1] {
            bail!("{} second times are given, the network takes {}", seconds[0], seconds[1]);
        }
        let position = |n: &[f32]| rows(self.positions.rows(n), images, self.positions.channels(), device);
        let times = [Some(given.noise), given.second].into_iter().flatten().map(position);
        let labels = given.augment.map(|labels| rows(labels.to_vec(), images, self.labels, device));
        times.chain(labels).collect()
    }

    /// Returns EDM's scalings at `sigma`, the scaled images and the rows of [`Encoder::conditioning`].
    fn scaled(
        &self,
        x: &Tensor,
        sigma: &[f32],
        augment: Option<&[f32]>,
    ) -> Result<(Precondition, Tensor, Vec<Tensor>)> {
        let c = Precondition::at(sigma);
        let rows =
            self.conditioning(&Conditioning { noise: &c.noise, augment, ..Conditioning::default() }, x)?;
        let x = scale_images(x, &c.input)?;
        Ok((c, x, rows))
    }

    /// Embeds the conditioning in rows of 4 model_channels.
    fn embed<O: Ops>(&self, ops: &mut O, rows: &[O::Map]) -> Result<Embedding<O::Map>> {
        let mut rows = rows.iter();
        let mut emb = rows.next().expect("a noise level").clone();
        let second = self.second.as_ref().and_then(|layers| Some((layers, rows.next()?)));
        if let (Some(map), Some(labels)) = (&self.map_augment, rows.next()) {
            let plus = Plus { term: None, residual: Some((&emb, 1.0)) };
            emb = ops.conv(labels, map.weight, map.bias, plus)?;
        }
        let two_layers = |layer0: &Linear, layer1: &Linear, row: &O::Map, ops: &mut O| {
            let h = layer0.forward(ops, row)?;
            let h = ops.silu(&h)?;
            layer1.forward(ops, &h)
        };
        let mut first = two_layers(&self.map_layer0, &self.map_layer1, &emb, ops)?;
        let mut other = None;
        if let Some((layers, row)) = second {
            let h = two_layers(&layers.layer0, &layers.layer1, row, ops)?;
            match &layers.align {
                Some(align) => {
                    let both = ops.concat(&first, &h)?;
                    first = align.forward(ops, &both)?;
                }
                None => other = Some(ops.silu(&h)?),
            }
        }
        Ok(Embedding { first: ops.silu(&first)?, second: other, dropped: Dropped::new(&[], 1.0) })
    }

    /// Returns the output of each block on scaled images with their conditioning, and its embedding.
    fn forward<O: Ops>(
        &self,
        ops: &mut O,
        inputs: &[O::Map],
        dropped: Dropped<O::Map>,
    ) -> Result<(Vec<O::Map>, Embedding<O::Map>)> {
        let emb = Embedding { dropped, ..self.embed(ops, &inputs[1..])? };
        let mut outputs: Vec<O::Map> = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let input = outputs.last().unwrap_or(&inputs[0]);
            let y = match block {
                EncoderBlock::First(conv) => conv.forward(ops, input, Plus::NOTHING)?,
                EncoderBlock::Residual(block) => block.forward(ops, input, &emb)?,
            };
            outputs.push(y);
        }
        Ok((outputs, emb))
    }
}

fn inputs<'a>(x: &'a Tensor, rows: &'a [Tensor]) -> Vec<&'a Tensor> {
    std::iter::once(x).chain(rows).collect()
}

/// A network of residual blocks.
trait Blocks: Sync {
    fn through<O: Ops>(
        &self,
        ops: &mut O,
        inputs: &[O::Map],
        dropped: Dropped<O::Map>,
    ) -> Result<Vec<O::Map>>;
}

/// The same network with dropout. The last inputs are its masks, positive where a value is kept.
struct Dropping<'a, B> {
    network: &'a B,
    masks: usize,
    factor: f32,
}

impl<'a, B: Blocks> Dropping<'a, B> {
    fn new(network: &'a B, masks: Option<&Masks>) -> Dropping<'a, B> {
        let (masks, p) = masks.map_or((0, 0.0), |masks| (masks.keep.len(), masks.p));
        Dropping { network, masks, factor: (1.0 / (1.0 - p)) as f32 }
    }
}

impl<B: Blocks> Walk for Dropping<'_, B> {
    fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>> {
        let (inputs, keep) = inputs.split_at(inputs.len() - self.masks);
        self.network.through(ops, inputs, Dropped::new(keep, self.factor))
    }
}

/// Returns the maps of the masks; none without dropout.
fn kept(masks: Option<&Masks>) -> &[Tensor] {
    masks.map_or(&[], |masks| &masks.keep)
}

/// Runs a U-Net, or a part of one, on scaled images and the rows from [`Encoder::conditioning`], with
/// dropout where there are masks.
fn run<B: Blocks>(
    parameters: &Parameters,
    x: &Tensor,
    rows: &[Tensor],
    masks: Option<&Masks>,
    network: &B,
) -> Result<Vec<Tensor>> {
    let all = [rows, kept(masks)].concat();
    network::forward(parameters, &inputs(x, &all), &Dropping::new(network, masks))
}

struct Decoder {
    /// Each block, and whether it takes a skip connection.
    blocks: Vec<(Block, bool)>,
    /// As [`Encoder::dropped`].
    dropped: Vec<(usize, usize, usize)>,
    norm: Norm,
    conv: Conv,
}

impl Decoder {
    fn new(config: &Config, second: SecondTime, mut skips: Vec<usize>, b: Builder) -> Result<Decoder> {
        let (ch, emb) = (config.model_channels, config.embedding(second));
        let mut current = *skips.last().expect("an encoder has blocks");
        let (mut blocks, mut dropped) = (Vec::new(), Vec::new());
        for (level, mult) in config.channel_mult.iter().enumerate().rev() {
            let size = config.size >> level;
            let mut add = |name: String, inputs, outputs, resample, attention, takes_skip| -> Result<()> {
                let block = Block::new(inputs, outputs, emb, resample, attention, b.pp(name))?;
                blocks.push((block, takes_skip));
                dropped.push((outputs, size, size));
                Ok(())
            };
            if level == config.channel_mult.len() - 1 {
                add(format!("{size}x{size}_in0"), current, current, Resample::Keep, true, false)?;
                add(format!("{size}x{size}_in1"), current, current, Resample::Keep, false, false)?;
            } else {
                add(format!("{size}x{size}_up"), current, current, Resample::Up, false, false)?;
            }
            for i in 0..=config.blocks {
                let inputs = current + skips.pop().expect("one skip for each decoder block");
                current = ch * mult;
                let attention = i == config.blocks && config.attention_sizes.contains(&size);
                add(format!("{size}x{size}_block{i}"), inputs, current, Resample::Keep, attention, true)?;
            }
        }
        let size = config.size;
        let last = |part: &str| b.pp(format!("{size}x{size}_aux_{part}"));
        Ok(Decoder {
            blocks,
            dropped,
            norm: norm(current, true, last("norm"))?,
            conv: Conv::new(current, config.image_channels, 3, ZERO, Resample::Keep, last("conv"))?,
        })
    }

    fn forward<O: Ops>(
        &self,
        ops: &mut O,
        mut skips: Vec<O::Map>,
        emb: &Embedding<O::Map>,
    ) -> Result<O::Map> {
        let mut x = skips.last().expect("an encoder has blocks").clone();
        for (block, takes_skip) in &self.blocks {
            if *takes_skip {
                x = ops.concat(&x, &skips.pop().expect("one skip for each decoder block"))?;
            }
            x = block.forward(ops, &x, emb)?;
        }
        let normed = ops.norm(&x, &self.norm)?;
        self.conv.forward(ops, &normed, Plus::NOTHING)
    }
}
