//! EDM's "SongUNet" in its DDPM++ form (positional embedding, [1, 1] resample
//! filter, residual 1x1 skips), its preconditioning, and the critic made of
//! the same encoder. Our reading of Karras et al. 2022; tensor names are those
//! of the published checkpoints.

use crate::kernels::{
    activations, attention, conv2d, down2, group_norm, linear, mix, scale_images, silu, up2,
};
use crate::noise::Precondition;
use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

const EPS: f32 = 1e-6;
/// Residual sums are scaled to keep their variance.
const SKIP_SCALE: [f32; 1] = [std::f32::consts::FRAC_1_SQRT_2];

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Pixels on a side.
    pub size: usize,
    pub image_channels: usize,
    pub model_channels: usize,
    /// Channels of each resolution, times `model_channels`.
    pub channel_mult: Vec<usize>,
    pub blocks: usize,
    pub attention_sizes: Vec<usize>,
    /// Length of the augmentation label; 0 for none.
    pub augment_labels: usize,
}

impl Config {
    /// `edm-cifar10-32x32-uncond-vp`: 55,733,891 parameters.
    pub fn cifar10() -> Config {
        Config {
            size: 32,
            image_channels: 3,
            model_channels: 128,
            channel_mult: vec![2, 2, 2],
            blocks: 4,
            attention_sizes: vec![16],
            augment_labels: 9,
        }
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
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    fn new(inputs: usize, outputs: usize, bias: bool, vb: VarBuilder) -> Result<Linear> {
        Ok(Linear {
            weight: vb.get_with_hints((outputs, inputs), "weight", xavier(inputs, outputs, 1.0))?,
            bias: if bias { Some(vb.get_with_hints(outputs, "bias", Init::Const(0.0))?) } else { None },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Resample {
    Keep,
    Down,
    Up,
}

struct Conv {
    weight: Tensor,
    bias: Tensor,
    resample: Resample,
}

impl Conv {
    fn new(
        inputs: usize,
        outputs: usize,
        k: usize,
        gain: f64,
        resample: Resample,
        vb: VarBuilder,
    ) -> Result<Conv> {
        let init = xavier(inputs * k * k, outputs * k * k, gain);
        Ok(Conv {
            weight: vb.get_with_hints((outputs, inputs, k, k), "weight", init)?,
            bias: vb.get_with_hints(outputs, "bias", Init::Const(0.0))?,
            resample,
        })
    }

    fn resampled(&self, x: &Tensor) -> Result<Tensor> {
        match self.resample {
            Resample::Keep => Ok(x.clone()),
            Resample::Down => down2(x),
            Resample::Up => up2(x),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        conv2d(&self.resampled(x)?, &self.weight, &self.bias)
    }

    /// With a (B, O) term added to every pixel.
    fn forward_plus(&self, x: &Tensor, term: &Tensor) -> Result<Tensor> {
        conv2d(&self.resampled(x)?, &self.weight, &term.broadcast_add(&self.bias)?)
    }
}

struct Norm {
    gamma: Tensor,
    beta: Tensor,
    groups: usize,
}

impl Norm {
    fn new(channels: usize, vb: VarBuilder) -> Result<Norm> {
        Ok(Norm {
            gamma: vb.get_with_hints(channels, "weight", Init::Const(1.0))?,
            beta: vb.get_with_hints(channels, "bias", Init::Const(0.0))?,
            groups: (channels / 4).clamp(1, 32),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        group_norm(x, &self.gamma, &self.beta, self.groups, EPS, false)
    }

    fn silu(&self, x: &Tensor) -> Result<Tensor> {
        group_norm(x, &self.gamma, &self.beta, self.groups, EPS, true)
    }
}

struct Attention {
    norm: Norm,
    qkv: Conv,
    proj: Conv,
}

impl Attention {
    fn new(channels: usize, vb: VarBuilder) -> Result<Attention> {
        Ok(Attention {
            norm: Norm::new(channels, vb.pp("norm2"))?,
            qkv: Conv::new(channels, 3 * channels, 1, 0.2f64.sqrt(), Resample::Keep, vb.pp("qkv"))?,
            proj: Conv::new(channels, channels, 1, ZERO, Resample::Keep, vb.pp("proj"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let a = attention(&self.qkv.forward(&self.norm.forward(x)?)?.flatten_from(2)?)?;
        let a = self.proj.forward(&a.reshape(x.shape())?)?;
        mix(&a, &SKIP_SCALE, x, &SKIP_SCALE)
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
        vb: VarBuilder,
    ) -> Result<Block> {
        let project = inputs != outputs || resample != Resample::Keep;
        Ok(Block {
            norm0: Norm::new(inputs, vb.pp("norm0"))?,
            conv0: Conv::new(inputs, outputs, 3, 1.0, resample, vb.pp("conv0"))?,
            affine: Linear::new(embedding, outputs, true, vb.pp("affine"))?,
            norm1: Norm::new(outputs, vb.pp("norm1"))?,
            conv1: Conv::new(outputs, outputs, 3, ZERO, Resample::Keep, vb.pp("conv1"))?,
            skip: if project {
                Some(Conv::new(inputs, outputs, 1, 1.0, resample, vb.pp("skip"))?)
            } else {
                None
            },
            attention: if attention { Some(Attention::new(outputs, vb)?) } else { None },
        })
    }

    fn forward(&self, x: &Tensor, emb: &Tensor) -> Result<Tensor> {
        let h = self.conv0.forward_plus(&self.norm0.silu(x)?, &self.affine.forward(emb)?)?;
        let h = self.conv1.forward(&self.norm1.silu(&h)?)?;
        let skip = match &self.skip {
            Some(skip) => skip.forward(x)?,
            None => x.clone(),
        };
        let y = mix(&h, &SKIP_SCALE, &skip, &SKIP_SCALE)?;
        match &self.attention {
            Some(attention) => attention.forward(&y),
            None => Ok(y),
        }
    }
}

enum EncoderBlock {
    First(Conv),
    Residual(Block),
}

/// Called with the name and the output of every block.
pub type Probe<'a> = &'a mut dyn FnMut(&str, &Tensor);

/// Noise embedding and the downward half.
struct Encoder {
    model_channels: usize,
    map_augment: Option<Linear>,
    map_layer0: Linear,
    map_layer1: Linear,
    blocks: Vec<(String, EncoderBlock)>,
    /// Channels of each block's output, in order.
    channels: Vec<usize>,
}

impl Encoder {
    fn new(config: &Config, vb: VarBuilder) -> Result<Encoder> {
        let (ch, emb) = (config.model_channels, config.embedding());
        let mut blocks = Vec::new();
        let mut channels = Vec::new();
        let mut current = config.image_channels;
        let enc = vb.pp("enc");
        for (level, mult) in config.channel_mult.iter().enumerate() {
            let size = config.size >> level;
            if level == 0 {
                let name = format!("{size}x{size}_conv");
                let conv = Conv::new(current, ch, 3, 1.0, Resample::Keep, enc.pp(&name))?;
                current = ch;
                blocks.push((name, EncoderBlock::First(conv)));
            } else {
                let name = format!("{size}x{size}_down");
                let block = Block::new(current, current, emb, Resample::Down, false, enc.pp(&name))?;
                blocks.push((name, EncoderBlock::Residual(block)));
            }
            channels.push(current);
            for i in 0..config.blocks {
                let name = format!("{size}x{size}_block{i}");
                let attention = config.attention_sizes.contains(&size);
                let block = Block::new(current, ch * mult, emb, Resample::Keep, attention, enc.pp(&name))?;
                current = ch * mult;
                blocks.push((name, EncoderBlock::Residual(block)));
                channels.push(current);
            }
        }
        Ok(Encoder {
            model_channels: ch,
            map_augment: match config.augment_labels {
                0 => None,
                n => Some(Linear::new(n, ch, false, vb.pp("map_augment"))?),
            },
            map_layer0: Linear::new(ch, emb, true, vb.pp("map_layer0"))?,
            map_layer1: Linear::new(emb, emb, true, vb.pp("map_layer1"))?,
            blocks,
            channels,
        })
    }

    /// (B, 4 model_channels) from the noise labels c_noise.
    fn embed(&self, noise: &[f32], augment: Option<&Tensor>, x: &Tensor) -> Result<Tensor> {
        let half = self.model_channels / 2;
        let frequency: Vec<f32> = (0..half).map(|i| libm::powf(1e-4, i as f32 / (half - 1) as f32)).collect();
        let mut values = Vec::with_capacity(noise.len() * 2 * half);
        for n in noise {
            // EDM makes cos | sin and swaps the halves.
            values.extend(frequency.iter().map(|f| libm::sinf(n * f)));
            values.extend(frequency.iter().map(|f| libm::cosf(n * f)));
        }
        let mut emb = Tensor::from_vec(values, (noise.len(), 2 * half), x.device())?;
        if let (Some(map), Some(labels)) = (&self.map_augment, augment) {
            emb = (emb + map.forward(labels)?)?;
        }
        let emb = silu(&self.map_layer0.forward(&emb)?)?;
        silu(&self.map_layer1.forward(&emb)?)
    }

    fn forward(&self, x: &Tensor, emb: &Tensor, probe: Probe) -> Result<Vec<Tensor>> {
        let mut outputs: Vec<Tensor> = Vec::with_capacity(self.blocks.len());
        for (name, block) in &self.blocks {
            let input = outputs.last().unwrap_or(x);
            let y = match block {
                EncoderBlock::First(conv) => conv.forward(input)?,
                EncoderBlock::Residual(block) => block.forward(input, emb)?,
            };
            probe(&format!("enc.{name}"), &y);
            outputs.push(y);
        }
        Ok(outputs)
    }
}

struct Decoder {
    blocks: Vec<(String, Block, bool)>,
    norm: Norm,
    conv: Conv,
    names: (String, String),
}

impl Decoder {
    fn new(config: &Config, mut skips: Vec<usize>, vb: VarBuilder) -> Result<Decoder> {
        let (ch, emb) = (config.model_channels, config.embedding());
        let mut current = *skips.last().expect("an encoder has blocks");
        let mut blocks = Vec::new();
        for (level, mult) in config.channel_mult.iter().enumerate().rev() {
            let size = config.size >> level;
            let mut add = |name: String, inputs, outputs, resample, attention, takes_skip| -> Result<()> {
                let block = Block::new(inputs, outputs, emb, resample, attention, vb.pp(&name))?;
                blocks.push((name, block, takes_skip));
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
        let names = (format!("{size}x{size}_aux_norm"), format!("{size}x{size}_aux_conv"));
        Ok(Decoder {
            blocks,
            norm: Norm::new(current, vb.pp(&names.0))?,
            conv: Conv::new(current, config.image_channels, 3, ZERO, Resample::Keep, vb.pp(&names.1))?,
            names,
        })
    }

    fn forward(&self, mut skips: Vec<Tensor>, emb: &Tensor, probe: Probe) -> Result<Tensor> {
        let mut x = skips.last().expect("an encoder has blocks").clone();
        for (name, block, takes_skip) in &self.blocks {
            if *takes_skip {
                x = Tensor::cat(&[&x, &skips.pop().expect("one skip for each decoder block")], 1)?;
            }
            x = block.forward(&x, emb)?;
            probe(&format!("dec.{name}"), &x);
        }
        let y = self.conv.forward(&self.norm.silu(&x)?)?;
        probe(&format!("dec.{}", self.names.1), &y);
        Ok(y)
    }
}

/// D(x; sigma), the preconditioned U-Net: teacher, one-step generator and fake
/// score are all this network.
pub struct Denoiser {
    encoder: Encoder,
    decoder: Decoder,
}

impl Denoiser {
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Denoiser> {
        let vb = vb.pp("model");
        let encoder = Encoder::new(config, vb.clone())?;
        let decoder = Decoder::new(config, encoder.channels.clone(), vb.pp("dec"))?;
        Ok(Denoiser { encoder, decoder })
    }

    /// `x` (B, C, H, W) at noise levels `sigma` (B); the denoised images.
    /// `augment` (B, labels) only where the images were augmented.
    pub fn forward(&self, x: &Tensor, sigma: &[f32], augment: Option<&Tensor>) -> Result<Tensor> {
        self.forward_probed(x, sigma, augment, &mut |_, _| {})
    }

    pub fn forward_probed(
        &self,
        x: &Tensor,
        sigma: &[f32],
        augment: Option<&Tensor>,
        probe: Probe,
    ) -> Result<Tensor> {
        let c = Precondition::at(sigma);
        let emb = self.encoder.embed(&c.noise, augment, x)?;
        let input = scale_images(x, &c.input)?.to_dtype(activations(x.device()))?;
        let skips = self.encoder.forward(&input, &emb, probe)?;
        let f = self.decoder.forward(skips, &emb, probe)?.to_dtype(x.dtype())?;
        mix(x, &c.skip, &f, &c.out)
    }
}

/// c(x_t, t): the encoder half with one scalar logit on top, positive for data
/// (section 2; the paper is silent on the head: group norm, SiLU, mean over
/// pixels, linear).
pub struct Critic {
    encoder: Encoder,
    norm: Norm,
    head: Linear,
}

/// Prefix of the names that only the critic has.
pub const CRITIC_HEAD: &str = "critic.";

impl Critic {
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Critic> {
        let encoder = Encoder::new(config, vb.pp("model"))?;
        let channels = *encoder.channels.last().expect("an encoder has blocks");
        let head = vb.pp("critic");
        Ok(Critic {
            encoder,
            norm: Norm::new(channels, head.pp("norm"))?,
            head: Linear::new(channels, 1, true, head.pp("head"))?,
        })
    }

    /// Logits (B) of `x` (B, C, H, W) at noise levels `sigma` (B); `augment` as
    /// for [`Denoiser::forward`].
    pub fn forward(&self, x: &Tensor, sigma: &[f32], augment: Option<&Tensor>) -> Result<Tensor> {
        let c = Precondition::at(sigma);
        let emb = self.encoder.embed(&c.noise, augment, x)?;
        let input = scale_images(x, &c.input)?.to_dtype(activations(x.device()))?;
        let last = self.encoder.forward(&input, &emb, &mut |_, _| {})?.pop();
        let last = self.norm.silu(&last.expect("an encoder has blocks"))?.to_dtype(x.dtype())?;
        let pooled = last.flatten_from(2)?.mean(2)?;
        self.head.forward(&pooled)?.squeeze(1)
    }
}
