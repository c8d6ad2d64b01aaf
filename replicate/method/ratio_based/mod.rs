//! Methods that estimate a density ratio with a critic.

pub mod class_ratio;
pub mod diffusion_gan;
