//! Locating models: shared pieces of the tests.

mod directory;
mod hub;
mod offline;
mod testhub;

use std::{fs, path::PathBuf, time::Duration};

use self::testhub::{COMMIT, TestHub};
use super::*;

const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// A small file in the safetensors format.
fn safetensors(fill: u8) -> Vec<u8> {
    let header = br#"{"w":{"dtype":"F32","shape":[50],"data_offsets":[0,200]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend([fill; 200]);
    file
}

fn index(shards: &[&str]) -> String {
    let map: Vec<String> =
        shards.iter().enumerate().map(|(i, shard)| format!("\"t{i}\":\"{shard}\"")).collect();
    format!("{{\"metadata\":{{}},\"weight_map\":{{{}}}}}", map.join(","))
}

/// A hub cache in a temporary directory.
struct Cache {
    dir: tempfile::TempDir,
}

impl Cache {
    fn new() -> Cache {
        Cache { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("hub")
    }

    fn snapshot(&self, folder: &str, commit: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let dir = self.path().join(folder).join("snapshots").join(commit);
        fs::create_dir_all(&dir).unwrap();
        for (name, content) in files {
            fs::write(dir.join(name), content).unwrap();
        }
        dir
    }

    fn set_ref(&self, folder: &str, revision: &str, commit: &str) {
        let path = self.path().join(folder).join("refs").join(revision);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, commit).unwrap();
    }

    fn offline(&self) -> HubOptions {
        HubOptions {
            cache: self.path(),
            endpoint: "http://127.0.0.1:1".to_owned(),
            offline: true,
            token: None,
            patience: Duration::from_secs(10),
        }
    }

    fn online(&self, hub: &TestHub) -> HubOptions {
        HubOptions { endpoint: hub.endpoint.clone(), offline: false, ..self.offline() }
    }
}

const CONFIG: (&str, &[u8]) = ("config.json", b"{\"model_type\":\"gpt2\"}");
const TOKENIZER: (&str, &[u8]) = ("tokenizer.json", b"{}");

fn model(text: &str) -> ModelRef {
    ModelRef::parse(text, None).unwrap()
}

fn locate(text: &str, hub: &HubOptions) -> Result<LocatedModel, LocateError> {
    locate_config(&model(text), hub, &mut |_| {})
}

fn weights(located: &LocatedModel, hub: &HubOptions) -> Result<Vec<PathBuf>, LocateError> {
    fetch_weights(located, hub, &mut |_| {})
}

fn names(paths: &[PathBuf]) -> Vec<&str> {
    paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect()
}
