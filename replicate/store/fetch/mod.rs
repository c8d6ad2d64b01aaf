//! Fetching what the paper scale needs: checkpoint, Inception weights, FID
//! reference, data sets.
//!
//! A file is looked for in this order, and the first good one is kept:
//!
//! 1. the store's `inputs/`, by SHA-256;
//! 2. what `--from FILE|URL` names, and then nothing else;
//! 3. `REPLICATE_MIRROR`, an address or a directory: the asset `cifar10` is
//!    `$REPLICATE_MIRROR/cifar10` there;
//! 4. the asset's own addresses, in order; files of the Hugging Face hub are taken from
//!    its cache on this machine, else from `HF_ENDPOINT` (see [`Hub`]).
//!
//! Whatever the way, the bytes are hashed on the disk before they get their
//! name, and wrong ones are removed. A download that was cut off
//! is resumed where the hash is known beforehand, and starts over where it is not.
//! Processes that want the same asset wait for each other. Of an address, host and
//! path are shown and recorded, but no password and no query.
//!
//! Proxies are those of `HTTPS_PROXY`, `HTTP_PROXY` and `ALL_PROXY`. `NO_PROXY` lists
//! hosts, ends of their names, addresses and networks (`10.0.0.0/8`), separated by
//! commas or blanks.
//! Certificates are checked against the roots that are compiled in; behind a
//! proxy with roots of its own, use a mirror or `--from FILE`.

mod address;
mod assets;
mod http;
mod hub;
mod inputs;

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
use crate::error::{Error, Result, shown_path};
use crate::store::Content;
use crate::store::formats::Fault;

/// The size that no asset exceeds whose size is not published: the largest of them
/// has a quarter of it.
const MOST_UNKNOWN: u64 = 1 << 27;

/// What a file must satisfy beyond its hash. It decides about files whose hash
/// nobody published.
pub type ContentCheck<'a> = dyn Fn(&Asset, &Path) -> std::result::Result<(), Fault> + 'a;

/// How to fetch.
pub struct Options<'a> {
    /// Take the file from here, and from nowhere else.
    pub from: Option<Given>,
    /// Asked before the asset's own addresses.
    pub mirror: Option<Given>,
    /// Touch no network: the store, files, and the hub's cache only.
    pub offline: bool,
    pub hub: Hub,
    pub patience: Patience,
    pub check: &'a ContentCheck<'a>,
}

impl<'a> Options<'a> {
    /// The environment's `REPLICATE_MIRROR` and hub variables ([`Hub::from_env`]),
    /// with the usual patience.
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

/// What to show while a file is fetched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress<'a> {
    /// `from` is asked next; `bytes` is the size of the file, `have` what is
    /// here of it.
    Begin { from: &'a str, have: u64, bytes: Option<u64> },
    /// `have` bytes of `of` are here. It may become less when a server starts over.
    Bytes { have: u64, of: Option<u64> },
    /// Nothing moves: a pause between two attempts with the time left, or
    /// another process at the same file.
    Waiting { why: &'a str, left: Option<Duration> },
    /// A sentence for the user.
    Note(&'a str),
}

/// An error from it ends the fetch, which can be resumed later. It is called
/// several times a second except while a server is silent.
pub type Report<'a> = dyn FnMut(Progress<'_>) -> Result<()> + 'a;

/// One line of a plan.
#[derive(Clone, Debug)]
pub struct Planned<'a> {
    pub asset: &'a Asset,
    pub stand: Stand,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// In the store, with this size; its hash is checked when it is used.
    There { bytes: u64 },
    /// Not in the store; `have` bytes of it have arrived.
    Missing { have: u64 },
}

impl Planned<'_> {
    /// Bytes still to download; `None` where the size is not known.
    pub fn to_come(&self) -> Option<u64> {
        match self.stand {
            Stand::There { .. } => Some(0),
            Stand::Missing { have } => self.asset.bytes.map(|bytes| bytes.saturating_sub(have)),
        }
    }
}

/// What is there and what is not, by name and size, without reading the files.
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

/// The store's file of `asset`, verified now; `None` when it was never fetched.
///
/// # Errors
/// `Malformed` when the file was altered since it was fetched.
pub fn find(inputs: &Inputs, asset: &Asset) -> Result<Option<PathBuf>> {
    match inputs.state(asset)? {
        State::Good(path) => Ok(Some(path)),
        State::Absent => Ok(None),
        State::Damaged { path, expected, found } => Err(Error::Malformed {
            path,
            expected: format!("{} with the SHA-256 {expected}", asset.id),
            found,
            remedy: format!("`replicate fetch {}{}` fetches it again", asset.id, inputs.option()),
        }),
    }
}

