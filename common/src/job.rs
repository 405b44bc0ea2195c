//! A job: the self-contained message that says which prompts to run through which model and where
//! their patterns go. What a worker makes of it is an [`Outcome`].

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    capture::Capture,
    prompt::{PromptHash, Record},
};

/// The message version this build writes, and the newest it reads.
pub const JOB_VERSION: u32 = 1;

/// One invocation of `worker run` or `dispatcher enqueue`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub String);

impl RunId {
    /// The id of a run that begins now: when, and on which process of which machine.
    pub fn fresh() -> RunId {
        let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S");
        let node = rustix::system::uname();
        let host: String = node
            .nodename()
            .to_string_lossy()
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .take(32)
            .collect();
        RunId(format!("{now}-{host}-{}", std::process::id()))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A job's identity: SHA-256 over what it asks for, so the same batch always has the same id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub String);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The exact model a job is for. A worker that holds another one must not run it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModelPin {
    /// Directory name under the save path.
    pub name: String,
    /// Hub repository id, or the local directory's path.
    pub source: String,
    /// The resolved commit; for a local directory, "sha256:" and the digest of its configuration and weight index.
    pub commit: String,
}

/// How many patterns a model makes of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModelShape {
    /// Layers.
    pub n_layers: usize,
    /// Query heads of a layer.
    pub n_heads: usize,
}

/// One prompt of a job: everything a worker needs to compute and commit it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobPrompt {
    /// The prompt's identity and directory name.
    pub hash: PromptHash,
    /// What prompt.json will hold, keys in order.
    pub record: Record,
    /// The token ids the model reads, BOS included where one is prepended. `n` is their count.
    pub ids: Vec<u32>,
}

/// A batch of prompts for one model, with what to keep and where to put it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The message's version.
    pub version: u32,
    /// The job's identity.
    pub id: JobId,
    /// The run it belongs to.
    pub run: RunId,
    /// The model to run.
    pub model: ModelPin,
    /// Its shape.
    pub shape: ModelShape,
    /// What to keep.
    pub capture: Capture,
    /// The data directory (`attn_data`), absolute.
    pub save_path: PathBuf,
    /// Compute again what is committed already.
    pub force: bool,
    /// The prompts, longest first.
    pub prompts: Vec<JobPrompt>,
}

impl Job {
    /// Makes a job and derives its id from the run, the model, the capture and the prompts' hashes.
    pub fn new(
        run: RunId,
        model: ModelPin,
        shape: ModelShape,
        capture: Capture,
        save_path: PathBuf,
        force: bool,
        prompts: Vec<JobPrompt>,
    ) -> Self {
        let mut digest = Sha256::new();
        for part in [run.0.as_str(), &model.source, &model.commit, &save_path.to_string_lossy()] {
            digest.update(part.as_bytes());
            digest.update([0]);
        }
        digest.update(serde_json::to_vec(&capture).expect("a capture is plain data"));
        for prompt in &prompts {
            digest.update([0]);
            digest.update(prompt.hash.as_str().as_bytes());
        }
        let id = digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Job { version: JOB_VERSION, id: JobId(id), run, model, shape, capture, save_path, force, prompts }
    }
}

/// Why a prompt, or a whole job, was not done: policy follows from the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Worth another try later, here or elsewhere: storage, broker, memory.
    Retryable,
    /// Will fail the same way every time: a bad message, the wrong model, a prompt that cannot be computed.
    Permanent,
    /// lenspool itself is wrong.
    Bug,
}

/// A prompt that was not done, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The prompt, or none where the whole job failed before its prompts were told apart.
    pub hash: Option<PromptHash>,
    /// What kind of failure.
    pub kind: FailureKind,
    /// What was attempted, on what, and what to do next.
    pub reason: String,
}

/// For a person: the prompt, where it is known, and the reason.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(hash) = &self.hash {
            write!(f, "prompt {hash}: ")?;
        }
        f.write_str(&self.reason)
    }
}

/// What became of a job's prompts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Prompts computed and committed now.
    pub done: usize,
    /// Prompts found committed already.
    pub cached: usize,
    /// Prompts that failed.
    pub failures: Vec<Failure>,
    /// Milliseconds from when the job was taken to when it was over.
    pub millis: u64,
}
