//! EDM's "SongUNet" in its DDPM++ form (positional embedding, [1, 1] resample
//! filter, residual 1x1 skips), its preconditioning, and the critic made of
//! the same encoder. Our reading of Karras et al. 2022; tensor names are those
//! of the published checkpoints.

use crate::network::cpu::tape;
use crate::network::elsewhere;
use crate::network::params::{Arrays, Params, Source};
use crate::network::precondition::Precondition;
use crate::network::{Builder, Norm, Ops, Param, Plus, activations, mix, scale_images};
use crate::settings::{FIXED, Scale, Settings, settings};
use candle_core::{Device, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use std::ops::Range;

/// Residual sums are scaled to keep their variance.
const SKIP_SCALE: f32 = std::f32::consts::FRAC_1_SQRT_2;

settings! {
    /// The U-Net of every denoiser, and of the critic's encoder.
    pub struct Config: "network", "" {
        /// Pixels on a side.
        size: usize = [16, 16, 16, 32, 32], FIXED, "pixels";
        /// Colours of a pixel.
        image_channels: usize = [3], FIXED, "";
        /// Channels that the resolutions have multiples of.
        model_channels: usize = [8, 16, 16, 64, 128], 1..=4096, "";
        /// Channels of each resolution, times `model_channels`.
        channel_mult: Vec<usize> =
            [vec![1, 2], vec![1, 2], vec![1, 2], vec![1, 2, 2], vec![2, 2, 2]], 1..=16, "";
        /// Residual blocks of a resolution.
        blocks: usize = [1, 1, 1, 2, 4], 1..=16, "";
        /// Resolutions with self-attention.
        attention_sizes: Vec<usize> = [vec![8], vec![8], vec![8], vec![16], vec![16]], 1..=64, "pixels";
        /// Length of the augmentation label; 0 for none.
        augment_labels: usize = [0, 0, 0, 9, 9], FIXED, "";
    }
}

impl Config {
    /// `edm-cifar10-32x32-uncond-vp`: 55,733,891 parameters.
    pub fn cifar10() -> Config {
        Config::at(Scale::Paper)
    }

    fn embedding(&self) -> usize {
        4 * self.model_channels
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

/// Uniform Xavier bounds times `gain`.
fn xavier(fan_in: usize, fan_out: usize, gain: f64) -> Init {
    let bound = gain * (6.0 / (fan_in + fan_out) as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

/// EDM's "zero" initialisation is not quite zero.
const ZERO: f64 = 1e-5;

struct Linear {
    weight: Param,
    bias: Option<Param>,
}

impl Linear {
    fn new(inputs: usize, outputs: usize, bias: bool, b: Builder) -> Result<Linear> {
        Ok(Linear {
            weight: b.get((outputs, inputs), "weight", xavier(inputs, outputs, 1.0))?,
            bias: if bias { Some(b.get(outputs, "bias", Init::Const(0.0))?) } else { None },
        })
    }

    fn forward<O: Ops>(&self, ops: &mut O, x: &O::Map) -> Result<O::Map> {
        ops.conv(x, self.weight, self.bias, Plus::NOTHING)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Resample {
    Keep,
    Down,
    Up,
}

struct Conv {
    weight: Param,
    bias: Param,
    resample: Resample,
}

impl Conv {
    fn new(
        inputs: usize,
        outputs: usize,
        k: usize,
        gain: f64,
        resample: Resample,
        b: Builder,
    ) -> Result<Conv> {
        let init = xavier(inputs * k * k, outputs * k * k, gain);
        Ok(Conv {
            weight: b.get((outputs, inputs, k, k), "weight", init)?,
            bias: b.get(outputs, "bias", Init::Const(0.0))?,
            resample,
        })
    }

    fn forward<O: Ops>(&self, ops: &mut O, x: &O::Map, plus: Plus<O::Map>) -> Result<O::Map> {
        let x = match self.resample {
            Resample::Keep => x,
            Resample::Down => &ops.down2(x)?,
            Resample::Up => &ops.up2(x)?,
        };
        ops.conv(x, self.weight, Some(self.bias), plus)
    }
}

/// EDM's group normalisation, and SiLU after it if `silu`.
fn norm(channels: usize, silu: bool, b: Builder) -> Result<Norm> {
    Ok(Norm {
        gamma: b.get(channels, "weight", Init::Const(1.0))?,
        beta: b.get(channels, "bias", Init::Const(0.0))?,
        groups: (channels / 4).clamp(1, 32),
        eps: 1e-6,
        silu,
    })
}

struct Attention {
    norm: Norm,
    qkv: Conv,
    proj: Conv,
}

impl Attention {
    fn new(channels: usize, b: Builder) -> Result<Attention> {
        Ok(Attention {
            norm: norm(channels, false, b.pp("norm2"))?,
            qkv: Conv::new(channels, 3 * channels, 1, 0.2f64.sqrt(), Resample::Keep, b.pp("qkv"))?,
            proj: Conv::new(channels, channels, 1, ZERO, Resample::Keep, b.pp("proj"))?,
        })
    }

    fn forward<O: Ops>(&self, ops: &mut O, x: &O::Map) -> Result<O::Map> {
        let normed = ops.norm(x, &self.norm)?;
        let qkv = self.qkv.forward(ops, &normed, Plus::NOTHING)?;
        let a = ops.attention(&qkv)?;
        self.proj.forward(ops, &a, Plus { term: None, residual: Some((x, SKIP_SCALE)) })
    }
}

/// One residual block.
struct Block {
    norm0: Norm,
    conv0: Conv,
    affine: Linear,
    norm1: Norm,
    conv1: Conv,
    skip: Option<Conv>,
    attention: Option<Attention>,
}

impl Block {
    fn new(
        inputs: usize,
        outputs: usize,
        embedding: usize,
        resample: Resample,
        attention: bool,
        b: Builder,
    ) -> Result<Block> {
        let project = inputs != outputs || resample != Resample::Keep;
        Ok(Block {
            norm0: norm(inputs, true, b.pp("norm0"))?,
            conv0: Conv::new(inputs, outputs, 3, 1.0, resample, b.pp("conv0"))?,
            affine: Linear::new(embedding, outputs, true, b.pp("affine"))?,
            norm1: norm(outputs, true, b.pp("norm1"))?,
            conv1: Conv::new(outputs, outputs, 3, ZERO, Resample::Keep, b.pp("conv1"))?,
            skip: if project {
                Some(Conv::new(inputs, outputs, 1, 1.0, resample, b.pp("skip"))?)
            } else {
                None
            },
            attention: if attention { Some(Attention::new(outputs, b)?) } else { None },
        })
    }

    fn forward<O: Ops>(&self, ops: &mut O, x: &O::Map, emb: &O::Map) -> Result<O::Map> {
        let term = self.affine.forward(ops, emb)?;
        let h = ops.norm(x, &self.norm0)?;
        let h = self.conv0.forward(ops, &h, Plus { term: Some(&term), residual: None })?;
        let h = ops.norm(&h, &self.norm1)?;
        let skip = match &self.skip {
            Some(skip) => &skip.forward(ops, x, Plus::NOTHING)?,
            None => x,
        };
        let y = self.conv1.forward(ops, &h, Plus { term: None, residual: Some((skip, SKIP_SCALE)) })?;
        match &self.attention {
            Some(attention) => attention.forward(ops, &y),
            None => Ok(y),
        }
    }
}

enum EncoderBlock {
    First(Conv),
    Residual(Block),
}

/// What a network is told beside the images, one row an image.
pub(crate) struct Told<'a> {
    /// c_noise
    pub noise: &'a [f32],
    pub augment: Option<&'a [f32]>,
}

impl<'a> Told<'a> {
    fn new(noise: &'a [f32], augment: Option<&'a [f32]>, x: &Tensor, labels: usize) -> Result<Told<'a>> {
        let images = x.dim(0)?;
        let given = augment.map(<[f32]>::len);
        if noise.len() != images || given.is_some_and(|given| given != images * labels) {
            bail!("{images} images, {} noise levels, augment labels {given:?} of {labels} each", noise.len());
        }
        Ok(Told { noise, augment })
    }

    fn of(&self, images: &Range<usize>, labels: usize) -> Told<'a> {
        let rows = |all: &'a [f32]| &all[images.start * labels..images.end * labels];
        Told { noise: &self.noise[images.clone()], augment: self.augment.map(rows) }
    }
}

/// Noise embedding and the downward half.
struct Encoder {
    model_channels: usize,
    /// Length of the augmentation label.
    labels: usize,
    map_augment: Option<Linear>,
    map_layer0: Linear,
    map_layer1: Linear,
    blocks: Vec<EncoderBlock>,
    /// Channels of each block's output, in order.
    channels: Vec<usize>,
}

impl Encoder {
    fn new(config: &Config, b: Builder) -> Result<Encoder> {
        let (ch, emb) = (config.model_channels, config.embedding());
        let mut blocks = Vec::new();
        let mut channels = Vec::new();
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
            }
            channels.push(current);
            for i in 0..config.blocks {
                let b = enc.pp(format!("{size}x{size}_block{i}"));
                let attention = config.attention_sizes.contains(&size);
                let block = Block::new(current, ch * mult, emb, Resample::Keep, attention, b)?;
                current = ch * mult;
                blocks.push(EncoderBlock::Residual(block));
                channels.push(current);
            }
        }
        Ok(Encoder {
            model_channels: ch,
            labels: config.augment_labels,
            map_augment: match config.augment_labels {
                0 => None,
                n => Some(Linear::new(n, ch, false, b.pp("map_augment"))?),
            },
            map_layer0: Linear::new(ch, emb, true, b.pp("map_layer0"))?,
            map_layer1: Linear::new(emb, emb, true, b.pp("map_layer1"))?,
            blocks,
            channels,
        })
    }

    /// (B, 4 model_channels) from the noise labels c_noise.
    fn embed<O: Ops>(&self, ops: &mut O, told: &Told) -> Result<O::Map> {
        let half = self.model_channels / 2;
        let frequency: Vec<f32> = (0..half).map(|i| libm::powf(1e-4, i as f32 / (half - 1) as f32)).collect();
        let mut values = Vec::with_capacity(told.noise.len() * 2 * half);
        for n in told.noise {
            // EDM makes cos | sin and swaps the halves.
            values.extend(frequency.iter().map(|f| libm::sinf(n * f)));
            values.extend(frequency.iter().map(|f| libm::cosf(n * f)));
        }
        let mut emb = ops.rows(values, 2 * half)?;
        if let (Some(map), Some(labels)) = (&self.map_augment, told.augment) {
            let labels = ops.rows(labels.to_vec(), self.labels)?;
            let plus = Plus { term: None, residual: Some((&emb, 1.0)) };
            emb = ops.conv(&labels, map.weight, map.bias, plus)?;
        }
        let emb = self.map_layer0.forward(ops, &emb)?;
        let emb = ops.silu(&emb)?;
        let emb = self.map_layer1.forward(ops, &emb)?;
        ops.silu(&emb)
    }

    fn forward<O: Ops>(&self, ops: &mut O, x: &O::Map, emb: &O::Map) -> Result<Vec<O::Map>> {
        let mut outputs: Vec<O::Map> = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let input = outputs.last().unwrap_or(x);
            let y = match block {
                EncoderBlock::First(conv) => conv.forward(ops, input, Plus::NOTHING)?,
                EncoderBlock::Residual(block) => block.forward(ops, input, emb)?,
            };
            outputs.push(y);
        }
        Ok(outputs)
    }
}

struct Decoder {
    /// Each with whether it takes a skip.
    blocks: Vec<(Block, bool)>,
    norm: Norm,
    conv: Conv,
}

impl Decoder {
    fn new(config: &Config, mut skips: Vec<usize>, b: Builder) -> Result<Decoder> {
        let (ch, emb) = (config.model_channels, config.embedding());
        let mut current = *skips.last().expect("an encoder has blocks");
        let mut blocks = Vec::new();
        for (level, mult) in config.channel_mult.iter().enumerate().rev() {
            let size = config.size >> level;
            let mut add = |name: String, inputs, outputs, resample, attention, takes_skip| -> Result<()> {
                let block = Block::new(inputs, outputs, emb, resample, attention, b.pp(name))?;
                blocks.push((block, takes_skip));
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
            norm: norm(current, true, last("norm"))?,
            conv: Conv::new(current, config.image_channels, 3, ZERO, Resample::Keep, last("conv"))?,
        })
    }

    fn forward<O: Ops>(&self, ops: &mut O, mut skips: Vec<O::Map>, emb: &O::Map) -> Result<O::Map> {
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

/// D(x; sigma), the preconditioned U-Net: teacher, one-step generator and fake
/// score are all this network.
pub struct Denoiser {
    pub(crate) parameters: Vec<Tensor>,
    encoder: Encoder,
    decoder: Decoder,
}

impl Denoiser {
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Denoiser> {
        let b = Builder::new(vb).pp("model");
        let encoder = Encoder::new(config, b.clone())?;
        let decoder = Decoder::new(config, encoder.channels.clone(), b.pp("dec"))?;
        Ok(Denoiser { parameters: b.parameters(), encoder, decoder })
    }

    /// The network with these weights, without gradients.
    pub fn load(config: &Config, weights: &Arrays, device: &Device) -> Result<Denoiser> {
        let source = Source { given: weights, drawn: &[], cell: "" };
        let build = |vb: VarBuilder| Denoiser::new(config, vb);
        Params::build(device, &source, build)?.0.frozen(build)
    }

    /// `x` (B, C, H, W) at noise levels `sigma` (B); the denoised images.
    /// `augment` (B, labels) only where the images were augmented.
    pub fn forward(&self, x: &Tensor, sigma: &[f32], augment: Option<&[f32]>) -> Result<Tensor> {
        let c = Precondition::at(sigma);
        let told = Told::new(&c.noise, augment, x, self.encoder.labels)?;
        let (input, parameters) = (scale_images(x, &c.input)?, &self.parameters);
        let f = if x.device().is_cpu() {
            tape::apply(parameters, &input, |ops, images, x| {
                self.walk(ops, x, &told.of(&images, self.encoder.labels))
            })?
        } else {
            elsewhere::apply(parameters, &input, activations(x.device()), |ops, x| self.walk(ops, x, &told))?
        };
        mix(x, &c.skip, &f, &c.out)
    }

    pub(crate) fn walk<O: Ops>(&self, ops: &mut O, x: &O::Map, told: &Told) -> Result<O::Map> {
        let emb = self.encoder.embed(ops, told)?;
        let skips = self.encoder.forward(ops, x, &emb)?;
        self.decoder.forward(ops, skips, &emb)
    }
}

/// c(x_t, t): the encoder half with one scalar logit on top, positive for data
/// (section 2; the paper is silent on the head: group norm, SiLU, mean over
/// pixels, linear).
pub struct Critic {
    pub(crate) parameters: Vec<Tensor>,
    encoder: Encoder,
    norm: Norm,
    head: Linear,
}

/// Prefix of the names that only the critic has.
pub const CRITIC_HEAD: &str = "critic.";

impl Critic {
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Critic> {
        let b = Builder::new(vb);
        let encoder = Encoder::new(config, b.pp("model"))?;
        let channels = *encoder.channels.last().expect("an encoder has blocks");
        let top = b.pp("critic");
        let norm = norm(channels, true, top.pp("norm"))?;
        let head = Linear::new(channels, 1, true, top.pp("head"))?;
        Ok(Critic { parameters: b.parameters(), encoder, norm, head })
    }

    /// Logits (B) of `x` (B, C, H, W) at noise levels `sigma` (B); `augment` as
    /// for [`Denoiser::forward`].
    pub fn forward(&self, x: &Tensor, sigma: &[f32], augment: Option<&[f32]>) -> Result<Tensor> {
        let c = Precondition::at(sigma);
        let told = Told::new(&c.noise, augment, x, self.encoder.labels)?;
        let x = scale_images(x, &c.input)?;
        let logits = if x.device().is_cpu() {
            tape::apply(&self.parameters, &x, |ops, images, x| {
                self.walk(ops, x, &told.of(&images, self.encoder.labels))
            })?
        } else {
            elsewhere::apply(&self.parameters, &x, activations(x.device()), |ops, x| {
                self.walk(ops, x, &told)
            })?
        };
        logits.flatten_all()
    }

    /// Logits (B) of real and of generated images (B, C, H, W) at the same noise levels,
    /// from one pass; `labels` of both where they were augmented.
    pub fn both(
        &self,
        real: &Tensor,
        fake: &Tensor,
        sigma: &[f32],
        labels: Option<(Vec<f32>, Vec<f32>)>,
    ) -> Result<[Tensor; 2]> {
        let n = sigma.len();
        let labels = labels.map(|(real, fake)| [real, fake].concat());
        let images = Tensor::cat(&[real, fake], 0)?;
        let logits = self.forward(&images, &[sigma, sigma].concat(), labels.as_deref())?;
        Ok([logits.narrow(0, 0, n)?, logits.narrow(0, n, n)?])
    }

    pub(crate) fn walk<O: Ops>(&self, ops: &mut O, x: &O::Map, told: &Told) -> Result<O::Map> {
        let emb = self.encoder.embed(ops, told)?;
        let last = self.encoder.forward(ops, x, &emb)?.pop();
        let normed = ops.norm(&last.expect("an encoder has blocks"), &self.norm)?;
        let pooled = ops.mean(&normed)?;
        self.head.forward(ops, &pooled)
    }
}
