//! Fetches the files of the paper scale: checkpoint, Inception weights, FID reference, data sets.
//!
//! It tries these sources in order and keeps the first good file:
//!
//! 1. the store's `inputs/`, by SHA-256;
//! 2. the file or address of `--from`; if it is given, no other source is tried;
//! 3. `REPLICATE_MIRROR`, an address or a directory that has the asset `cifar10` as
//!    `$REPLICATE_MIRROR/cifar10`;
//! 4. the asset's own addresses, in order; files of the Hugging Face hub come from its cache on this
//!    machine, or else from `HF_ENDPOINT` (see [`Hub`]).
//!
//! Every file is hashed on the disk before it gets its name, and wrong bytes are removed. An
//! interrupted download resumes if the hash is known, and starts over if it is not. Processes that
//! need the same asset wait for each other. Messages and records show host and path of an address,
//! but no password and no query.
//!
//! Proxies come from `HTTPS_PROXY`, `HTTP_PROXY` and `ALL_PROXY`. `NO_PROXY` lists hosts, ends of
//! host names, addresses and networks (`10.0.0.0/8`), separated by commas or blanks. A proxy is asked for
//! a tunnel to `https://` addresses, and for `http://` addresses themselves. Certificates are
//! checked against compiled-in roots; behind a proxy with its own roots, use a mirror or `--from FILE`.

mod address;
mod assets;
mod http;
mod hub;
mod inputs;
mod proxy;

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::address::{Given, Url};
pub use self::assets::{Address, Asset, Hash, HubFile, assets, licence_of, named};
use self::http::Download;
pub use self::http::Patience;
pub use self::hub::Hub;
use self::inputs::Place;
pub use self::inputs::{Inputs, State};
use crate::error::{Error, Result, explained, shown_path};
use crate::store::Content;
use crate::store::formats::Fault;

/// Upper limit for the size of an asset without a published size: four times the largest of them.
const MOST_UNKNOWN: u64 = 1 << 27;

/// Checks the content of a file in addition to its hash, which may not be published.
pub type ContentCheck<'a> = dyn Fn(&Asset, &Path) -> std::result::Result<(), Fault> + 'a;

/// Options of a fetch.
pub struct Options<'a> {
    /// The only source to use, if it is given.
    pub from: Option<Given>,
    /// Source to try before the asset's own addresses.
    pub mirror: Option<Given>,
    /// Uses no network, only the store, files, and the hub's cache.
    pub offline: bool,
    pub hub: Hub,
    pub patience: Patience,
    pub check: &'a ContentCheck<'a>,
}

impl<'a> Options<'a> {
    /// Reads `REPLICATE_MIRROR` and the hub's variables ([`Hub::from_env`]), with default time limits.
    pub fn from_env(check: &'a ContentCheck<'a>) -> Options<'a> {
        let variable =
            |name: &str| -> Option<OsString> { std::env::var_os(name).filter(|value| !value.is_empty()) };
        Options {
            from: None,
            mirror: variable("REPLICATE_MIRROR").as_deref().map(Given::parse),
            offline: false,
            hub: Hub::from_env(&variable),
            patience: Patience::default(),
            check,
        }
    }
}

/// Progress of a fetch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress<'a> {
    /// Tries the source `from`; `have` of the file's `bytes` have arrived earlier.
    Begin { from: &'a str, have: u64, bytes: Option<u64> },
    /// `have` bytes of `of` have arrived. The number decreases if a server starts over.
    Bytes { have: u64, of: Option<u64> },
    /// Pauses between two attempts, with the time left, or waits for another process.
    Waiting { why: &'a str, left: Option<Duration> },
    /// A sentence for the user.
    Note(&'a str),
}

/// Receives the progress several times a second, except while a server is silent. An error from it
/// ends the fetch, which can be resumed later.
pub type Report<'a> = dyn FnMut(Progress<'_>) -> Result<()> + 'a;

/// One line of a plan.
#[derive(Clone, Debug)]
pub struct Planned<'a> {
    pub asset: &'a Asset,
    pub stand: Stand,
}

/// State of an asset, by name and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// In the store, with this size. Its hash is checked on use.
    There { bytes: u64 },
    /// Not in the store; `have` bytes have arrived.
    Missing { have: u64 },
}

impl Planned<'_> {
    /// Returns the bytes still to download; `None` if the size is unknown.
    pub fn to_come(&self) -> Option<u64> {
        match self.stand {
            Stand::There { .. } => Some(0),
            Stand::Missing { have } => self.asset.bytes.map(|bytes| bytes.saturating_sub(have)),
        }
    }
}

