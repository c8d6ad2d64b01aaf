//! Measurements of images: features, distances, scores, collapse.

pub mod classifier;
pub mod evaluate;
pub mod inception;
pub mod metrics;
pub mod sample;
pub mod statistics;
