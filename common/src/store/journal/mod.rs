//! What each writer did, a line an event, in a file of its own under `.lenspool/{model}/journal/`.
//!
//! One writer a file and append only: nobody waits for anybody, and a kill tears at most the last line,
//! which readers skip. From the journals come a run's progress and its index ([`Store::index_run`])
//! without a walk over all prompts. They are a record, not the truth: what is committed is what lies
//! in the prompts' directories.

mod progress;
mod reader;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use progress::{Failed, Progress};
pub use reader::JournalReader;

use super::{
    commit::Store,
    durable,
    error::{Context, Op, StoreError},
    index::IndexReport,
    layout::ModelLayout,
};
use crate::{
    job::{Failure, JobId, RunId},
    prompt::PromptHash,
};

/// The version of the lines this build writes. Readers skip lines they do not know.
pub const JOURNAL_VERSION: u32 = 1;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A writer began; the first line of every journal.
    Opened {
        /// [`JOURNAL_VERSION`].
        version: u32,
        /// The run it works for.
        run: RunId,
        /// Its host, in full.
        host: String,
        /// Its process id there.
        pid: u32,
    },
    /// A prompt was computed and is committed.
    Committed {
        /// Which.
        hash: PromptHash,
        /// Bytes of its file of arrays.
        bytes: u64,
    },
    /// A prompt of a job was found committed already.
    Cached {
        /// Which.
        hash: PromptHash,
    },
    /// A prompt, or a whole job, was not done.
    Failed {
        /// The job.
        job: JobId,
        /// What and why.
        failure: Failure,
        /// Whether nobody tries it again, whatever kind of failure it is.
        #[serde(default)]
        last: bool,
    },
    /// A job is over: every prompt of it is committed or failed.
    Finished {
        /// Which.
        job: JobId,
        /// Prompts computed and committed.
        done: usize,
        /// Prompts found committed.
        cached: usize,
        /// Prompts that failed.
        failed: usize,
        /// Milliseconds from when it was taken to when it was over.
        millis: u64,
    },
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When, by the writer's clock.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// The journal of one writer for one model. Shared by its threads; made with its first line.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    path: PathBuf,
    run: RunId,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    /// Whether the last line may be torn: then the next one begins on a line of its own.
    torn: bool,
}

impl Journal {
    /// The journal in which `store` notes what it does for `model` in `run`.
    pub fn new(store: &Store, model: &ModelLayout, run: &RunId) -> Self {
        let dir = model.journal();
        let path = dir.join(format!("{}.jsonl", store.writer()));
        Journal { dir, path, run: run.clone(), state: Mutex::default() }
    }

    /// Notes an event. It survives a kill of this process at once, a power cut after [`Journal::sync`].
    pub fn note(&self, event: Event) -> Result<(), StoreError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.open(&mut state)?;
        self.append(&mut state, event)
    }

    /// Notes the end of a job and makes everything noted so far durable, and visible to other machines.
    pub fn finish(&self, event: Event) -> Result<(), StoreError> {
        self.note(event)?;
        self.sync()
    }

    /// Makes everything noted so far durable, and visible to other machines.
    pub fn sync(&self) -> Result<(), StoreError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.file.as_ref().map_or(Ok(()), |file| file.sync_data()).on(Op::Sync, &self.path)
    }

    fn open(&self, state: &mut State) -> Result<(), StoreError> {
        if state.file.is_some() {
            return Ok(());
        }
        durable::ensure_dir(&self.dir)?;
        // After a failed first line the file is there already.
        state.torn = self.path.exists();
        let file =
            OpenOptions::new().append(true).create(true).open(&self.path).on(Op::Create, &self.path)?;
        durable::sync_dir(&self.dir)?;
        state.file = Some(file);
        let opened = Event::Opened {
            version: JOURNAL_VERSION,
            run: self.run.clone(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
        };
        let appended = self.append(state, opened);
        if appended.is_err() {
            state.file = None;
        }
        appended
    }

    fn append(&self, state: &mut State, event: Event) -> Result<(), StoreError> {
        let Some(file) = &mut state.file else { return Ok(()) };
        let mut line = if state.torn { b"\n".to_vec() } else { Vec::new() };
        serde_json::to_writer(&mut line, &Line { at: Timestamp::now(), event })
            .map_err(io::Error::from)
            .on(Op::Write, &self.path)?;
        line.push(b'\n');
        let written = file.write_all(&line);
        state.torn = written.is_err();
        written.on(Op::Write, &self.path)
    }
}

impl Store {
    /// Brings prompts.jsonl up to date with what the journals of `run` (of all runs, where none) say was
    /// committed: one read of the journals and a look at those prompts, whatever else there is.
    pub fn index_run(&self, model: &ModelLayout, run: Option<&RunId>) -> Result<IndexReport, StoreError> {
        let mut progress = Progress::default();
        JournalReader::new(model, run).poll(|_, line| progress.take(line))?;
        let committed: Vec<PromptHash> = progress.into_committed().collect();
        self.add_to_index(model, &committed)
    }
}

/// The journal files of a model, in order of their names.
fn files(model: &ModelLayout) -> Result<Vec<PathBuf>, StoreError> {
    let dir = model.journal();
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).on(Op::List, &dir),
    };
    let mut files = Vec::new();
    for entry in entries {
        files.push(entry.on(Op::List, &dir)?.path());
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests;
