//! What the stories share: the real binaries, the fixtures, and reading back what was written.

pub mod broker;
pub mod site;

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use ndarray::ArrayD;
use ndarray_npy::ReadNpyExt;
use serde_json::Value;

/// The repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_owned()
}

/// A committed tiny checkpoint.
pub fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures/models").join(name)
}

/// The bundled prompts.
pub fn example_prompts() -> PathBuf {
    repository().join("examples/prompts.jsonl")
}

/// A binary of this workspace, with an environment that says nothing of the machine it runs on.
pub fn binary(name: &str) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin(name));
    for (variable, _) in std::env::vars_os() {
        let text = variable.to_string_lossy();
        if ["LENSPOOL_", "HF_", "RUST_LOG", "XDG_", "TRANSFORMERS_"]
            .iter()
            .any(|prefix| text.starts_with(prefix))
        {
            command.env_remove(&variable);
        }
    }
    command.env("HF_HUB_OFFLINE", "1");
    command
}

/// `worker run` over `prompts` with the flags every story wants.
pub fn worker_run(model: &Path, prompts: &Path, save_path: &Path) -> Command {
    let mut command = binary("worker");
    command
        .arg("run")
        .arg("--model")
        .arg(model)
        .arg("--prompts")
        .arg(prompts)
        .arg("--save-path")
        .arg(save_path);
    command.arg("--json").env("LENSPOOL_RUN_DEVICE", "cpu");
    command
}

/// How a command ended, for assertions that show everything when they fail.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// What it said.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

impl Ended {
    /// Its stdout as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("stdout is no JSON ({error}): {self:#?}"))
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Asserts that stderr says `text`.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "{text:?} was not said: {self:#?}");
        self
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// Runs a command to its end.
pub fn end(mut command: Command) -> Ended {
    command.output().unwrap_or_else(|error| panic!("starting {command:?}: {error}")).into()
}

/// The directories of all prompts of a model, by hash.
pub fn prompt_dirs(save_path: &Path, model: &str) -> BTreeMap<String, PathBuf> {
    let Ok(entries) = fs_err::read_dir(save_path.join(model).join("prompts")) else { return BTreeMap::new() };
    let named = |entry: fs_err::DirEntry| (entry.file_name().to_string_lossy().into_owned(), entry.path());
    entries.map(|entry| named(entry.expect("the directory can be listed"))).collect()
}

/// Every array of an npz file, checked against its CRC, by name without `.npy`.
pub fn read_npz(path: &Path) -> Result<BTreeMap<String, ArrayD<f32>>, String> {
    let say = |what: &str, error: &dyn std::fmt::Display| format!("{}: {what}: {error}", path.display());
    let file = std::fs::File::open(path).map_err(|error| say("open", &error))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| say("zip", &error))?;
    let mut arrays = BTreeMap::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|error| say("entry", &error))?;
        let name = entry.name().map_err(|error| say("name", &error))?.trim_end_matches(".npy").to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|error| say(&name, &error))?;
        arrays.insert(name.clone(), ArrayD::<f32>::read_npy(&bytes[..]).map_err(|error| say(&name, &error))?);
    }
    Ok(arrays)
}

/// Checks every committed prompt of a model and returns how many there are: arrays that can be read,
/// shapes that fit the tokens, rows that sum to 1, a record that is whole.
pub fn check_committed(save_path: &Path, model: &str) -> Result<usize, String> {
    let mut committed = 0;
    for (hash, dir) in prompt_dirs(save_path, model) {
        if let Ok(arrays) =
            std::fs::metadata(dir.join("activations.npz")).map(|_| read_npz(&dir.join("activations.npz")))
        {
            for (name, array) in arrays? {
                let &[1, _, rows, columns] = array.shape() else {
                    return Err(format!("{hash} {name}: {:?}", array.shape()));
                };
                if rows != columns {
                    return Err(format!("{hash} {name}: {rows} x {columns}"));
                }
                let worst = array.rows().into_iter().map(|row| (row.sum() - 1.0).abs()).fold(0.0, f32::max);
                if worst.is_nan() || worst > 1e-4 {
                    return Err(format!("{hash} {name}: a row sums to 1 within {worst} only"));
                }
            }
        }
        if let Ok(text) = std::fs::read_to_string(dir.join("prompt.json")) {
            let record: Value =
                serde_json::from_str(&text).map_err(|error| format!("{hash}: {error}: {text:?}"))?;
            let tokens = record["tokens"].as_array().map(Vec::len);
            if record["hash"] != hash.as_str() || tokens != record["n_tokens"].as_u64().map(|n| n as usize) {
                return Err(format!("{hash}: {text}"));
            }
            if !dir.join("activations.npz").exists() {
                return Err(format!("{hash}: prompt.json stands without its arrays"));
            }
            committed += 1;
        }
    }
    Ok(committed)
}

/// Lays `model`'s files out as the hub cache does, as `repo` ("owner/name" or "name") at `commit`.
pub fn hub_cache(home: &Path, repo: &str, commit: &str, model: &Path) -> PathBuf {
    let folder = home.join("hub").join(format!("models--{}", repo.replace('/', "--")));
    let snapshot = folder.join("snapshots").join(commit);
    fs_err::create_dir_all(&snapshot).expect("a temporary directory can be written");
    fs_err::create_dir_all(folder.join("refs")).expect("a temporary directory can be written");
    fs_err::write(folder.join("refs/main"), commit).expect("a temporary directory can be written");
    for entry in fs_err::read_dir(model).expect("the fixture is there") {
        let entry = entry.expect("the fixture can be listed");
        fs_err::copy(entry.path(), snapshot.join(entry.file_name())).expect("the fixture can be copied");
    }
    snapshot
}
