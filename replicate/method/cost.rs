//! What a method's iteration consists of, for the estimate of its time and memory.

use crate::network::count::Count;
use crate::network::unet::Config;
use std::fmt::{Display, Formatter};

/// A network of a method.
#[derive(Clone, Copy)]
pub struct Network {
    pub name: &'static str,
    pub size: Size,
    pub role: Role,
}

impl Network {
    /// Trained and averaged: what is published.
    pub const fn averaged(name: &'static str, size: Size) -> Network {
        Network { name, size, role: Role::Averaged }
    }

    pub const fn trained(name: &'static str, size: Size) -> Network {
        Network { name, size, role: Role::Trained }
    }

    /// A part of another network, with its parameters.
    pub const fn part(name: &'static str, size: Size) -> Network {
        Network { name, size, role: Role::Part }
    }

    /// Without gradients of its parameters.
    pub const fn frozen(name: &'static str, size: Size) -> Network {
        Network { name, size, role: Role::Frozen }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Averaged,
    Trained,
    Frozen,
    Part,
}

impl Display for Role {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Role::Averaged => "averaged",
            Role::Trained => "trained",
            Role::Frozen => "frozen",
            Role::Part => "a part of it",
        })
    }
}

impl Role {
    pub fn learns(self) -> bool {
        matches!(self, Role::Averaged | Role::Trained)
    }

    /// Copies of the parameters in memory: values, gradients, Adam's moments, average.
    pub fn copies(self) -> u64 {
        match self {
            Role::Averaged => 5,
            Role::Trained => 4,
            Role::Frozen => 1,
            Role::Part => 0,
        }
    }
}

/// Which network it is.
#[derive(Clone, Copy)]
pub enum Size {
    Denoiser,
    Critic,
    /// Any other, counted from the scale's configuration.
    Other(fn(&Config) -> Count),
}

impl Size {
    pub fn count(self, config: &Config) -> Count {
        match self {
            Size::Denoiser => Count::denoiser(config),
            Size::Critic => Count::critic(config),
            Size::Other(count) => count(config),
        }
    }
}

/// Passes through a network in one iteration.
#[derive(Clone, Copy)]
pub struct Call {
    /// Calls of one step share its peak of memory. Where a method has the settings of
    /// every one-step training, its step 0 is done `critic_steps` times.
    pub step: usize,
    pub network: &'static str,
    pub pass: Pass,
    /// Passes for each image of the batch.
    pub times: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    Forward,
    /// Forward, and backward to the inputs only.
    Through,
    /// Forward, and backward to inputs and parameters.
    Trained,
}

impl Pass {
    /// In forward passes: a pass backwards costs one for the gradient of the inputs and
    /// one for that of the parameters.
    pub fn forwards(self) -> f64 {
        match self {
            Pass::Forward => 1.0,
            Pass::Through => 2.0,
            Pass::Trained => 3.0,
        }
    }
}
