//! The methods of the paper and of the other rows of Table 1, a file or folder for each. This module has
//! the traits and the registry, which is the only place that knows all methods.

pub mod consistency;
pub mod cost;
pub mod equations;
pub mod noise;
pub mod one_step;
pub mod ratio_based;
pub mod sampler;
pub mod schedule;
pub mod score_based;
pub mod score_matching;

use crate::method::consistency::{bcm, ctm, ict, sct};
use crate::method::cost::{Call, Network};
use crate::method::equations::Divergence;
use crate::method::one_step::OneStep;
use crate::method::ratio_based::class_ratio::ratio;
use crate::method::ratio_based::diffusion_gan;
use crate::method::sampler::edm;
use crate::method::score_based::{diff_instruct, sid};
use crate::network::device::Compute;
use crate::network::params::Arrays;
use crate::network::unet::Config;
use crate::settings::{Choice, Overrides, Setting, Settings};
use crate::train::Method;
use candle_core::{Result, Tensor};
use std::fmt::{Display, Formatter};

/// Makes images from latents with trained networks.
pub trait Sampler {
    /// Network calls for one image (NFE).
    fn nfe(&self) -> usize;

    /// Latents for one image: 1 if only the start is random.
    fn latents(&self) -> usize {
        1
    }

    /// Makes images (B, C, H, W) in [-1, 1] from latents z ~ N(0, I) of the same shape. If an image
    /// takes several latents, they are concatenated along the channels.
    fn sample(&self, z: &Tensor) -> Result<Tensor>;
}

/// Inputs from which a method is built.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    pub compute: &'a Compute,
    pub network: &'a Config,
    pub settings: &'a OneStep,
    pub overrides: &'a Overrides,
    /// Images of the whole training.
    pub images: u64,
    pub initial: InitialWeights<'a>,
    /// Key of the random streams.
    pub cell: &'a str,
}

/// Weights of the initialisation; `None` means random.
#[derive(Clone, Copy, Default)]
pub struct InitialWeights<'a> {
    /// Initialisation of the row, and of a method's teacher.
    pub row: Option<&'a Arrays>,
    pub generator: Option<&'a Arrays>,
    /// Initialisation of the critic, or of the fake score.
    pub critic: Option<&'a Arrays>,
}

impl Setup<'_> {
    /// Returns a method's own settings.
    pub fn own<S: Settings>(&self) -> S {
        S::with(self.overrides)
    }
}

/// Makes a method in training.
pub type Build = fn(&Setup) -> Result<Box<dyn Method>>;

/// Description of a method for the rest of the program.
#[derive(Clone, Copy)]
pub struct Spec {
    /// Name in the key of a result.
    pub name: &'static str,
    /// Source in the literature.
    pub cite: &'static str,
    /// Source file; its digest is part of the key of the results.
    pub file: &'static str,
    /// Digest of code that keys identify by its values instead of its source.
    pub fingerprint: Option<fn() -> String>,
    /// `None` if the weights of the initialisation are sampled without further training.
    pub training: Option<TrainingSpec>,
    /// Network calls for one image (NFE).
    pub nfe: fn(&Overrides) -> usize,
    /// The method's own settings, in addition to those of one-step training: `&[Sid::listed]`.
    pub settings: &'static [fn(&Overrides) -> Vec<Setting>],
    /// Makes the sampler of the published weights.
    pub sampler: fn(&Setup, &Arrays) -> Result<Box<dyn Sampler>>,
}

/// Training of a method, and its cost.
#[derive(Clone, Copy)]
pub struct TrainingSpec {
    pub build: Build,
    pub networks: &'static [Network],
    pub calls: &'static [Call],
    /// Images of the published training, if the method is designed to start from random weights. A
    /// row with that start sees at most as many images as the other rows in pre-training and
    /// one-step training together.
    pub from_scratch: Option<u64>,
    /// Images of the published training, if that is short by design; it sees no more.
    pub at_most: Option<u64>,
    /// Consecutive images of a batch that no microbatch separates.
    pub group: fn(&Overrides) -> usize,
}

/// Training images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// The ten target classes: CIFAR-10, or the digits.
    Target,
    /// More images of the target classes, which no network is trained on. Scores compare with them
    /// if the training images would favour a network that memorises.
    HeldOut,
    /// The first n source classes: CIFAR-100 without overlap, or invented characters.
    Sources(usize),
    /// The first n invented characters, also if the sources are files.
    Characters(usize),
}

impl Display for Data {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        match self {
            Data::Target => write!(f, "target"),
            Data::HeldOut => write!(f, "held-out"),
            Data::Sources(n) => write!(f, "sources-{n}"),
            Data::Characters(n) => write!(f, "characters-{n}"),
        }
    }
}

/// Initialisation of a row (Table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initialization {
    Random,
    /// Denoising score matching at sigma_init only, on the target data.
    SingleLevel,
    /// Denoising score matching at all levels.
    MultiLevel(Data),
}

impl Initialization {
    /// Returns the images of its pre-training.
    pub fn data(self) -> Data {
        match self {
            Initialization::MultiLevel(data) => data,
            Initialization::SingleLevel | Initialization::Random => Data::Target,
        }
    }
}

impl Display for Initialization {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        match self {
            Initialization::Random => write!(f, "random"),
            Initialization::SingleLevel => write!(f, "single-level"),
            Initialization::MultiLevel(data) => write!(f, "multi-level-{data}"),
        }
    }
}

/// Initialisation of one network of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkInit {
    /// Starts like the row.
    Row,
    From(Initialization),
}

const fn pretrained(data: Data) -> NetworkInit {
    NetworkInit::From(Initialization::MultiLevel(data))
}

