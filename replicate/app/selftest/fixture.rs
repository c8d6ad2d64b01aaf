//! Expected outputs of the reference implementations, and networks with weights from a formula.

use crate::network::device::Compute;
use crate::network::params::{Arrays, Params, Source};
use crate::network::unet::{Config, Denoiser};
use crate::store::Array;
use crate::store::formats::npz;
use crate::store::formats::unzip;
use candle_core::{DType, Device, Result, Tensor, bail};
use std::collections::BTreeMap;
use std::io::{Cursor, Read};

/// Arrays of an `.npz` file by name, on a CPU.
pub struct Fixture(BTreeMap<String, Tensor>);

impl Fixture {
    /// # Errors
    /// If the file is invalid.
    pub fn parse(npz: &[u8]) -> Result<Fixture> {
        let file = Cursor::new(npz);
        let mut arrays = BTreeMap::new();
        for entry in unzip::entries(file.clone()).map_err(candle_core::Error::msg)? {
            let mut npy = Vec::new();
            entry.open(file.clone())?.read_to_end(&mut npy)?;
            arrays.insert(entry.name.trim_end_matches(".npy").to_string(), array(&npy)?);
        }
        Ok(Fixture(arrays))
    }

    /// # Errors
    /// If there is no such array.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        match self.0.get(name) {
            Some(tensor) => Ok(tensor.clone()),
            None => bail!("the fixture has no {name}"),
        }
    }

    /// # Errors
    /// As [`Fixture::get`].
    pub fn f32(&self, name: &str) -> Result<Vec<f32>> {
        flat(&self.get(name)?)
    }

    /// Names of the arrays.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

fn array(npy: &[u8]) -> Result<Tensor> {
    let stored = npz::header(npy, npy.len() as u64).map_err(candle_core::Error::msg)?;
    let dtype = match stored.dtype.as_str() {
        _ if stored.fortran_order => bail!("an array in Fortran order"),
        "<f4" => DType::F32,
        "<f8" => DType::F64,
        "|u1" => DType::U8,
        "<i8" => DType::I64,
        other => bail!("an array of the type {other}"),
    };
    Tensor::from_raw_buffer(&npy[stored.header as usize..], dtype, &stored.shape, &Device::Cpu)
}

/// Returns n values in [-1, 1) that depend only on the name.
pub fn unit(name: &str, n: usize) -> Vec<f32> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        hash = (hash ^ byte as u64).wrapping_mul(0x100_0000_01b3);
    }
    (1..=n as u64)
        .map(|i| {
            let mut z = hash.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Filling formula for a parameter of EDM's network, from u in [-1, 1).
pub fn edm_value(name: &str, shape: &[usize]) -> impl Fn(f32) -> f32 + use<> {
    let bound = (3.0 / fan_in(shape)).sqrt();
    let (matrix, norm) = (shape.len() > 1, name.ends_with(".weight"));
    move |u| match (matrix, norm) {
        (true, _) => u * bound,
        (false, true) => 1.0 + 0.1 * u,
        (false, false) => 0.1 * u,
    }
}

/// Filling formula for a tensor of the FID network.
pub fn inception_value(name: &str, shape: &[usize]) -> impl Fn(f32) -> f32 + use<> {
    let bound = (6.0 / fan_in(shape)).sqrt();
    let (offset, scale) = match shape.len() {
        2.. => (0.0, bound),
        _ if name.ends_with(".running_var") => (1.0, 0.5),
        _ if name.ends_with(".bn.weight") => (1.0, 0.1),
        _ => (0.0, 0.1),
    };
    move |u| offset + scale * u
}

/// Returns the product of all dimensions except the first.
fn fan_in(shape: &[usize]) -> f32 {
    shape[1..].iter().product::<usize>() as f32
}

/// Fixed values in [-1, 1) for a name, as from [`unit`].
pub type Unit<'a> = &'a dyn Fn(&str, usize) -> Vec<f32>;

/// The network of the small fixtures.
pub fn tiny() -> Config {
    Config {
        size: 16,
        image_channels: 3,
        model_channels: 16,
        channel_mult: vec![1, 2],
        blocks: 1,
        attention_sizes: vec![8],
        augment_labels: 9,
    }
}

pub(super) fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// Fills the parameters: shapes from the network, values from the formula.
pub fn filled(params: &Params, unit: Unit) -> Arrays {
    params.iter().map(|(name, var)| (name.clone(), filled_array(name, var.dims(), unit))).collect()
}

pub(super) fn filled_array(name: &str, shape: &[usize], unit: Unit) -> Array {
    let values = unit(name, shape.iter().product());
    Array { shape: shape.to_vec(), data: values.into_iter().map(edm_value(name, shape)).collect() }
}

/// # Errors
/// Those of the device.
pub fn filled_denoiser(config: &Config, compute: &Compute, unit: Unit) -> Result<(Params, Denoiser)> {
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "parity" };
    let (params, model) = Params::build(compute, &source, |vb| Denoiser::new(config, vb))?;
    params.assign(&filled(&params, unit))?;
    Ok((params, model))
}

/// Returns the largest absolute difference, relative to the largest expected size; infinite if a
/// value is missing or not finite.
pub fn relative_error(ours: &[f32], expected: &[f32]) -> f64 {
    if ours.len() != expected.len() || !ours.iter().chain(expected).all(|v| v.is_finite()) {
        return f64::INFINITY;
    }
    let scale = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
    let worst = ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    (worst / scale.max(1e-30)) as f64
}
