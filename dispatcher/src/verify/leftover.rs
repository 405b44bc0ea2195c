//! Repairs that did not come to their end: what they removed and nobody will compute.
//!
//! A repair keeps a copy of its prompts until all of them are published: `.lenspool/{model}/repair/{run}.jsonl`. One
//! whose process is gone leaves that copy. Its run's ledger says what of it the broker confirmed; of the rest, those
//! without a prompt.json were removed and are owed. Verifying counts them as broken, so the next repair, which finds
//! their texts in the copy, goes on.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use common::{
    capture::ArrayLayout,
    job::RunId,
    prompt::{Prompt, PromptHash, PromptSet, Record},
    store::{
        ModelLayout, Op, Store, StoreError, WriterId,
        runs::{self, RunLedger},
    },
};

use crate::{Error, publish::is_published_now};

/// What an interrupted repair left.
#[derive(Debug)]
pub struct Leftover {
    run: RunId,
    /// Whether everything was published, and the copy only not removed.
    complete: bool,
    /// The copy of its prompts.
    pub copy: PathBuf,
    /// Prompts that it removed and that the broker did not confirm.
    pub owed: BTreeMap<PromptHash, Prompt>,
    /// Which arrays it was to make again.
    pub layout: ArrayLayout,
}

impl Leftover {
    /// Those of a model, in the order of their runs.
    pub fn of_model(model: &ModelLayout) -> Result<Vec<Leftover>, Error> {
        let dir = dir(model);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StoreError::new(Op::List, dir, error).into()),
        };
        let mut copies = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| StoreError::new(Op::List, &dir, error))?.path();
            // What has no such name is a copy in the making.
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                copies.push(path);
            }
        }
        copies.sort();
        let mut leftovers = Vec::new();
        for copy in copies {
            leftovers.extend(Leftover::read(model, copy)?);
        }
        Ok(leftovers)
    }

    /// What `copy` is; none where its repair goes on.
    fn read(model: &ModelLayout, copy: PathBuf) -> Result<Option<Leftover>, Error> {
        let run = RunId(copy.file_stem().unwrap_or_default().to_string_lossy().into_owned());
        // A run is announced before its copy is made.
        let Some(record) = runs::read_run(model, &run)? else { return Ok(None) };
        if is_published_now(model, &record) {
            return Ok(None);
        }
        let layout = record.card.capture.layout;
        let mut owed = BTreeMap::new();
        if !record.complete {
            let published = runs::published(model, &run)?;
            let text = fs::read_to_string(&copy).map_err(|error| StoreError::new(Op::Read, &copy, error))?;
            let prompts = text.lines().filter_map(|line| Prompt::from_record(Record::parse(line).ok()?).ok());
            for prompt in prompts.filter(|prompt| !published.contains(prompt.hash())) {
                // The commit mark goes first.
                if !model.prompt_json(prompt.hash()).exists() {
                    owed.insert(prompt.hash().clone(), prompt);
                }
            }
        }
        Ok(Some(Leftover { run, complete: record.complete, copy, owed, layout }))
    }

    /// Ends the repair's run as far as it came and removes the copy, once nothing is owed any more.
    pub fn close(&self, model: &ModelLayout) -> Result<(), StoreError> {
        if !self.complete {
            RunLedger::resume(model, &self.run, &WriterId::this_process(&self.run))?.complete()?;
        }
        fs::remove_file(&self.copy).map_err(|error| StoreError::new(Op::Remove, &self.copy, error))
    }
}

/// Writes the prompts of a repair beside the records of runs, before anything is removed.
pub fn keep_copy(model: &ModelLayout, run: &RunId, prompts: &PromptSet) -> Result<PathBuf, Error> {
    let path = dir(model).join(format!("{run}.jsonl"));
    let mut text = String::new();
    for at in 0..prompts.len() {
        text.push_str(&prompts.get(at)?.record().to_python_json());
        text.push('\n');
    }
    Store::new(model.save().root(), run).replace(&path, text.as_bytes())?;
    Ok(path)
}

fn dir(model: &ModelLayout) -> PathBuf {
    Path::join(&model.bookkeeping(), "repair")
}

#[cfg(test)]
mod tests {
    use common::job::JobId;

    use super::*;
    use crate::{
        scope::tests::{card, layout},
        verify::prompt::tests::commit,
    };

    #[test]
    fn what_was_removed_and_not_confirmed_is_owed() {
        let dir = tempfile::tempdir().unwrap();
        let model = layout(dir.path(), "gpt2");
        assert_eq!(Leftover::of_model(&model).unwrap().len(), 0);
        let texts = ["confirmed", "removed", "not reached"];
        let prompts: Vec<_> = texts.map(Prompt::from_text).into();
        let hashes: Vec<_> = prompts.iter().map(|prompt| prompt.hash().clone()).collect();
        let card = card("repair-run", "gpt2", 3);
        let mut ledger = RunLedger::announce(&model, &card).unwrap();
        let copy = keep_copy(&model, &card.run, &PromptSet::from_prompts(&prompts).unwrap()).unwrap();
        ledger.published(&JobId("1".to_owned()), vec![hashes[0].clone()]).unwrap();
        assert_eq!(commit(&model, texts[2]), hashes[2]);

        let [left] = &Leftover::of_model(&model).unwrap()[..] else { panic!("nobody publishes it") };
        assert_eq!(left.owed.keys().collect::<Vec<_>>(), [&hashes[1]]);
        assert_eq!(left.owed[&hashes[1]].text(), "removed");
        drop(ledger);
        left.close(&model).unwrap();
        assert!(!copy.exists() && runs::read_run(&model, &card.run).unwrap().unwrap().complete);
    }

    #[test]
    fn a_copy_that_only_was_not_removed_owes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let model = layout(dir.path(), "gpt2");
        let card = card("repair-run", "gpt2", 1);
        RunLedger::announce(&model, &card).unwrap().complete().unwrap();
        let prompts = [Prompt::from_text("a")];
        keep_copy(&model, &card.run, &PromptSet::from_prompts(&prompts).unwrap()).unwrap();
        assert_eq!(Leftover::of_model(&model).unwrap()[0].owed.len(), 0);
    }

    #[test]
    fn a_repair_that_goes_on_left_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let model = layout(dir.path(), "gpt2");
        let mut card = card("repair-run", "gpt2", 1);
        card.writer = WriterId::this_process(&card.run).to_string();
        drop(RunLedger::announce(&model, &card).unwrap());
        let prompts = [Prompt::from_text("a")];
        keep_copy(&model, &card.run, &PromptSet::from_prompts(&prompts).unwrap()).unwrap();
        assert_eq!(Leftover::of_model(&model).unwrap().len(), 0);
    }
}
