//! Re-runs "Towards Training One-Step Diffusion Models Without Distillation"
//! (arXiv 2502.08005) and says what it measured.
//!
//! | the paper | here | tested in |
//! | --- | --- | --- |
//! | x_t = x_0 + sigma eps | [`equations::diffuse`] | tests/equations.rs |
//! | Eq 3, 4: denoising score matching | [`equations::dsm`] | equations, reference |
//! | Eq 5: variational score distillation | [`equations::vsd`] | equations, reference |
//! | Eq 6, 7: class ratio | [`equations::class_ratio`] | equations, reference |
//! | Eq 8, 9, 10: DiKL, DiJS, DiRM | [`equations::Divergence::phi`] | equations, reference |
//! | Algorithms 1 and 2, stage 1 | [`train::Teaching`] | determinism |
//! | Algorithms 1 and 2, stage 2 | [`distill::OneStep`] | reference: five steps of each |
//! | EDM's network, preconditioning, sampler | [`unet`], [`noise`], [`sampler`] | reference |
//! | EDM's augmentation | [`augment`] | augment |
//! | FID's Inception-v3 | [`inception`] | inception |
//! | the tables' rows, every hyper-parameter | [`experiment`] | cli, perturbed |
//! | FID's formula, IS, KID, precision, recall, collapse | [`metrics`] | metrics |
//!
//! Arrows point down: `commands` → `run` → `train`, `evaluate` → `distill`,
//! `features`, `inception` → `unet`, `equations`, `metrics` → `tape`, `fused`,
//! `composed` → `kernels`, `rng`. `golden`, `claims`, `paper` and `report` touch no
//! tensor; the store, `fetch` and the commands are all that writes files, but for the
//! events of `--watch tensorboard`.

pub mod augment;
pub mod bench;
pub mod chart;
pub mod checkpoint;
pub mod claims;
pub mod cli;
pub mod commands;
pub mod composed;
pub mod data;
pub mod device;
pub mod distill;
pub mod equations;
pub mod error;
pub mod evaluate;
pub mod experiment;
pub mod explain;
pub mod features;
pub mod fetch;
pub mod figures;
pub mod findings;
#[cfg(feature = "cudnn")]
pub mod fused;
pub mod golden;
pub mod grid;
pub mod inception;
pub mod kernels;
pub mod machine;
pub mod metrics;
pub mod network;
pub mod noise;
pub mod npz;
pub mod optim;
pub mod page;
pub mod paper;
pub mod params;
pub mod plan;
pub mod process;
pub mod report;
pub mod rng;
pub mod run;
pub mod sampler;
pub mod score;
pub mod selftest;
pub mod statistics;
pub mod store;
pub mod student;
pub mod tape;
pub mod tfevents;
pub mod train;
pub mod unet;
pub mod unzip;
pub mod watch;

/// Networks on other devices than the CPU.
#[cfg(not(feature = "cudnn"))]
pub(crate) use composed as elsewhere;
#[cfg(feature = "cudnn")]
pub(crate) use fused as elsewhere;
