//! Where this process may leave temporary files behind, said before it writes there.
//!
//! A killed run leaves at most a few temporary files, each in some prompt's directory. To find them
//! without walking all prompts, a writer appends the hashes it is about to write to its own file
//! under `.lenspool/.intents/`, one line a job. The file is gone when the writer ended well, so the
//! files there are those of live writers and of dead ones not yet swept; see [`super::sweep`].

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{
    durable::{self, TempFile},
    error::{Context, Op, StoreError},
    layout::{ModelName, SaveLayout},
    writer::WriterId,
};
use crate::prompt::PromptHash;

/// Past this size the file is written anew with what is still open.
const REWRITE_BYTES: u64 = 256 * 1024;

/// One line of an intents file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Intent {
    /// The model.
    pub(crate) model: ModelName,
    /// The prompts whose directories may hold temporary files.
    pub(crate) hashes: Vec<PromptHash>,
}

/// The intents file of one writer.
#[derive(Debug)]
pub(crate) struct Intents {
    dir: PathBuf,
    path: PathBuf,
    /// The name under which the file is written anew.
    temp: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    bytes: u64,
    /// How many announcements of each prompt are open.
    open: HashMap<ModelName, HashMap<PromptHash, u32>>,
    /// Prompts whose temporary files could not be removed.
    soiled: HashSet<(ModelName, PromptHash)>,
}

/// Says that some prompts' directories may be written in, for as long as it lives.
#[derive(Debug)]
pub struct Announcement {
    intents: Arc<Intents>,
    model: ModelName,
    hashes: Vec<PromptHash>,
}

impl Intents {
    pub(crate) fn new(save: &SaveLayout, writer: &WriterId) -> Self {
        let dir = save.intents();
        let path = dir.join(format!("{writer}.jsonl"));
        // The serial no other file of this writer gets.
        let temp = dir.join(writer.temp_name(u64::MAX));
        Intents { dir, path, temp, state: Mutex::default() }
    }

    /// Durably notes `hashes` before anything is written in their directories.
    pub(crate) fn announce(
        self: &Arc<Self>,
        model: &ModelName,
        hashes: Vec<PromptHash>,
    ) -> Result<Announcement, StoreError> {
        let mut state = self.lock();
        let of_model = state.open.entry(model.clone()).or_default();
        let mut new = Vec::new();
        for hash in &hashes {
            let count = of_model.entry(hash.clone()).or_default();
            *count += 1;
            if *count == 1 {
                new.push(hash.clone());
            }
        }
        // From here on the counts are given back however this ends.
        let announcement = Announcement { intents: Arc::clone(self), model: model.clone(), hashes };
        let noted = if new.is_empty() { Ok(()) } else { self.note(&mut state, model, new) };
        drop(state);
        noted.map(|()| announcement)
    }

    fn note(&self, state: &mut State, model: &ModelName, hashes: Vec<PromptHash>) -> Result<(), StoreError> {
        if state.bytes > REWRITE_BYTES || !self.is_in_place(state) {
            return self.rewrite(state);
        }
        let Some(file) = &mut state.file else { return self.rewrite(state) };
        let line = line(&Intent { model: model.clone(), hashes });
        file.write_all(&line).on(Op::Write, &self.path)?;
        file.sync_data().on(Op::Sync, &self.path)?;
        state.bytes += line.len() as u64;
        Ok(())
    }

    /// Whether the file still has its name: another host that took this one for dead may have removed it.
    fn is_in_place(&self, state: &State) -> bool {
        let ours = state.file.as_ref().and_then(|file| file.metadata().ok());
        matches!((ours, fs::metadata(&self.path)), (Some(ours), Ok(there)) if ours.ino() == there.ino())
    }

    /// Writes the file anew with everything open now.
    fn rewrite(&self, state: &mut State) -> Result<(), StoreError> {
        durable::ensure_dir(&self.dir)?;
        let mut lines = Vec::new();
        for (model, hashes) in &state.open {
            if !hashes.is_empty() {
                lines
                    .extend(line(&Intent { model: model.clone(), hashes: hashes.keys().cloned().collect() }));
            }
        }
        for (model, hash) in &state.soiled {
            lines.extend(line(&Intent { model: model.clone(), hashes: vec![hash.clone()] }));
        }
        // A name of our own: what is there is a leftover of a failed attempt.
        let _ = fs::remove_file(&self.temp);
        let mut temp = TempFile::create(self.temp.clone())?;
        temp.fill(|file| file.write_all(&lines))?;
        temp.rename(&self.path)?;
        durable::sync_dir(&self.dir)?;
        let file = OpenOptions::new().append(true).open(&self.path).on(Op::Create, &self.path)?;
        state.file = Some(file);
        state.bytes = lines.len() as u64;
        Ok(())
    }

    /// Whether `hash` is announced now.
    pub(crate) fn covers(&self, model: &ModelName, hash: &PromptHash) -> bool {
        self.lock().open.get(model).is_some_and(|hashes| hashes.contains_key(hash))
    }

    /// Notes that a temporary file of this prompt could not be removed: the file must outlive this writer.
    pub(crate) fn soil(&self, model: &ModelName, hash: &PromptHash) {
        self.lock().soiled.insert((model.clone(), hash.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Intents {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.file.is_some() && state.soiled.is_empty() {
            // Best effort: an intents file too many costs the next run one look.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        let mut state = self.intents.lock();
        let Some(of_model) = state.open.get_mut(&self.model) else { return };
        for hash in &self.hashes {
            if let Some(count) = of_model.get_mut(hash) {
                *count -= 1;
                if *count == 0 {
                    of_model.remove(hash);
                }
            }
        }
    }
}

fn line(intent: &Intent) -> Vec<u8> {
    let mut line = serde_json::to_vec(intent).expect("names and hashes are plain text");
    line.push(b'\n');
    line
}

/// What a writer's file says. A torn line says nothing: its announcement never returned.
pub(crate) fn read(path: &std::path::Path) -> std::io::Result<Vec<Intent>> {
    let text = fs::read(path)?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}
