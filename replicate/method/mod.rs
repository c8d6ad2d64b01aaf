//! The paper, and the other rows of Table 1.

pub mod distill;
pub mod equations;
pub mod noise;
pub mod sampler;
