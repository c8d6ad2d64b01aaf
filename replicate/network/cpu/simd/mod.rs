//! Inner loops in vectors of the CPU.

pub(crate) mod filter;
pub(crate) mod lanes;
pub(crate) mod product;
pub(crate) mod winograd;