/// Returns the state of each asset by name and size, without reading the files.
pub fn plan<'a>(inputs: &Inputs, assets: impl IntoIterator<Item = &'a Asset>) -> Result<Vec<Planned<'a>>> {
    let planned = |asset: &'a Asset| {
        let stand = match inputs.size_there(asset)? {
            Some(bytes) if asset.bytes.is_none_or(|expected| expected == bytes) => Stand::There { bytes },
            _ => Stand::Missing { have: inputs.partial_bytes(asset) },
        };
        Ok(Planned { asset, stand })
    };
    assets.into_iter().map(planned).collect()
}

/// Returns the verified file of `asset`; `None` if it was not fetched.
///
/// # Errors
/// `Malformed` if the file was altered since it was fetched.
pub fn find(inputs: &Inputs, asset: &Asset) -> Result<Option<PathBuf>> {
    match inputs.state(asset)? {
        State::Good(path) => Ok(Some(path)),
        State::Absent => Ok(None),
        State::Damaged { path, expected, found } => {
            let remedy = format!("`replicate fetch {}{}` fetches it again", asset.id, inputs.option());
            Err(Error::malformed(path, format!("{} with the SHA-256 {expected}", asset.id), found, remedy))
        }
    }
}

/// As [`find`], for the first of `assets` that was fetched.
///
/// # Errors
/// As [`find`].
pub fn find_any(inputs: &Inputs, assets: &[&Asset]) -> Result<Option<PathBuf>> {
    for asset in assets {
        if let Some(path) = find(inputs, asset)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Returns the verified file of `asset`, and fetches it if it is missing.
///
/// # Errors
/// `Missing` if no source has it, with the reason of each; `Malformed` if a source had wrong bytes
/// and none the right ones; `Io` if the disk is full or fails, with the partial download kept; and
/// the errors of `report`.
pub fn fetch(inputs: &Inputs, asset: &Asset, options: &Options, report: &mut Report) -> Result<PathBuf> {
    if let State::Good(path) = inputs.state(asset)? {
        // A process that was killed after the rename may have left a partial download.
        let busy = &mut |_| Err(Error::Stopped { cell: asset.id.into() });
        if inputs.partial_bytes(asset) > 0
            && let Ok(place) = inputs.lock(asset, busy)
        {
            _ = place.clear_partial();
        }
        return Ok(path);
    }
    let why = format!("another process is fetching {}", asset.id);
    let place = inputs.lock(asset, &mut |_| report(Progress::Waiting { why: &why, left: None }))?;
    // Another process may have fetched it while this one waited.
    match inputs.state(asset)? {
        State::Good(path) => return Ok(path),
        State::Damaged { .. } => {
            let note = format!("{} was altered since it was fetched; it is fetched again", asset.id);
            report(Progress::Note(&note))?;
        }
        State::Absent => {}
    }
    let mut fetch = Fetch { inputs, asset, options, place, report, wrong: None };
    let mut refusals = Vec::new();
    let sources = sources(asset, options);
    for source in &sources {
        let (have, bytes) = (fetch.place.partial_bytes(), asset.bytes);
        (fetch.report)(Progress::Begin { from: &source.to_string(), have, bytes })?;
        match fetch.from(source) {
            Ok(path) => return Ok(path),
            Err(Failure::Fatal(error)) => return Err(error),
            Err(Failure::Source(why)) => {
                let refusal = format!("{source} {why}");
                // The error itself reports the reason of a single source.
                if sources.len() > 1 {
                    (fetch.report)(Progress::Note(&refusal))?;
                }
                refusals.push(refusal);
            }
        }
    }
    Err(fetch.failed(refusals))
}

/// Reason why one source failed.
enum Failure {
    /// Other sources would fail, too.
    Fatal(Error),
    /// The rest of a sentence that begins with the source's name.
    Source(String),
}

type Attempt<T> = std::result::Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Fatal(error)
    }
}

fn refuse<T>(why: String) -> Attempt<T> {
    Err(Failure::Source(why))
}

enum Source {
    Given(Given),
    Hub(HubFile),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Source::Given(Given::Url(url)) => write!(f, "{url}"),
            Source::Given(Given::File(path)) => f.write_str(&shown_path(path)),
            Source::Given(Given::Unread(scheme)) => write!(f, "{scheme}://…"),
            Source::Hub(file) => write!(f, "hub:{}@{}:{}", file.repo, file.revision, file.path),
        }
    }
}

