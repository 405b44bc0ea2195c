//! The files that say what a data directory holds: models.jsonl, prompts.jsonl, figures.jsonl;
//! and the page that shows it.
//!
//! Each is built from what is committed, so a killed run's index is mended by the next one, and each is
//! replaced whole by rename, so that a reader never finds a torn line and no writer loses another's.

mod lines;
mod models;
mod page;
mod prompts;

use std::{
    fs::{self, OpenOptions},
    io,
    path::PathBuf,
};

use serde_json::{Map, Value};

use super::{
    commit::Store,
    durable,
    error::{Context, Op, StoreError},
    layout::ModelLayout,
};
use crate::prompt::PromptHash;

/// How many unreadable files a report names.
const NAMED: usize = 20;

/// A file that an index leaves out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlisted {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// What an index says now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexReport {
    /// Its lines.
    pub lines: usize,
    /// How many lines were made anew.
    pub read: usize,
    /// How many lines were taken out because their prompt is no longer complete.
    pub dropped: usize,
    /// Files left out because they cannot be read as what they should be; the first few of them.
    pub unlisted: Vec<Unlisted>,
    /// How many there are.
    pub unlisted_count: usize,
}

impl IndexReport {
    fn leave_out(&mut self, path: PathBuf, reason: impl ToString) {
        self.unlisted_count += 1;
        if self.unlisted.len() < NAMED {
            self.unlisted.push(Unlisted { path, reason: reason.to_string() });
        }
    }
}

impl Store {
    /// The model_cfg.json that is there. None where there is none, or where it cannot be read as an
    /// object: then it is torn, says nothing, and is written anew.
    pub fn read_card(&self, model: &ModelLayout) -> Result<Option<Map<String, Value>>, StoreError> {
        let path = model.model_cfg();
        match fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).on(Op::Read, path),
        }
    }

    /// Makes a model's place in the data directory: its model_cfg.json, its line in models.jsonl,
    /// figures.jsonl, and the viewer page where `index_html` says so. What is right already stays.
    /// What dead runs left behind is swept.
    pub fn begin_model(
        &self,
        model: &ModelLayout,
        card: &Map<String, Value>,
        index_html: bool,
    ) -> Result<(), StoreError> {
        durable::ensure_dir(&model.prompts())?;
        for failure in self.sweep().failures {
            tracing::warn!("what a dead run left behind stays for now: {failure}");
        }
        let text = serde_json::to_vec_pretty(card).expect("a map of plain values");
        let path = model.model_cfg();
        if fs::read(&path).ok().as_deref() != Some(&text) {
            self.replace(&path, &text)?;
        }
        self.ensure_figures()?;
        if index_html {
            page::ensure(self)?;
        }
        self.update_models().map(|_| ())
    }

    /// Brings models.jsonl up to date with the model_cfg.json of every model.
    pub fn update_models(&self) -> Result<IndexReport, StoreError> {
        models::update(self)
    }

    /// Brings a model's prompts.jsonl up to date, and warns of files that cannot be listed.
    pub fn update_index(&self, model: &ModelLayout) -> Result<(), StoreError> {
        let report = self.index_prompts(model)?;
        for Unlisted { path, reason } in &report.unlisted {
            tracing::warn!("{} is not listed: {reason}", path.display());
        }
        let more = report.unlisted_count - report.unlisted.len();
        if more > 0 {
            tracing::warn!("{more} more prompts of {} are not listed", model.name());
        }
        Ok(())
    }

    /// Brings a model's prompts.jsonl up to date with what is committed, by listing all its prompts.
    /// Lines that are right already are not read again. A model never begun gets no file.
    pub fn index_prompts(&self, model: &ModelLayout) -> Result<IndexReport, StoreError> {
        prompts::update(self, model, prompts::Candidates::Listing)
    }

    /// The same for `committed` alone, without a walk over all prompts: for many workers, each knowing
    /// from the journals what was committed. Other lines stay as they are.
    pub fn add_to_index(
        &self,
        model: &ModelLayout,
        committed: &[PromptHash],
    ) -> Result<IndexReport, StoreError> {
        prompts::update(self, model, prompts::Candidates::These(committed))
    }

    /// figures.jsonl, empty at first: the upstream viewer fails without it. Its lines are written by
    /// pattern_lens's figures step, never here.
    fn ensure_figures(&self) -> Result<(), StoreError> {
        let path = self.layout().figures_jsonl();
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => durable::sync_dir(self.layout().root()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error).on(Op::Create, path),
        }
    }
}

#[cfg(test)]
mod tests;
