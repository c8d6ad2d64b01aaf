//! Recognises the configuration of a U-Net from a checkpoint.

use crate::network::unet::Config;
use std::collections::{BTreeMap, BTreeSet};

/// Infers the configuration of the network from the names and shapes of its parameters. It reads
/// only the encoder; strict loading checks the rest.
///
/// # Errors
/// A description of what is missing, if the names are not those of EDM's U-Net.
pub fn recognise(shapes: &BTreeMap<String, Vec<usize>>) -> Result<Config, String> {
    let encoder = |name: String| shapes.get(&format!("model.enc.{name}.weight"));
    let sizes = shapes.keys().filter_map(|name| {
        let (size, rest) = name.strip_prefix("model.enc.")?.split_once('x')?;
        rest.ends_with("_conv.weight").then(|| size.parse::<usize>().ok())?
    });
    let size = sizes.max().ok_or_else(|| {
        let place = shapes.keys().find_map(|name| Some(name.split_once(".model.enc.")?.0));
        let below = place.map_or(String::new(), |place| {
            format!("; {} has one: save that part alone", crate::error::shown(place))
        });
        format!("no first convolution (model.enc.SIZExSIZE_conv.weight){below}")
    })?;
    let first = encoder(format!("{size}x{size}_conv")).filter(|shape| shape.len() == 4);
    let &[model_channels, image_channels, ..] = &first.ok_or("a first convolution of another shape")?[..]
    else {
        return Err("a first convolution of another shape".into());
    };
    let (mut channel_mult, mut attention_sizes, mut blocks) = (Vec::new(), Vec::new(), BTreeSet::new());
    for size in (0..).map(|level| size >> level).take_while(|size| *size > 0) {
        let convs: Vec<_> = (0..).map_while(|i| encoder(format!("{size}x{size}_block{i}.conv0"))).collect();
        let Some(channels) = convs.first().and_then(|shape| shape.first()) else { break };
        channel_mult.push(channels / model_channels.max(1));
        blocks.insert(convs.len());
        if encoder(format!("{size}x{size}_block0.qkv")).is_some() {
            attention_sizes.push(size);
        }
    }
    let augment = shapes.get("model.map_augment.weight").and_then(|shape| shape.get(1));
    match (blocks.len(), blocks.pop_first()) {
        (1, Some(blocks)) => Ok(Config {
            size,
            image_channels,
            model_channels,
            channel_mult,
            blocks,
            attention_sizes,
            augment_labels: augment.copied().unwrap_or(0),
        }),
        (0, _) => Err(format!("no blocks of {size}x{size} (model.enc.{size}x{size}_block0)")),
        _ => Err("another number of blocks at each resolution".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::params::outline;
    use crate::network::unet::Denoiser;

    fn shapes(config: &Config) -> BTreeMap<String, Vec<usize>> {
        outline(|vb| Denoiser::new(config, vb)).unwrap().1
    }

    #[test]
    fn a_network_is_recognised_by_its_parameters() {
        let tiny = Config {
            size: 16,
            image_channels: 3,
            model_channels: 16,
            channel_mult: vec![1, 2],
            blocks: 1,
            attention_sizes: vec![8],
            augment_labels: 0,
        };
        // EDM's network for FFHQ and AFHQ.
        let faces = Config {
            size: 64,
            channel_mult: vec![1, 2, 2, 2],
            attention_sizes: vec![16],
            ..Config::cifar10()
        };
        for config in [tiny, Config::cifar10(), faces] {
            assert_eq!(recognise(&shapes(&config)), Ok(config));
        }
    }

    #[test]
    fn what_is_no_u_net_is_said_to_be_none() {
        let mut shapes = shapes(&Config::cifar10());
        let told = |shapes: &BTreeMap<String, Vec<usize>>| recognise(shapes).unwrap_err();
        assert!(told(&BTreeMap::new()).ends_with("_conv.weight)"));
        let nested = shapes.iter().map(|(name, shape)| (format!("net.{name}"), shape.clone())).collect();
        assert!(told(&nested).ends_with("; net has one: save that part alone"));
        shapes.remove("model.enc.16x16_block3.conv0.weight");
        assert_eq!(told(&shapes), "another number of blocks at each resolution");
        shapes.retain(|name, _| !name.contains("block"));
        assert!(told(&shapes).contains("no blocks of 32x32"));
        shapes.insert("model.enc.32x32_conv.weight".into(), vec![3]);
        assert!(told(&shapes).contains("of another shape"));
        shapes.insert("model.enc.32x32_conv.weight".into(), vec![0, 3, 3, 3]);
        shapes.insert("model.enc.32x32_block0.conv0.weight".into(), vec![]);
        assert!(told(&shapes).contains("no blocks"));
    }
}