fn sources(asset: &Asset, options: &Options) -> Vec<Source> {
    if let Some(from) = &options.from {
        return vec![Source::Given(from.clone())];
    }
    let mirror = options.mirror.iter().map(|mirror| Source::Given(mirror.join(asset.id)));
    let own = asset.from.iter().map(|address| match address {
        Address::Url(url) => Source::Given(Given::parse(url)),
        Address::Hub(file) => Source::Hub(*file),
    });
    mirror.chain(own).collect()
}

/// Wrong bytes from a source.
struct Wrong {
    /// Path of the user's file; `None` for a download, which is removed.
    path: Option<PathBuf>,
    expected: String,
    found: String,
}

struct Fetch<'a, 'r> {
    inputs: &'a Inputs,
    asset: &'a Asset,
    options: &'a Options<'a>,
    place: Place,
    report: &'a mut Report<'r>,
    wrong: Option<Wrong>,
}

impl Fetch<'_, '_> {
    fn from(&mut self, source: &Source) -> Attempt<PathBuf> {
        match source {
            Source::Given(Given::File(path)) => self.from_file(path),
            Source::Given(Given::Unread(scheme)) => {
                refuse(format!("is a {scheme} address, where http, https and file are read"))
            }
            Source::Given(Given::Url(_)) if self.options.offline => refuse("is not asked (offline)".into()),
            Source::Given(Given::Url(url)) => self.from_url(url),
            Source::Hub(file) => self.from_hub(file),
        }
    }

    /// Returns the upper limit of the file's size.
    fn most(&self) -> u64 {
        self.asset.bytes.unwrap_or(MOST_UNKNOWN)
    }

    /// Copies a file, which stays unchanged.
    fn from_file(&mut self, path: &Path) -> Attempt<PathBuf> {
        // Does not open a pipe, because that would wait for its other end.
        let opened = fs::metadata(path).and_then(|found| match found.is_file() {
            true => File::open(path).map(Some),
            false => Ok(None),
        });
        let mut source = match opened {
            Ok(Some(source)) => source,
            Ok(None) => return refuse("is not a file".into()),
            Err(error) => return refuse(explained(&format!("cannot be read: {error}"), path)),
        };
        let copy = match self.place.copy_of(&mut source, self.most())? {
            Ok(copy) => copy,
            Err(why) => return refuse(why),
        };
        match self.examine(&copy, &shown_path(path))? {
            Ok(path) => Ok(path),
            Err(wrong) => {
                inputs::remove(&copy)?;
                let why = format!("has {}, not {}", wrong.found, wrong.expected);
                self.wrong = Some(Wrong { path: Some(path.to_path_buf()), ..wrong });
                refuse(why)
            }
        }
    }

    fn from_url(&mut self, url: &Url) -> Attempt<PathBuf> {
        loop {
            let resumed = self.place.partial_bytes() > 0;
            let download = Download {
                url,
                place: &self.place,
                bytes: self.asset.bytes,
                most: self.most(),
                hash_known: self.inputs.expected(self.asset)?.is_some(),
                patience: &self.options.patience,
            };
            download.run(self.report)?;
            let wrong = match self.examine(&self.place.partial(), &url.to_string())? {
                Ok(path) => return Ok(path),
                Err(wrong) => wrong,
            };
            self.place.clear_partial()?;
            if !resumed {
                let why = format!("sent {}, not {}", wrong.found, wrong.expected);
                self.wrong = Some(wrong);
                return refuse(why);
            }
            // The earlier part may be wrong, for example if it came from another server.
            let found = &wrong.found;
            let note = format!("the resumed file has {found}, which is wrong; fetching it from the start");
            (self.report)(Progress::Note(&note))?;
        }
    }

    fn from_hub(&mut self, file: &HubFile) -> Attempt<PathBuf> {
        let hub = &self.options.hub;
        if let Some(cached) = hub.cached(file) {
            match self.from_file(&cached) {
                Err(Failure::Source(why)) => {
                    (self.report)(Progress::Note(&format!("{} {why}", shown_path(&cached))))?
                }
                ended => return ended,
            }
        }
        if self.options.offline || hub.offline {
            let why = if self.options.offline { "offline" } else { "HF_HUB_OFFLINE is set" };
            return refuse(format!("is not asked ({why}), and {} has no copy of it", shown_path(&hub.cache)));
        }
        match hub.url(file) {
            Ok(url) => self.from_url(&url),
            Err(why) => refuse(why),
        }
    }

