//! Methods that estimate a ratio of densities with a critic.

pub mod class_ratio;
pub mod diffusion_gan;
