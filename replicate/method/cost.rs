//! Networks and passes of a method's iteration, from which its time and memory are estimated.

use crate::network::count::Count;
use crate::network::unet::Config;
use crate::settings::Overrides;
use std::fmt::{Display, Formatter};

/// A network of a method.
#[derive(Clone, Copy)]
pub struct Network {
    pub name: &'static str,
    pub size: Size,
    pub role: Role,
}

impl Network {
    /// Makes a network that is trained, averaged and published.
    pub const fn averaged(name: &'static str, size: Size) -> Network {
        Network { name, size, role: Role::Averaged }
    }

    /// Makes a network that is trained.
    pub const fn trained(name: &'static str, size: Size) -> Network {
        Network { name, size, role: Role::Trained }
    }

    /// Makes a part of another network; it has no parameters of its own.
    pub const fn part(name: &'static str, size: Size) -> Network {
        Network { name, size, role: Role::Part }
    }

    /// Makes a network whose parameters get no gradients.
    pub const fn frozen(name: &'static str, size: Size) -> Network {
        Network { name, size, role: Role::Frozen }
    }
}

/// Use of a network in training, which decides its memory.
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
    /// True if the parameters are trained.
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

/// Kind of a network, which decides its size.
#[derive(Clone, Copy)]
pub enum Size {
    Denoiser,
    Critic,
    /// Any other network, counted from the scale's configuration.
    Other(fn(&Config) -> Count),
}

impl Size {
    /// Counts the network at the scale's configuration.
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
    /// Index of the step; calls of one step share its peak of memory. If a method lists the setting
    /// `critic_steps`, step 0 runs that many times.
    pub step: usize,
    pub network: &'static str,
    pub pass: Pass,
    /// Passes for each image of the batch.
    pub times: f64,
}

/// Kind of a pass, which decides its cost.
#[derive(Clone, Copy)]
pub enum Pass {
    Forward,
    /// Another pass, whose average number in an iteration follows from the settings. Passes run one after
    /// the other, so that memory holds one.
    Counted(&'static Pass, fn(&Overrides) -> f64),
    /// Forward, and backward to the inputs only.
    Through,
    /// Forward, and backward to inputs and parameters.
    Trained,
}

impl Pass {
    /// Cost in forward passes. The gradient of the inputs costs one forward pass, and so does that
    /// of the parameters.
    pub fn forwards(self, overrides: &Overrides) -> f64 {
        match self {
            Pass::Forward => 1.0,
            Pass::Counted(pass, times) => times(overrides) * pass.forwards(overrides),
            Pass::Through => 2.0,
            Pass::Trained => 3.0,
        }
    }

    /// True if its activations are kept for a backward pass.
    pub fn is_kept(self) -> bool {
        match self {
            Pass::Forward => false,
            Pass::Counted(pass, _) => pass.is_kept(),
            Pass::Through | Pass::Trained => true,
        }
    }
}