impl Choice for NetworkInit {
    const ALL: &'static [(&'static str, NetworkInit)] = &[
        ("row", NetworkInit::Row),
        ("random", NetworkInit::From(Initialization::Random)),
        ("single-level", NetworkInit::From(Initialization::SingleLevel)),
        ("multi-level", pretrained(Data::Target)),
        ("sources-10", pretrained(Data::Sources(10))),
        ("sources-50", pretrained(Data::Sources(50))),
        ("sources-90", pretrained(Data::Sources(90))),
        ("characters-10", pretrained(Data::Characters(10))),
        ("characters-50", pretrained(Data::Characters(50))),
        ("characters-90", pretrained(Data::Characters(90))),
    ];
}

/// One experiment of the paper's tables.
#[derive(Clone, Copy)]
pub struct Row {
    /// Its id in paper/table1.csv or paper/table2.csv.
    pub id: &'static str,
    pub method: Spec,
    pub start: Initialization,
    /// Row whose generator this row starts from; `None` if it starts like the other networks.
    pub first_stage: Option<FirstStage>,
}

/// A row whose generator another row continues from: that of the same seed, or the published one
/// for scales whose networks are published.
#[derive(Clone, Copy)]
pub struct FirstStage {
    pub row: &'static str,
    /// Images that the published generator has seen.
    pub published: u64,
}

impl Row {
    /// Returns the row whose generator this row starts from.
    ///
    /// # Panics
    /// If the registry does not have it.
    pub fn first_stage_row(&self) -> Option<Row> {
        let id = self.first_stage?.row;
        let found = all_rows().find(|row| row.id == id);
        Some(found.unwrap_or_else(|| panic!("{} starts from {id}, which is no row", self.id)))
    }
}

impl PartialEq for Row {
    fn eq(&self, other: &Row) -> bool {
        self.id == other.id
    }
}

impl Eq for Row {}

const FULL: Initialization = Initialization::MultiLevel(Data::Target);

const fn row(id: &'static str, method: Spec, start: Initialization) -> Row {
    Row { id, method, start, first_stage: None }
}

const DIJS: Spec = ratio!(DiJs, "Eq 9");

/// The full multi-level initialisation, with which Table 2 compares the others.
pub const FULL_INITIALIZATION: Row = row("dijs", DIJS, FULL);

/// Table 1, the paper's own rows first. A new method needs its file with its `pub mod`, a line
/// here, and a line in paper/table1.csv (CONTRIBUTING.md).
pub const TABLE1: &[Row] = &[
    row("edm", edm::SPEC, FULL),
    row("diff-instruct", diff_instruct::SPEC, FULL),
    row("dirm", ratio!(DiRm, "Eq 10"), FULL),
    row("dikl", ratio!(DiKl, "Eq 8"), FULL),
    FULL_INITIALIZATION,
    row("ddim", sampler::ddim::SPEC, FULL),
    row("dpm-solver-fast", sampler::dpm_solver::SPEC, FULL),
    row("amed-plugin", sampler::amed::SPEC, FULL),
    row("sid", sid::SID, FULL),
    row("sida", sid::SIDA, FULL),
    Row { first_stage: Some(sid::FIRST_STAGE), ..row("sid2a", sid::SIDA, FULL) },
    row("diff-gan", diffusion_gan::SPEC, Initialization::Random),
    row("ict", ict::SPEC, Initialization::Random),
    row("ctm", ctm::SPEC, FULL),
    row("bcm", bcm::SPEC, Initialization::Random),
    row("sct", sct::SPEC, FULL),
];

/// Table 2; its last row is Table 1's DiJS.
pub const TABLE2: &[Row] = &[
    row("init-none", DIJS, Initialization::Random),
    row("init-single", DIJS, Initialization::SingleLevel),
    row("init-10", DIJS, Initialization::MultiLevel(Data::Sources(10))),
    row("init-50", DIJS, Initialization::MultiLevel(Data::Sources(50))),
    row("init-90", DIJS, Initialization::MultiLevel(Data::Sources(90))),
    FULL_INITIALIZATION,
];

/// Rows outside the tables: those that test the paper's statements about Diffusion-GAN, and CTM with
/// an adversary that is not its authors'.
pub const ABLATIONS: &[Row] = &[
    row("diff-gan-no-r1", diffusion_gan::NO_R1, Initialization::Random),
    row("diff-gan-near-r1", diffusion_gan::APPROXIMATE, Initialization::Random),
    row("diff-gan-unet", diffusion_gan::UNETS, FULL),
    row("diff-gan-unet-no-r1", diffusion_gan::UNETS_NO_R1, FULL),
    row("diff-gan-unet-none", diffusion_gan::UNETS, Initialization::Random),
    row("diff-gan-unet-none-no-r1", diffusion_gan::UNETS_NO_R1, Initialization::Random),
    row("ctm-gan", ctm::WITH_CRITIC, FULL),
];

/// Changes to the settings of the paper scale with which a row trains as its authors
/// trained: `--preset published`.
pub const PUBLISHED: &[(&str, &[&str])] =
    &[("ict", ict::PUBLISHED), ("ctm", ctm::PUBLISHED), ("bcm", ict::PUBLISHED), ("sct", sct::PUBLISHED)];

/// Returns the changes of `row`, if it has any.
pub fn published(row: &Row) -> Option<&'static [&'static str]> {
    PUBLISHED.iter().find(|(id, _)| *id == row.id).map(|(_, changes)| *changes)
}

/// Returns every row once.
pub fn all_rows() -> impl Iterator<Item = Row> {
    let table2 = TABLE2.iter().filter(|row| **row != FULL_INITIALIZATION);
    TABLE1.iter().chain(table2).chain(ABLATIONS).copied()
}
