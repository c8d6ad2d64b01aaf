//! Files of Hugging Face repositories: where the hub has them, and where the cache
//! that the Python tools share has them on this machine.
//!
//! They are downloaded as all other files are, not by `hf-hub`: it takes the names
//! of files from a server's headers, writes whatever it sends, and waits for ever.

use std::ffi::OsString;
use std::path::PathBuf;

use hf_hub::{Cache, Repo};

use super::address::Url;
use super::assets::HubFile;

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
    pub fn from_env(variable: &dyn Fn(&str) -> Option<OsString>) -> Hub {
        let path = |name| variable(name).map(PathBuf::from);
        let text = |name| variable(name).and_then(|value| value.into_string().ok());
        let home = || std::env::home_dir().unwrap_or_else(std::env::temp_dir);
        let cache = path("HF_HUB_CACHE").unwrap_or_else(|| {
            let caches = || path("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache"));
            path("HF_HOME").unwrap_or_else(|| caches().join("huggingface")).join("hub")
        });
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        let offline = text("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()));
        Hub { endpoint: endpoint.trim_end_matches('/').to_string(), cache, offline }
    }

    /// The cache's copy of `file`, whoever put it there.
    pub(super) fn cached(&self, file: &HubFile) -> Option<PathBuf> {
        let snapshot = Cache::new(self.cache.clone()).repo(repo(file)).pointer_path(file.revision);
        Some(snapshot.join(file.path)).filter(|path| path.exists())
    }

    /// # Errors
    /// Why the endpoint is no address.
    pub(super) fn url(&self, file: &HubFile) -> Result<Url, String> {
        let (endpoint, repo) = (&self.endpoint, repo(file));
        Url::parse(&format!("{endpoint}/{}/resolve/{}/{}", repo.url(), repo.url_revision(), file.path))
            .map_err(|why| format!("HF_ENDPOINT: {why}"))
    }
}

fn repo(file: &HubFile) -> Repo {
    Repo::with_revision(file.repo.to_string(), file.kind, file.revision.to_string())
}
