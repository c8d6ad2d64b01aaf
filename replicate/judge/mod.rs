//! Compares measured values with golden values, with the paper's numbers, and with its claims. It
//! computes on numbers only, never on tensors.

pub mod claims;
mod compare;
pub(crate) mod csv;
pub mod differences;
pub mod golden;
pub mod paper;
pub mod sample;
pub mod stats;
