//! Measured values held against golden values, the paper's numbers and its claims.
//! Nothing here touches a tensor.

pub mod claims;
mod compare;
pub mod differences;
pub mod golden;
pub mod paper;
pub mod stats;
