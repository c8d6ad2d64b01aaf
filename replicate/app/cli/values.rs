//! Parsers of the values of arguments.

use crate::store::check_new;
use crate::store::fetch::Given;
use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command};
use std::ffi::OsStr;
use std::ops::Range;
use std::path::PathBuf;

/// Parses the path of a file to read, which may be written as a `file://` address.
pub(super) fn local() -> impl TypedValueParser<Value = PathBuf> {
    Local { is_output: false }
}

/// Parses a path to write to, as [`local`].
pub(super) fn output() -> impl TypedValueParser<Value = PathBuf> {
    Local { is_output: true }
}

#[derive(Clone)]
struct Local {
    is_output: bool,
}

impl TypedValueParser for Local {
    type Value = PathBuf;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<PathBuf, clap::Error> {
        let refused =
            |why: String| clap::Error::raw(ErrorKind::ValueValidation, why + "\n").with_cmd(command);
        let place = match Given::parse(value) {
            Given::File(path) => {
                // An empty one has an error of its own.
                let path = PathBufValueParser::new().parse(command, arg, path.into_os_string())?;
                return match check_new(&path) {
                    Err(error) if self.is_output => Err(refused(error.to_string())),
                    _ => Ok(path),
                };
            }
            // Without what may be secret in it.
            Given::Url(url) => url.to_string(),
            Given::Unread(scheme) => format!("{scheme}://…"),
        };
        Err(refused(match self.is_output {
            true => format!("{place} is no place to write to: name a path here, and no address"),
            false => format!("{place}: only files are read here; download it first"),
        }))
    }
}

/// Parses a number, times the unit that its last letter names.
fn scaled(text: &str, units: [(char, f64); 2]) -> Option<f64> {
    let named = units.iter().find_map(|(letter, unit)| Some((text.strip_suffix(*letter)?, *unit)));
    let (number, unit) = named.unwrap_or((text, 1.0));
    Some(number.parse::<f64>().ok()? * unit)
}

/// Parses a number of images, with k or M for thousands or millions.
pub(super) fn images(text: &str) -> Result<u64, String> {
    let images = scaled(text, [('k', 1e3), ('M', 1e6)]).filter(|n| (1.0..=1e12).contains(n));
    let expected = || "expected a number of images such as 2000, 50k or 1.5M".into();
    images.map(|n| n.round() as u64).ok_or_else(expected)
}

/// Parses operations per second, with G or T for 1e9 or 1e12.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    let rate = scaled(text, [('G', 1e9), ('T', 1e12)]).filter(|rate| (1e6..1e18).contains(rate));
    rate.ok_or_else(|| "expected operations a second: 500G or 40T".into())
}

/// Parses a time limit in Slurm's form; returns seconds.
pub(super) fn time(text: &str) -> Result<f64, String> {
    let (days, clock) = text.split_once('-').unwrap_or(("0", text));
    let parts: Option<Vec<u16>> =
        [days].into_iter().chain(clock.split(':')).map(|part| part.parse().ok()).collect();
    match parts.as_deref() {
        Some(units @ [_, _, _, _]) if units.iter().any(|n| *n > 0) => {
            Ok(units.iter().zip([86_400.0, 3600.0, 60.0, 1.0]).map(|(n, unit)| f64::from(*n) * unit).sum())
        }
        _ => Err("expected H:MM:SS or D-HH:MM:SS, such as 04:00:00".into()),
    }
}

pub(super) fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("a seed is a whole number from 0 to {}", u64::MAX))
}

/// Largest number of images of a sampling, because their names have eight digits in a zip.
const MOST_NUMBERS: u64 = 100_000_000;

/// Parses a range of numbers, both ends included.
pub(super) fn numbers(text: &str) -> Result<Range<u64>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last && last < MOST_NUMBERS => Ok(first..last + 1),
        _ => Err(format!("expected a range such as 0-49999, or one number, below {MOST_NUMBERS}")),
    }
}
