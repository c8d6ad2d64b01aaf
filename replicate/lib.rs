//! Re-runs "Towards Training One-Step Diffusion Models Without Distillation"
//! (arXiv 2502.08005) and says what it measured.
//!
//! | the paper | here | tested in |
//! | --- | --- | --- |
//! | x_t = x_0 + sigma eps | [`method::equations::diffuse`] | tests/equations.rs |
//! | Eq 3, 4: denoising score matching | [`method::equations::dsm`] | equations, reference |
//! | Eq 5: variational score distillation | [`method::equations::vsd`] | equations, reference |
//! | Eq 6, 7: class ratio | [`method::equations::class_ratio`] | equations, reference |
//! | Eq 8, 9, 10: DiKL, DiJS, DiRM | [`method::equations::Divergence::phi`] | equations, reference |
//! | Algorithms 1 and 2, stage 1 | [`method::score_matching`] | determinism |
//! | Algorithm 1, stage 2 | [`method::score_based::diff_instruct`] | reference: five steps |
//! | Algorithm 2, stage 2 | [`method::ratio_based::class_ratio`] | reference: five steps of each divergence |
//! | EDM's network, preconditioning, sampler | [`network::unet`], [`network::precondition`], [`method::sampler`] | reference |
//! | EDM's augmentation | [`train::augment`] | augment |
//! | FID's Inception-v3 | [`measure::inception`] | inception |
//! | the tables' rows | [`experiment`] | cli, perturbed |
//! | every hyper-parameter | [`settings`] | settings, explain |
//! | FID's formula, IS, KID, precision, recall, collapse | [`measure::metrics`] | metrics |
//!
//! Arrows point down (`tests/rooms.rs` holds it):
//! `app` → `report` → `experiment` → `method`, `judge` → `measure` → `train` →
//! `network`, `data` → `store` → `rng`, `error`. `judge` touches no tensor, and
//! nothing in `report` or `app` can change a result.

pub mod app;
pub mod data;
pub mod error;
pub mod experiment;
pub mod judge;
pub mod measure;
pub mod method;
pub mod network;
pub mod report;
pub mod rng;
pub mod settings;
pub mod store;
pub mod text;
pub mod train;
