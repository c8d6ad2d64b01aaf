//! Hyper-parameters. Each is defined once, with name, type, presets, range, unit and source, in a
//! struct made by [`settings!`](settings) next to the code that uses it. Keys, `--set`,
//! `--explain`, the report and manifests read these tables.

use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::ops::{RangeFull, RangeInclusive};

/// Sizes, data and budgets of an experiment. Equations and code paths are the same at every scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Drawn glyphs and very few steps, to test that everything runs.
    Smoke,
    /// Drawn glyphs, minutes on two cores, to test the claims at small size.
    Mini,
    /// CIFAR-10 averaged to 16x16 pixels, with our own teacher; an evening on two cores.
    Tiny,
    /// The paper scale's code with small files from a local server, to test that it runs. It
    /// measures nothing.
    Drill,
    /// CIFAR files, with a smaller U-Net and our own teacher.
    Small,
    /// CIFAR-10, with the published EDM checkpoint.
    Paper,
}

/// Number of presets of a setting: smoke, mini, tiny, small, paper.
const COLUMNS: usize = 5;

impl Scale {
    /// Every scale, the cheapest first.
    pub const ALL: [Scale; 6] =
        [Scale::Smoke, Scale::Mini, Scale::Tiny, Scale::Drill, Scale::Small, Scale::Paper];

    /// Returns the scale of this name.
    pub fn named(name: &str) -> Option<Scale> {
        Scale::ALL.into_iter().find(|scale| scale.name() == name)
    }

    /// Returns the name in `--scale`.
    pub fn name(self) -> &'static str {
        match self {
            Scale::Smoke => "smoke",
            Scale::Mini => "mini",
            Scale::Tiny => "tiny",
            Scale::Drill => "drill",
            Scale::Small => "small",
            Scale::Paper => "paper",
        }
    }

    /// True if the images are drawn rather than read from files.
    pub fn procedural(self) -> bool {
        matches!(self, Scale::Smoke | Scale::Mini)
    }

    /// True if our small classifier replaces Inception-v3; scores are then FD, not FID.
    pub fn has_own_features(self) -> bool {
        self.procedural() || self == Scale::Tiny
    }

    /// Returns this scale's entry of `presets`, or the only entry.
    pub fn preset<T: Clone, const N: usize>(self, presets: [T; N]) -> T {
        const { assert!(N == 1 || N == COLUMNS, "one preset, or one for each of five scales") };
        let column = match self {
            Scale::Smoke => 0,
            Scale::Mini => 1,
            Scale::Tiny => 2,
            Scale::Small => 3,
            Scale::Drill | Scale::Paper => 4,
        };
        presets[column.min(N - 1)].clone()
    }
}

impl Origin {
    const ALL: [(&'static str, Origin); 4] = [
        ("stated", Origin::Stated),
        ("ambiguous", Origin::Ambiguous),
        ("silent", Origin::Silent),
        ("ours", Origin::Ours),
    ];

    /// Parses the form in setup.csv.
    pub fn parse(text: &str) -> Option<Origin> {
        Origin::ALL.iter().find(|(name, _)| *name == text).map(|(_, origin)| *origin)
    }
}

impl Display for Origin {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        f.pad(Origin::ALL.iter().find(|(_, origin)| origin == self).expect("all are named").0)
    }
}

impl Display for Scale {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How much the paper states of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Stated,
    /// The paper's words have more than one reading.
    Ambiguous,
    /// The paper says nothing, and we follow a named source.
    Silent,
    /// The paper says nothing, and we chose the value.
    Ours,
}

/// Description of a setting, independent of its value.
pub struct Field {
    /// Unique name, as in `--set`.
    pub name: &'static str,
    /// One-sentence description, from the doc comment.
    pub says: &'static str,
    /// Unit; empty for a plain number.
    pub unit: &'static str,
    /// Origin and source, if paper/setup.csv does not have them.
    pub origin: Option<(Origin, &'static str)>,
    /// True if scores depend on it, but no weights.
    pub of_scores: bool,
    /// Describes the accepted values: "a number from 0 to 1".
    pub expected: fn() -> String,
    /// Normalises the text of a value, so that equal values have equal texts; `None` if it is
    /// invalid.
    pub canonical: fn(&str) -> Option<String>,
}

/// A setting with its value.
#[derive(Clone)]
pub struct Setting {
    /// [`Settings::OWNER`].
    pub owner: &'static str,
    pub field: &'static Field,
    /// Normalised text: equal values have equal texts.
    pub value: String,
    pub json: Json,
}

/// Converts settings to an object of a manifest.
pub fn object(settings: &[Setting]) -> BTreeMap<String, Json> {
    settings.iter().map(|setting| (setting.field.name.to_string(), setting.json.clone())).collect()
}

/// A struct of settings; implemented by [`settings!`](settings).
pub trait Settings: Sized {
    /// Owner of the settings: "one-step training"; for a method's own, the stem of its file.
    const OWNER: &'static str;

