//! Files of Hugging Face repositories: their addresses on the hub, and their paths in the cache that
//! Python tools share on this machine.
//!
//! They are downloaded like all other files. `hf-hub` is not used for that, because it takes file
//! names from a server's headers, writes files of any length, and has no time limit.

use std::ffi::OsString;
use std::path::PathBuf;

use hf_hub::{Cache, Repo};

use super::address::Url;
use super::assets::HubFile;

const ENDPOINT: &str = "https://huggingface.co";

/// Address and cache of the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    pub endpoint: String,
    pub cache: PathBuf,
    /// True if only the cache may be used.
    pub offline: bool,
}

impl Hub {
    /// Reads `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME` and `HF_HUB_OFFLINE`, with
    /// their meaning for the Python tools. `variable` returns the value of a variable that is not
    /// empty.
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

    /// Returns the path of `file` in the cache, if it is there.
    pub(super) fn cached(&self, file: &HubFile) -> Option<PathBuf> {
        let snapshot = Cache::new(self.cache.clone()).repo(repo(file)).pointer_path(file.revision);
        Some(snapshot.join(file.path)).filter(|path| path.exists())
    }

    /// Returns the address of `file`.
    ///
    /// # Errors
    /// The reason why the endpoint is not an address.
    pub(super) fn url(&self, file: &HubFile) -> Result<Url, String> {
        let (endpoint, repo) = (&self.endpoint, repo(file));
        Url::parse(&format!("{endpoint}/{}/resolve/{}/{}", repo.url(), repo.url_revision(), file.path))
            .map_err(|why| format!("HF_ENDPOINT: {why}"))
    }
}

fn repo(file: &HubFile) -> Repo {
    Repo::with_revision(file.repo.to_string(), file.kind, file.revision.to_string())
}
