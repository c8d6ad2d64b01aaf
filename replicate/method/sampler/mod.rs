//! From a denoiser to images in several steps.

pub mod edm;