    fn fields() -> &'static [Field];
    /// Returns the presets of a scale.
    fn at(scale: Scale) -> Self;
    /// Returns every setting, in the order of the fields.
    fn list(&self) -> Vec<Setting>;
    /// Sets the setting `name` to a valid text. Does nothing for another name.
    fn put(&mut self, name: &str, text: &str);

    /// Returns the presets of the scale with the overrides.
    fn with(overrides: &Overrides) -> Self {
        let mut settings = Self::at(overrides.scale);
        overrides.changes.iter().for_each(|(name, text)| settings.put(name, text));
        settings
    }

    /// Returns the settings of [`Settings::with`] as a list.
    fn listed(overrides: &Overrides) -> Vec<Setting> {
        Self::with(overrides).list()
    }

    /// Returns the settings of these names as a list.
    fn named(overrides: &Overrides, names: &[&str]) -> Vec<Setting> {
        Self::listed(overrides).into_iter().filter(|setting| names.contains(&setting.field.name)).collect()
    }

    /// Returns the settings of other names as a list.
    fn except(overrides: &Overrides, names: &[&str]) -> Vec<Setting> {
        Self::listed(overrides).into_iter().filter(|setting| !names.contains(&setting.field.name)).collect()
    }
}

/// A scale with its overrides.
#[derive(Clone, Debug, PartialEq)]
pub struct Overrides {
    pub scale: Scale,
    /// Images of the training, which bound presets that count images.
    pub images: u64,
    /// Names with normalised texts, in the order given.
    pub changes: Vec<(String, String)>,
}

impl Overrides {
    /// Makes the presets of a scale, with no bound by a training.
    pub fn none(scale: Scale) -> Overrides {
        Overrides { scale, images: MOST_IMAGES, changes: Vec::new() }
    }

    /// Returns `preset`, but at most `most`; what was set by hand counts as it is.
    pub fn at_most(&self, name: &str, preset: u64, most: u64) -> u64 {
        let by_hand = self.changes.iter().any(|(known, _)| known == name);
        if by_hand { preset } else { preset.min(most) }
    }
}

/// Type of a setting.
pub trait Value: Sized {
    /// Type of the limits.
    type Range;

    fn expected(range: &Self::Range) -> String;
    fn read(text: &str, range: &Self::Range) -> Option<Self>;
    fn text(&self) -> String;
    fn json(&self) -> Json;
}

/// Range of a whole number that `--set` cannot change, because files or networks have this size.
pub const FIXED: RangeInclusive<usize> = RangeInclusive::new(1, 0);

/// Upper limit for numbers of images, beyond any training.
pub const MOST_IMAGES: u64 = 1_000_000_000_000;
/// Upper limit for the images of a batch.
pub const LARGEST_BATCH: usize = 65_536;

impl Value for f64 {
    type Range = RangeInclusive<f64>;

    fn expected(range: &Self::Range) -> String {
        format!("a number from {} to {}", range.start().text(), range.end().text())
    }

    fn read(text: &str, range: &Self::Range) -> Option<f64> {
        text.parse().ok().filter(|value| range.contains(value))
    }

    fn text(&self) -> String {
        let plain = *self == 0.0 || (1e-3..1e6).contains(&self.abs());
        if plain { format!("{self}") } else { format!("{self:e}") }
    }

    fn json(&self) -> Json {
        Json::from(*self)
    }
}

macro_rules! whole {
    ($($type:ty),+) => {$(
        impl Value for $type {
            type Range = RangeInclusive<$type>;

            fn expected(range: &Self::Range) -> String {
                if range.is_empty() {
                    return "fixed by the scale".into();
                }
                format!("a whole number from {} to {}", range.start(), range.end())
            }

            fn read(text: &str, range: &Self::Range) -> Option<$type> {
                text.parse().ok().filter(|value| range.contains(value))
            }

            fn text(&self) -> String {
                self.to_string()
            }

            fn json(&self) -> Json {
                Json::from(*self)
            }
        }
    )+};
}
whole!(u64, usize);

/// Whole numbers in a range, such as 2-2-2.
impl Value for Vec<usize> {
    type Range = RangeInclusive<usize>;

