//! How to reach the hub and its cache on this machine: the same places and variables as Hugging Face's
//! own tools use, so what they fetched is found here and the other way round.
//!
//! Owns the options. Reading the cache and downloading into it is [`crate::model::locate`]'s.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::settings::Secret;

/// The hub everyone means.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Where the hub and its cache are, and whether the network may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubOptions {
    /// The directory of `models--owner--name` folders.
    pub cache: PathBuf,
    /// The hub's address.
    pub endpoint: String,
    /// Never use the network.
    pub offline: bool,
    /// For gated and private models.
    pub token: Option<Secret>,
    /// Give a transfer up after this long without a byte.
    pub patience: Duration,
}

impl HubOptions {
    /// The options that this process's environment asks for.
    pub fn from_env() -> HubOptions {
        HubOptions::from_vars(&|name| std::env::var(name).ok())
    }

    /// The same of any environment. Variables are those of `huggingface_hub`: `HF_HUB_CACHE`, `HF_HOME`,
    /// `XDG_CACHE_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_TOKEN_PATH`, and their older names.
    pub fn from_vars(var: &dyn Fn(&str) -> Option<String>) -> HubOptions {
        let endpoint = set(var, "HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        HubOptions {
            cache: default_cache(var),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].iter().any(|name| is_true(var, name)),
            token: default_token(var),
            patience: Duration::from_secs(30),
        }
    }
}

/// A variable's value; an empty one counts as not set, as it does for `huggingface_hub`.
fn set(var: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    var(name).filter(|value| !value.trim().is_empty())
}

fn is_true(var: &dyn Fn(&str) -> Option<String>, name: &str) -> bool {
    set(var, name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()))
}

fn expand(var: &dyn Fn(&str) -> Option<String>, path: &str) -> PathBuf {
    match path.strip_prefix("~/").zip(set(var, "HOME")) {
        Some((rest, home)) => Path::new(&home).join(rest),
        None => PathBuf::from(path),
    }
}

/// `HF_HOME`, else `huggingface` in the user's cache directory.
fn hf_home(var: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    if let Some(home) = set(var, "HF_HOME") {
        return expand(var, &home);
    }
    let caches = set(var, "XDG_CACHE_HOME").unwrap_or_else(|| "~/.cache".to_owned());
    expand(var, &caches).join("huggingface")
}

/// Where hub tools keep downloads.
pub fn default_cache(var: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    match set(var, "HF_HUB_CACHE").or_else(|| set(var, "HUGGINGFACE_HUB_CACHE")) {
        Some(cache) => expand(var, &cache),
        None => hf_home(var).join("hub"),
    }
}

/// The token of the environment, or the stored one.
fn default_token(var: &dyn Fn(&str) -> Option<String>) -> Option<Secret> {
    let variable = set(var, "HF_TOKEN").or_else(|| set(var, "HUGGING_FACE_HUB_TOKEN"));
    let variable = variable.map(|token| Secret::new(token.trim()));
    variable.or_else(|| stored_token(var).map(|(_, token)| token))
}

/// The token that `hf auth login` left in a file, with the file.
pub fn stored_token(var: &dyn Fn(&str) -> Option<String>) -> Option<(PathBuf, Secret)> {
    if is_true(var, "HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    let path = match set(var, "HF_TOKEN_PATH") {
        Some(path) => expand(var, &path),
        None => hf_home(var).join("token"),
    };
    let token = std::fs::read_to_string(&path).ok()?;
    let token = Secret::new(token.trim());
    (!token.reveal().is_empty()).then_some((path, token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vars: &[(&str, &str)]) -> HubOptions {
        let find = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        HubOptions::from_vars(&find)
    }

    #[test]
    fn the_cache_is_where_hugging_face_puts_it() {
        for (vars, cache) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], "/new"),
            (&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", " ")], "/hf/hub"),
        ] {
            assert_eq!(options(vars).cache, Path::new(cache), "{vars:?}");
        }
    }

    #[test]
    fn offline_and_endpoint() {
        assert_eq!(options(&[]).endpoint, "https://huggingface.co");
        assert_eq!(options(&[("HF_ENDPOINT", "http://mirror:8080/")]).endpoint, "http://mirror:8080");
        assert!(!options(&[]).offline);
        assert!(!options(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert!(options(&[("HF_HUB_OFFLINE", "1")]).offline);
        assert!(options(&[("TRANSFORMERS_OFFLINE", "True")]).offline);
    }

    #[test]
    fn the_token_comes_from_the_usual_places() {
        let home = tempfile::tempdir().unwrap();
        let hf_home = ("HF_HOME", home.path().to_str().unwrap());
        assert_eq!(options(&[hf_home]).token, None);
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(options(&[hf_home]).token, Some(Secret::new("hf_file")));
        assert_eq!(options(&[hf_home, ("HF_TOKEN", "hf_env")]).token, Some(Secret::new("hf_env")));
        assert_eq!(options(&[hf_home, ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
        assert!(!format!("{:?}", options(&[hf_home])).contains("hf_file"));
    }
}