/// [`find`] of the first of `assets` that was fetched.
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

/// Makes sure that the store has `asset`, and returns the verified file.
///
/// # Errors
/// `Missing` when no place has it, with what each of them said; `Malformed`
/// when one of them had wrong bytes and none the right ones; `Io` when the disk is full or the like,
/// and what has arrived remains; and what `report` returns.
pub fn fetch(inputs: &Inputs, asset: &Asset, options: &Options, report: &mut Report) -> Result<PathBuf> {
    if let State::Good(path) = inputs.state(asset)? {
        // Left by a process that was killed when the file had its name already.
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
    // Asked again: that process may have fetched it meanwhile.
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
                // That of the only one is all that the error says.
                if sources.len() > 1 {
                    (fetch.report)(Progress::Note(&refusal))?;
                }
                refusals.push(refusal);
            }
        }
    }
    Err(fetch.failed(refusals))
}

/// Why one place did not deliver.
enum Failure {
    /// The next one would not either.
    Fatal(Error),
    /// Put after the place's name, it makes a sentence.
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

/// Bytes that were not those of the asset.
struct Wrong {
    /// Where they were given; those of a server are gone.
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

    /// The size that the file does not exceed.
    fn most(&self) -> u64 {
        self.asset.bytes.unwrap_or(MOST_UNKNOWN)
    }

    /// The file itself stays as it is, right or wrong.
    fn from_file(&mut self, path: &Path) -> Attempt<PathBuf> {
        // Opening a pipe would wait for its other end.
        let mut source = match fs::metadata(path).and_then(|found| Ok((found.is_file(), File::open(path)?))) {
            Ok((true, source)) => source,
            Ok((false, _)) => return refuse("is not a file".into()),
            Err(error) => return refuse(format!("cannot be read: {error}")),
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
            // The earlier part may be to blame, which another server may have sent.
            let found = &wrong.found;
            let note = format!("the resumed file has {found}, which is wrong: it is fetched from the start");
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

    /// Hashes `file` as it is on the disk, and keeps it when it is right.
    fn examine(&mut self, file: &Path, from: &str) -> Result<std::result::Result<PathBuf, Wrong>> {
        let content = Content::of(file).map_err(Error::io("read", file))?;
        let found = format!("{} bytes with the SHA-256 {}", content.bytes, content.sha256);
        let wrong = |expected: String, found: String| Ok(Err(Wrong { path: None, expected, found }));
        if let Some(bytes) = self.asset.bytes.filter(|bytes| *bytes != content.bytes) {
            return wrong(format!("{bytes} bytes"), found);
        }
        match self.inputs.expected(self.asset)? {
            Some(sha256) if sha256 != content.sha256 => {
                let seen = if self.asset.sha256().is_none() { ", which was seen first" } else { "" };
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
                "no SHA-256 of {} was published; recorded as seen first, and alone accepted from now on: {}",
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
                "get it from {address} by other means and give it with `replicate fetch {id}{store} --from FILE`"
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
                &format!("; to trust other bytes than those seen first, remove {}", shown_path(&record));
        }
        if let Some(path) = self.wrong.as_ref().and_then(|wrong| wrong.path.as_ref()) {
            // The error names the file itself.
            refusals.retain(|refusal| !refusal.starts_with(&shown_path(path)));
        }
        let tried: String = refusals.iter().map(|refusal| format!("\n  {refusal}")).collect();
        match self.wrong {
            Some(Wrong { path, expected, found }) => Error::Malformed {
                path: path.unwrap_or_else(|| self.inputs.place(asset)),
                expected: format!("{}, {expected}", asset.id),
                found: found + &tried,
                remedy,
            },
            None => Error::Missing {
                path: self.inputs.place(asset),
                what: format!("{} ({}) could not be fetched{tried}", asset.id, asset.what),
                remedy,
            },
        }
    }
}

/// What the paper scale reads; the other assets are the same images in other
/// containers, and what confirms.
const PAPER: [&str; 5] = ["edm", "inception", "cifar10", "cifar100", "sid"];

/// The asset with the id `what`, or else those whose id begins with it and a
/// hyphen; `paper` is what that scale reads, `all` is all of them.
///
/// # Errors
/// `Usage` when there is none.
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