    /// Hashes `file` on the disk and publishes it if it is right.
    fn examine(&mut self, file: &Path, from: &str) -> Result<std::result::Result<PathBuf, Wrong>> {
        let content = Content::of(file).map_err(Error::io("read", file))?;
        let found = format!("{} bytes with the SHA-256 {}", content.bytes, content.sha256);
        let wrong = |expected: String, found: String| Ok(Err(Wrong { path: None, expected, found }));
        if let Some(bytes) = self.asset.bytes.filter(|bytes| *bytes != content.bytes) {
            return wrong(format!("{bytes} bytes"), found);
        }
        match self.inputs.expected(self.asset)? {
            Some(sha256) if sha256 != content.sha256 => {
                let seen = if self.asset.sha256().is_none() { " of the first download" } else { "" };
                return wrong(format!("the SHA-256 {sha256}{seen}"), found);
            }
            _ => {}
        }
        match (self.options.check)(self.asset, file) {
            Ok(()) => {}
            Err(Fault::Unreadable(error)) => return Err(Error::io("read", file)(error)),
            Err(Fault::Content(problem)) => {
                return wrong(self.asset.what.to_string(), format!("a file that {problem}"));
            }
        }
        let path = self.place.publish(file, &content, from)?;
        if self.asset.sha256().is_none() {
            (self.report)(Progress::Note(&format!(
                "no SHA-256 of {} was published; from now on it must be that of this file: {}",
                self.asset.id, content.sha256
            )))?;
        }
        Ok(Ok(path))
    }

    fn failed(self, mut refusals: Vec<String>) -> Error {
        let asset = self.asset;
        let address = asset.from.iter().find_map(|address| match address {
            Address::Url(url) => Some(url.to_string()),
            Address::Hub(file) => self.options.hub.url(file).ok().map(|url| url.to_string()),
        });
        let address = address.unwrap_or_else(|| "where it is published".into());
        let by_hand = || {
            let (id, store) = (asset.id, self.inputs.option());
            format!(
                "download it from {address} in another way and pass it with `replicate fetch {id}{store} --from FILE`"
            )
        };
        let mut remedy = match (&self.options.from, self.options.offline) {
            (Some(_), _) => format!("name another file, or leave --from out to fetch it from {address}"),
            (None, true) => {
                let store = self.inputs.option();
                format!("run `replicate fetch {}{store}` without --offline, or {}", asset.id, by_hand())
            }
            (None, false) => {
                format!("run the same command again later, set REPLICATE_MIRROR, or {}", by_hand())
            }
        };
        let record = self.inputs.record_path(asset);
        if asset.sha256().is_none() && self.wrong.is_some() && record.exists() {
            remedy +=
                &format!("; to accept other bytes than those seen first, remove {}", shown_path(&record));
        }
        if let Some(path) = self.wrong.as_ref().and_then(|wrong| wrong.path.as_ref()) {
            // The error names this file already.
            refusals.retain(|refusal| !refusal.starts_with(&shown_path(path)));
        }
        let tried: String = refusals.iter().map(|refusal| format!("\n  {refusal}")).collect();
        match self.wrong {
            Some(Wrong { path, expected, found }) => {
                let path = path.unwrap_or_else(|| self.inputs.place(asset));
                Error::malformed(path, format!("{}, {expected}", asset.id), found + &tried, remedy)
            }
            None => {
                let what = format!("{} ({}) could not be fetched{tried}", asset.id, asset.what);
                Error::missing(self.inputs.place(asset), what, remedy)
            }
        }
    }
}

/// Assets that the paper scale reads. The others are the same images in other containers, and EDM's
/// statistics for comparison.
const PAPER: [&str; 5] = ["edm", "inception", "cifar10", "cifar100", "sid"];

/// Returns the asset with the id `what`, or else those whose id begins with it and a hyphen; `paper`
/// selects those that this scale reads, `all` every asset.
///
/// # Errors
/// `Usage` if there is none.
pub fn select(what: &str) -> Result<Vec<&'static Asset>> {
    if let Some(asset) = named(what) {
        return Ok(vec![asset]);
    }
    let belongs = |id: &str| match what {
        "all" => true,
        "paper" => PAPER.contains(&id),
        _ => id.strip_prefix(what).is_some_and(|rest| rest.starts_with('-')),
    };
    let chosen: Vec<_> = assets().iter().filter(|asset| belongs(asset.id)).collect();
    if chosen.is_empty() {
        let ids: Vec<_> = assets().iter().map(|asset| asset.id).collect();
        return Err(Error::Usage(format!(
            "{what:?} is not an asset; there are {}, paper and all",
            ids.join(", ")
        )));
    }
    Ok(chosen)
}
