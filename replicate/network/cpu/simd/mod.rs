//! Inner loops with vector instructions.

pub(crate) mod filter;
pub(crate) mod lanes;
pub(crate) mod product;
pub(crate) mod winograd;
