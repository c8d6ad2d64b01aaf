//! Tensors read from a file: contiguous, of any of torch's plain types.

use crate::store::Array;

/// Type of the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::BF16 | Dtype::I16 => 2,
            Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
        }
    }

    pub(super) fn is_float(self) -> bool {
        matches!(self, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }

    /// Returns the type of this name in safetensors files.
    pub(in crate::store::formats) fn of_safetensors(name: &str) -> Option<Dtype> {
        use Dtype::*;
        let all = [F64, F32, F16, BF16, I64, I32, I16, I8, U8, Bool];
        all.into_iter().find(|dtype| dtype.to_string().to_uppercase() == name)
    }

    /// Converts one element from its little-endian bytes.
    pub fn value(self, bytes: &[u8]) -> f64 {
        let bits = bytes.iter().rev().fold(0u64, |bits, byte| bits << 8 | *byte as u64);
        match self {
            Dtype::F64 => f64::from_bits(bits),
            Dtype::F32 => f32::from_bits(bits as u32) as f64,
            Dtype::F16 => half(bits as u16),
            Dtype::BF16 => f32::from_bits((bits as u32) << 16) as f64,
            Dtype::I64 => bits as i64 as f64,
            Dtype::I32 => bits as i32 as f64,
            Dtype::I16 => bits as i16 as f64,
            Dtype::I8 => bits as i8 as f64,
            Dtype::U8 | Dtype::Bool => bits as f64,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.pad(match self {
            Dtype::F64 => "f64",
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::BF16 => "bf16",
            Dtype::I64 => "i64",
            Dtype::I32 => "i32",
            Dtype::I16 => "i16",
            Dtype::I8 => "i8",
            Dtype::U8 => "u8",
            Dtype::Bool => "bool",
        })
    }
}

/// Converts an IEEE 754 binary16: 1 sign, 5 exponent and 10 fraction bits.
fn half(bits: u16) -> f64 {
    let sign = if bits & 0x8000 != 0 { -1.0 } else { 1.0 };
    let (exponent, fraction) = ((bits >> 10 & 31) as i32, (bits & 1023) as f64);
    sign * match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    }
}

/// A contiguous tensor. `data` is row-major and little-endian and has as many elements as `shape`
/// says; the strides of the file are resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Tensor {
    /// Elements in row-major order; exact except for integers beyond 2^53.
    pub fn values(&self) -> impl Iterator<Item = f64> {
        self.data.chunks_exact(self.dtype.size()).map(|bytes| self.dtype.value(bytes))
    }

    /// Converts to float32; float64 is rounded. The error is an integer that float32 cannot
    /// represent (beyond 2^24).
    pub(super) fn to_array(&self) -> Result<Array, f64> {
        const EXACT: f64 = (1 << f32::MANTISSA_DIGITS) as f64;
        if !self.dtype.is_float()
            && let Some(large) = self.values().find(|value| value.abs() > EXACT)
        {
            return Err(large);
        }
        let data = match self.dtype {
            // Not through float64, which would change the bits of some NaNs.
            Dtype::F32 => self.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            _ => self.values().map(|value| value as f32).collect(),
        };
        Ok(Array { shape: self.shape.clone(), data })
    }
}
