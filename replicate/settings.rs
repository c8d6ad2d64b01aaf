//! Hyper-parameters, each written once: name, type, preset of every scale, range, unit,
//! and where it comes from. Whoever uses a setting owns it, in a struct that
//! [`settings!`](settings) makes; key text, `--set`, `--explain`, the report and manifests
//! read its table.

use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::ops::{RangeFull, RangeInclusive};

/// Sizes, data and budgets; never equations or code paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Glyphs, a handful of steps: tests of the machinery.
    Smoke,
    /// Glyphs, minutes on two cores: tests of the claims at small size.
    Mini,
    /// CIFAR-10 averaged to 16x16 and a teacher of our own, an evening on two cores.
    Tiny,
    /// The paper scale's code with small files from a local server: tests that
    /// it would run, and measures nothing.
    Drill,
    /// CIFAR files, a reduced U-Net and a teacher of our own.
    Small,
    /// CIFAR-10 and the published EDM checkpoint.
    Paper,
}

/// Scales with presets of their own, in the order of a table's columns: smoke, mini,
/// tiny, small, paper.
const COLUMNS: usize = 5;

impl Scale {
    pub const ALL: [Scale; 6] =
        [Scale::Smoke, Scale::Mini, Scale::Tiny, Scale::Drill, Scale::Small, Scale::Paper];

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

    /// Whether the images are drawn rather than read from files.
    pub fn procedural(self) -> bool {
        matches!(self, Scale::Smoke | Scale::Mini)
    }

    /// Whether a small classifier of ours stands in for Inception-v3: scores are FD, not FID.
    pub fn has_own_features(self) -> bool {
        self.procedural() || self == Scale::Tiny
    }

    /// This scale's column of `presets`, or the only one.
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

    /// As setup.csv has it.
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

/// How much the paper says of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Stated,
    /// It can be read in more than one way.
    Ambiguous,
    /// The paper says nothing; we follow the source that is named.
    Silent,
    /// The paper says nothing, and the choice is ours.
    Ours,
}

/// What is known of a setting, whatever its value.
pub struct Field {
    /// As `--set` takes it; no other setting has it.
    pub name: &'static str,
    /// One sentence, from the doc comment.
    pub says: &'static str,
    /// Empty for a plain number.
    pub unit: &'static str,
    /// Where it comes from, if paper/setup.csv does not say so.
    pub origin: Option<(Origin, &'static str)>,
    /// What can be given: "a number from 0 to 1".
    pub expected: fn() -> String,
    /// The one text of the value that was given; `None` if it is not as expected.
    pub canonical: fn(&str) -> Option<String>,
}

/// A setting with its value.
#[derive(Clone)]
pub struct Setting {
    /// [`Settings::OWNER`].
    pub owner: &'static str,
    pub field: &'static Field,
    /// Canonical: the same value has the same text.
    pub value: String,
    pub json: Json,
}

/// Settings as an object of a manifest.
pub fn object(settings: &[Setting]) -> BTreeMap<String, Json> {
    settings.iter().map(|setting| (setting.field.name.to_string(), setting.json.clone())).collect()
}

/// A struct of settings; implemented by [`settings!`](settings).
pub trait Settings: Sized {
    /// Whose they are: "one-step training"; for a method's own, the stem of its file.
    const OWNER: &'static str;

    fn fields() -> &'static [Field];
    /// The presets of a scale.
    fn at(scale: Scale) -> Self;
    /// Every setting, in the order of the fields.
    fn list(&self) -> Vec<Setting>;
    /// Sets the setting of that name to a text that is as expected, and leaves everything
    /// as it is otherwise.
    fn put(&mut self, name: &str, text: &str);

    /// The presets of the scale with what was changed by hand.
    fn with(overrides: &Overrides) -> Self {
        let mut settings = Self::at(overrides.scale);
        overrides.changes.iter().for_each(|(name, text)| settings.put(name, text));
        settings
    }

    /// As [`Settings::with`], listed.
    fn listed(overrides: &Overrides) -> Vec<Setting> {
        Self::with(overrides).list()
    }
}

/// What was changed by hand at a scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Overrides {
    pub scale: Scale,
    /// Names with canonical texts, in the order in which they were given.
    pub changes: Vec<(String, String)>,
}

impl Overrides {
    pub fn none(scale: Scale) -> Overrides {
        Overrides { scale, changes: Vec::new() }
    }
}

/// A type that a setting can have.
pub trait Value: Sized {
    /// What limits it.
    type Range;

    fn expected(range: &Self::Range) -> String;
    fn read(text: &str, range: &Self::Range) -> Option<Self>;
    fn text(&self) -> String;
    fn json(&self) -> Json;
}

/// The range of a whole number that `--set` does not change, because files or networks
/// are of that size.
pub const FIXED: RangeInclusive<usize> = RangeInclusive::new(1, 0);

/// More images than anybody trains on.
pub const MOST_IMAGES: u64 = 1_000_000_000_000;
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

/// Whole numbers such as 2-2-2, each in the range.
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

/// A type with a few values, each known by a word: a [`Value`] of any range.
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

/// A struct of settings and their table:
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
/// The names are those of the fields after the prefix: `--set sid_alpha=1`. One preset is
/// that of every scale; five are those of smoke, mini, tiny, small and paper.
macro_rules! settings {
    (
        $(#[$attribute:meta])*
        pub struct $Name:ident: $owner:literal, $prefix:literal {
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
                const FIELDS: &[Field] = &[$( Field {
                    name: concat!($prefix, stringify!($field)),
                    says: concat!($($says),+),
                    unit: $unit,
                    origin: $crate::settings::settings!(@origin $($origin($why))?),
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
    (@origin) => { None };
    (@origin $origin:ident($why:literal)) => { Some(($crate::settings::Origin::$origin, $why)) };
}
pub(crate) use settings;