    fn expected(range: &Self::Range) -> String {
        format!("whole numbers from {} to {} such as 1-2-2", range.start(), range.end())
    }

    fn read(text: &str, range: &Self::Range) -> Option<Vec<usize>> {
        text.split('-').map(|part| usize::read(part, range)).collect()
    }

    fn text(&self) -> String {
        self.iter().map(usize::to_string).collect::<Vec<_>>().join("-")
    }

    fn json(&self) -> Json {
        Json::from(self.clone())
    }
}

/// A type with a few named values; a [`Value`] without limits.
pub trait Choice: Copy + PartialEq + 'static {
    const ALL: &'static [(&'static str, Self)];
}

impl<T: Choice> Value for T {
    type Range = RangeFull;

    fn expected(_: &RangeFull) -> String {
        T::ALL.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" or ")
    }

    fn read(text: &str, _: &RangeFull) -> Option<T> {
        T::ALL.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
    }

    fn text(&self) -> String {
        T::ALL.iter().find(|(_, value)| value == self).expect("every value has its word").0.into()
    }

    fn json(&self) -> Json {
        Json::from(self.text())
    }
}

/// Defines a struct of settings and their table:
///
/// ```ignore
/// settings! {
///     /// Settings of SiD.
///     pub struct Sid: "sid", "sid_" {
///         //    type    presets   range      unit   where it comes from, if not in paper/setup.csv
///         /// Weight of the second loss.
///         alpha: f64 = [1.2], 0.0..=2.0, "", Silent("SiD's code takes 1.2 for CIFAR-10");
///         /// Images of the warm-up.
///         warmup: u64 = [64, 6_400, 6_400, 100_000, 500_000], 0..=MOST_IMAGES, "images";
///     }
/// }
/// ```
///
/// A setting's name is the prefix and the field: `--set sid_alpha=1`. A single preset is for every
/// scale; five presets are for smoke, mini, tiny, small and paper. After the prefix, `, scores` says
/// that no weights depend on the settings, so that a change of them trains nothing.
macro_rules! settings {
    (
        $(#[$attribute:meta])*
        pub struct $Name:ident: $owner:literal, $prefix:literal $(, $of:ident)? {
            $(
                $(#[doc = $says:literal])+
                $field:ident: $type:ty = $presets:expr, $range:expr, $unit:literal
                    $(, $origin:ident($why:literal))?;
            )+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $Name {
            $( $(#[doc = $says])+ pub $field: $type, )+
        }

        impl $crate::settings::Settings for $Name {
            const OWNER: &'static str = $owner;

            fn fields() -> &'static [$crate::settings::Field] {
                use $crate::settings::{Field, Value};
                const OF_SCORES: bool = $crate::settings::settings!(@of $($of)?);
                const FIELDS: &[Field] = &[$( Field {
                    name: concat!($prefix, stringify!($field)),
                    says: concat!($($says),+),
                    unit: $unit,
                    origin: $crate::settings::settings!(@origin $($origin($why))?),
                    of_scores: OF_SCORES,
                    expected: || <$type as Value>::expected(&$range),
                    canonical: |text| Some(<$type as Value>::read(text, &$range)?.text()),
                } ),+];
                FIELDS
            }

            fn at(scale: $crate::settings::Scale) -> $Name {
                $Name { $( $field: scale.preset($presets) ),+ }
            }

            fn list(&self) -> Vec<$crate::settings::Setting> {
                use $crate::settings::{Setting, Value};
                let values = [$( (self.$field.text(), self.$field.json()) ),+];
                let fields = Self::fields().iter().zip(values);
                fields.map(|(field, (value, json))| Setting { owner: $owner, field, value, json }).collect()
            }

            fn put(&mut self, name: &str, text: &str) {
                use $crate::settings::Value;
                $(
                    if name == concat!($prefix, stringify!($field))
                        && let Some(value) = <$type as Value>::read(text, &$range)
                    {
                        self.$field = value;
                    }
                )+
            }
        }
    };
    (@of) => { false };
    (@of scores) => { true };
    (@origin) => { None };
    (@origin $origin:ident($why:literal)) => { Some(($crate::settings::Origin::$origin, $why)) };
}
pub(crate) use settings;
