//! Files of Hugging Face repositories through `hf-hub`, which shares its cache
//! with the Python tools.
//!
//! `hf-hub` has no time-outs, does not check what it downloads, and appends
//! whatever a server sends. So it gets one attempt under a watch; its bytes are
//! verified like all others; and when it fails, the caller asks for the same
//! file directly.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo};

use super::assets::HubFile;
use super::{Attempt, POLL, Progress, Report, refuse};
use crate::error::Result;

const ENDPOINT: &str = "https://huggingface.co";

/// Where the hub is, and where its files are kept on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    pub endpoint: String,
    pub cache: PathBuf,
    /// Take what the cache has, ask nobody.
    pub offline: bool,
}

impl Hub {
    /// `HF_ENDPOINT`; `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`; `HF_HUB_OFFLINE`,
    /// with the meaning they have for the Python tools. `variable` looks one
    /// up; an empty one counts as not set.
    pub fn from_env(variable: &dyn Fn(&str) -> Option<String>) -> Hub {
        let path = |name| variable(name).map(PathBuf::from);
        let home = || std::env::home_dir().unwrap_or_else(std::env::temp_dir);
        let cache = path("HF_HUB_CACHE").unwrap_or_else(|| {
            let caches = || path("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache"));
            path("HF_HOME").unwrap_or_else(|| caches().join("huggingface")).join("hub")
        });
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        let offline = variable("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()));
        Hub { endpoint: endpoint.trim_end_matches('/').to_string(), cache, offline }
    }

    /// The cache's copy of `file`, whoever put it there.
    pub(super) fn cached(&self, file: &HubFile) -> Option<PathBuf> {
        let snapshot = Cache::new(self.cache.clone()).repo(repo(file)).pointer_path(file.revision);
        Some(snapshot.join(file.path)).filter(|path| path.exists())
    }

    /// The address of `file`, for a plain HTTP client.
    pub(super) fn url(&self, file: &HubFile) -> Attempt<String> {
        Ok(self.repo(file)?.url(file.path))
    }

    /// Downloads `file` into the cache. One attempt, ended when no byte arrives
    /// for `stall`.
    pub(super) fn download(&self, file: &HubFile, stall: Duration, report: &mut Report) -> Attempt<PathBuf> {
        let repo = self.repo(file)?;
        let path = file.path;
        let (sender, receiver) = mpsc::channel();
        let worker = std::thread::spawn(move || repo.download_with_progress(path, Meter(sender)));
        let mut last = Instant::now();
        let (mut have, mut of) = (0, None);
        loop {
            match receiver.recv_timeout(POLL) {
                Ok(Arrived::Begin(total)) => (have, of) = (0, Some(total)),
                Ok(Arrived::Bytes(bytes)) => have += bytes,
                Err(RecvTimeoutError::Disconnected) => break,
                // The thread is left behind: a blocked read cannot be ended from here.
                Err(RecvTimeoutError::Timeout) if last.elapsed() > stall => {
                    return refuse("hf-hub receives nothing any more".into());
                }
                Err(RecvTimeoutError::Timeout) => {
                    report(Progress::Bytes { have, of })?;
                    continue;
                }
            }
            last = Instant::now();
            report(Progress::Bytes { have, of })?;
        }
        match worker.join() {
            Ok(Ok(path)) => Ok(path),
            Ok(Err(error)) => refuse(format!("hf-hub: {error}")),
            Err(_) => refuse("hf-hub gave up unexpectedly".into()),
        }
    }

    fn repo(&self, file: &HubFile) -> Attempt<ApiRepo> {
        // The files are public: nobody's token is sent along.
        let builder = ApiBuilder::from_cache(Cache::new(self.cache.clone())).with_token(None);
        let api: Api = match builder.with_endpoint(self.endpoint.clone()).with_progress(false).build() {
            Ok(api) => api,
            Err(error) => return refuse(format!("hf-hub: {error}")),
        };
        Ok(api.repo(repo(file)))
    }
}

/// Removes a file that `hf-hub` has just downloaded wrongly, so that nobody
/// takes it from the cache: the link and what it points to.
pub(super) fn remove_from_cache(path: &Path) -> Result<()> {
    let blob = fs::canonicalize(path);
    super::inputs::remove(path)?;
    blob.map_or(Ok(()), |blob| super::inputs::remove(&blob))
}

fn repo(file: &HubFile) -> Repo {
    Repo::with_revision(file.repo.to_string(), file.kind, file.revision.to_string())
}

enum Arrived {
    Begin(u64),
    Bytes(u64),
}

struct Meter(mpsc::Sender<Arrived>);

impl hf_hub::api::Progress for Meter {
    fn init(&mut self, size: usize, _: &str) {
        _ = self.0.send(Arrived::Begin(size as u64));
    }

    fn update(&mut self, size: usize) {
        _ = self.0.send(Arrived::Bytes(size as u64));
    }

    fn finish(&mut self) {}
}
