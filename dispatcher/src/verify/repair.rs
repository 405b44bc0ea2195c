//! Repairing: what is broken is removed, and exactly its prompts are enqueued again, as runs of their own.
//!
//! A prompt's text comes from its prompt.json, or from its line in prompts.jsonl where that is what is broken; its
//! token ids are made anew, as at enqueueing. A prompt is removed just before its job is published, for a worker skips
//! what it finds committed; before the first one is, all are written to a file that goes once all are published, and from
//! which the next repair goes on (see [`super::leftover`]): an interrupted repair loses nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, io,
    io::BufRead,
    path::Path,
    sync::Arc,
};

use common::{
    capture::{ArrayLayout, Capture},
    intake::{KnownModel, Planned, Request},
    job::{Job, ModelPin, RunId},
    model::reference::ModelRef,
    plan::{PlanLimits, memory::default_batch_memory},
    prompt::{Json, Prompt, PromptHash, PromptSet, Record},
    queue::rabbitmq::{Broker, MESSAGE_BYTES, Publisher, message},
    selection::Selection,
    settings::Settings,
    spool::SpoolOptions,
    store::{ModelLayout, Op, Store, StoreError, runs},
    talk::{View, counted},
    tokenize::{OnTooLong, PrependBos},
};
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::{
    Task,
    file::CANNOT_READ,
    leftover::{Leftover, keep_copy},
    prompt::{Broken, prompt_of, read_record},
};
use crate::{
    Error,
    publish::{Published, Publishing, REPAIR},
    signals,
};

/// Bytes of a message besides its prompts, at most.
const FRAME_BYTES: usize = 8 << 10;

/// What repairing did.
#[derive(Debug, Default, Serialize)]
pub struct Repaired {
    /// The runs that compute the prompts again.
    pub runs: Vec<RunId>,
    /// Prompts enqueued.
    pub prompts: usize,
    /// Prompts that are broken still: nobody knows their text, or it cannot be tokenized.
    pub left: usize,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
}

impl Repaired {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!("{} removed and enqueued again", counted(self.prompts as u64, "prompt"));
        for run in &self.runs {
            text.push_str(&format!("\n  run {run}: `dispatcher watch --run {run}` follows it"));
        }
        if self.left > 0 {
            text.push_str(&format!("\nstill broken: {}; see above", counted(self.left as u64, "prompt")));
        }
        if self.interrupted {
            text.push_str("\ninterrupted: the same command goes on from here");
        }
        text.push('\n');
        text
    }
}

/// Repairs what `broken` names of `tasks`, and goes on with repairs that were interrupted.
pub fn repair(
    tasks: &[Task],
    broken: &[Broken],
    settings: &Settings,
    runtime: &Runtime,
) -> Result<Repaired, Error> {
    let mut repaired = Repaired::default();
    let mut bench = if broken.is_empty() { None } else { Some(Bench::new(settings, runtime)?) };
    for task in tasks {
        let published = match &mut bench {
            Some(bench) => task.repair(broken, settings, bench, &mut repaired)?,
            None => HashSet::new(),
        };
        if repaired.interrupted {
            break;
        }
        for leftover in &task.leftovers {
            let unpaid = leftover.owed.keys().filter(|hash| !published.contains(*hash)).count();
            if unpaid == 0 {
                leftover.close(&task.layout)?;
            } else {
                tracing::warn!(
                    "{} of the interrupted repair in {} are not enqueued: another run's, or they cannot be computed",
                    counted(unpaid as u64, "prompt"),
                    leftover.copy.display()
                );
            }
        }
    }
    if let Some(bench) = bench {
        runtime.block_on(bench.publisher.close());
    }
    Ok(repaired)
}

impl Task {
    /// Repairs what is this task's, and returns the prompts that the broker has now.
    fn repair(
        &self,
        broken: &[Broken],
        settings: &Settings,
        bench: &mut Bench<'_>,
        repaired: &mut Repaired,
    ) -> Result<HashSet<PromptHash>, Error> {
        let mut confirmed = HashSet::new();
        let mut layouts: BTreeMap<u8, (ArrayLayout, BTreeSet<PromptHash>)> = BTreeMap::new();
        // What only this machine cannot read now may be whole.
        let (ours, unread): (Vec<_>, Vec<_>) = broken
            .iter()
            .filter(|broken| self.holds(&broken.path))
            .partition(|broken| !broken.what.contains(CANNOT_READ));
        repaired.left += unread.len();
        for Broken { hash, layout, .. } in ours {
            layouts.entry(*layout as u8).or_insert((*layout, BTreeSet::new())).1.insert(hash.clone());
        }
        for (layout, hashes) in layouts.into_values() {
            let plan = Plan::new(self, layout, &hashes, settings)?;
            if plan.planned.todo() == 0 {
                repaired.left += hashes.len();
                continue;
            }
            let run = plan.request.run.clone();
            let published = plan.carry_out(bench)?;
            for failure in &published.failures {
                tracing::warn!("{}", failure.reason);
            }
            confirmed.extend(runs::published(&self.layout, &run)?);
            repaired.runs.push(run);
            repaired.prompts += published.prompts;
            repaired.left += hashes.len() - published.prompts;
            repaired.interrupted |= !published.whole;
        }
        Ok(confirmed)
    }

    fn holds(&self, path: &Path) -> bool {
        path.starts_with(self.layout.prompts())
    }

    fn pin(&self, card: Option<&serde_json::Map<String, serde_json::Value>>) -> Option<ModelPin> {
        if let Some(card) = &self.card {
            return Some(card.model.clone());
        }
        let text = |key: &str| Some(card?.get(key)?.as_str()?.to_owned());
        Some(ModelPin {
            name: self.layout.name().to_string(),
            source: text("repo")?,
            commit: text("commit")?,
        })
    }
}

/// A repair of one model's prompts, ready to be carried out.
struct Plan {
    layout: ModelLayout,
    request: Request,
    known: KnownModel,
    planned: Planned,
    prompts: Arc<PromptSet>,
}

impl Plan {
    /// Reads the prompts and the model; removes nothing.
    fn new(
        task: &Task,
        array_layout: ArrayLayout,
        hashes: &BTreeSet<PromptHash>,
        settings: &Settings,
    ) -> Result<Plan, Error> {
        let layout = task.layout.clone();
        let run = fresh_run(&layout);
        let store = Store::new(layout.save().root(), &run);
        let card = store.read_card(&layout)?;
        let pin = task.pin(card.as_ref()).ok_or_else(|| {
            Error::Request(format!(
                "{} does not say which model made these files, so they cannot be computed again",
                layout.model_cfg().display()
            ))
        })?;
        let bos =
            card.as_ref().and_then(|card| card.get("prepend_bos")?.as_str()?.parse::<PrependBos>().ok());
        // All layers in float32 do for every capture; a run's own is what it asked for.
        let capture = match &task.card {
            Some(card) if task.which != super::Which::All => card.capture.clone(),
            _ => Capture { layout: array_layout, ..Capture::default() },
        };
        let run_settings = &settings.run;
        let batch_bytes = run_settings.batch_memory.map(|bytes| bytes.0);
        let request = Request {
            run,
            save_path: layout.save().root().to_owned(),
            hub: settings.hub.options(),
            selection: Selection::default(),
            layout: capture.layout,
            dtype: capture.dtype,
            numerics: capture.numerics,
            // The files are still there while this is planned.
            force: true,
            prepend_bos: bos.unwrap_or(run_settings.prepend_bos),
            on_too_long: OnTooLong::Truncate,
            limits: PlanLimits {
                batch_size: run_settings.batch_size.get(),
                batch_bytes: batch_bytes.unwrap_or_else(|| default_batch_memory().batch_bytes),
                max_message_bytes: Some(MESSAGE_BYTES - FRAME_BYTES),
            },
        };
        let mut known = KnownModel::find(&request, &ModelRef::pinned(&pin)?, &mut |event| event.tell())?;
        if known.located.commit != pin.commit {
            return Err(Error::Request(format!(
                "{} is at {} now, and these files were made by {}; repair where that is found",
                known.located.source, known.located.commit, pin.commit
            )));
        }
        // The place of the files decides, not how the model is named here.
        known.located.name = layout.name().clone();
        known.capture = capture;
        let prompts = Arc::new(read_prompts(&layout, hashes, &task.leftovers)?);
        let spool = SpoolOptions::default();
        let planned = known.plan(&request, Arc::clone(&prompts), &Default::default(), spool, |_| {})?;
        for failure in planned.failures() {
            tracing::warn!("{}", failure.reason);
        }
        Ok(Plan { layout, request, known, planned, prompts })
    }

    /// Removes and publishes, job by job: never more is removed than what is about to be published. Returns the
    /// prompts the broker has; interrupted, the rest is broken still, or owed by the copy.
    fn carry_out(mut self, bench: &mut Bench<'_>) -> Result<Published, Error> {
        // Whoever computed one of them meanwhile need not be overruled.
        self.request.force = false;
        let (layout, run) = (&self.layout, &self.request.run);
        let publishing = Publishing {
            names: &bench.broker.names,
            publisher: &mut bench.publisher,
            stop: &bench.stop,
            layout,
            view: View::of_stderr(false),
        };
        let digest = format!("{REPAIR}{run}");
        let ledger = publishing.announce(&self.request, &self.known, &self.planned, &digest)?;
        let copy = keep_copy(layout, run, &self.prompts)?;
        let prepare = |job: &mut Job| {
            job.force = false;
            // What no broker takes is not removed.
            message::body(job)?;
            let arrays = job.capture.layout;
            job.prompts.iter().try_for_each(|prompt| Ok(remove(layout, &prompt.hash, arrays)?))
        };
        let published = bench.runtime.block_on(publishing.publish(&self.planned, ledger, prepare));
        match published {
            Ok(published) if published.whole => {
                fs::remove_file(&copy).map_err(|error| StoreError::new(Op::Remove, &copy, error))?;
                Ok(published)
            }
            interrupted => {
                tracing::error!(
                    "the repair of {} did not come to its end; its prompts are in {}, and `dispatcher verify --repair` \
                     goes on with it",
                    layout.name(),
                    copy.display()
                );
                interrupted
            }
        }
    }
}

/// What a repair works with.
struct Bench<'a> {
    broker: Broker,
    publisher: Publisher,
    stop: CancellationToken,
    runtime: &'a Runtime,
}

impl<'a> Bench<'a> {
    fn new(settings: &Settings, runtime: &'a Runtime) -> Result<Bench<'a>, Error> {
        let broker = Broker::new(&settings.queue)?;
        let publisher = runtime.block_on(Publisher::connect(&broker))?;
        let stop = CancellationToken::new();
        runtime.spawn(signals::watch(stop.clone()));
        Ok(Bench { broker, publisher, stop, runtime })
    }
}

/// A run's id that has no ledger yet: one process may begin several within a second.
fn fresh_run(layout: &ModelLayout) -> RunId {
    let fresh = RunId::fresh();
    let numbered = (2..).map(|number| RunId(format!("{fresh}-{number}")));
    let mut ids = std::iter::once(fresh.clone()).chain(numbered);
    ids.find(|run| !layout.run(run).exists()).expect("there are numbers enough")
}

/// The prompts as they were before they were tokenized. Those whose text nobody knows are told and left out.
fn read_prompts(
    layout: &ModelLayout,
    hashes: &BTreeSet<PromptHash>,
    leftovers: &[Leftover],
) -> Result<PromptSet, Error> {
    let mut found: Vec<Prompt> = Vec::new();
    let mut lost: BTreeSet<&PromptHash> = BTreeSet::new();
    for hash in hashes {
        let record = read_record(layout, hash).ok().flatten();
        match record.and_then(|record| prompt_of(record, hash)) {
            Some(prompt) => found.push(prompt),
            None => match leftovers.iter().find_map(|leftover| leftover.owed.get(hash)) {
                Some(prompt) => found.push(prompt.clone()),
                None => {
                    lost.insert(hash);
                }
            },
        }
    }
    if !lost.is_empty() {
        for prompt in indexed(layout, &lost)? {
            lost.remove(prompt.hash());
            found.push(prompt);
        }
    }
    for hash in lost {
        tracing::warn!(
            "the text of prompt {hash} is lost with its prompt.json; enqueue the prompt file it came from again"
        );
    }
    Ok(PromptSet::from_prompts(&found)?)
}

/// The prompts among `wanted` that prompts.jsonl lists.
fn indexed(layout: &ModelLayout, wanted: &BTreeSet<&PromptHash>) -> Result<Vec<Prompt>, StoreError> {
    let path = layout.prompts_jsonl();
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::new(Op::Read, path, error)),
    };
    let mut prompts: BTreeMap<PromptHash, Prompt> = BTreeMap::new();
    for line in io::BufReader::new(file).split(b'\n') {
        let line = line.map_err(|error| StoreError::new(Op::Read, &path, error))?;
        let record = str::from_utf8(&line).ok().and_then(|line| Record::parse(line).ok());
        let Some(record) = record else { continue };
        let hash =
            record.get("hash").and_then(Json::as_str).map(|hash| PromptHash::try_from(hash.to_owned()));
        if let Some(Ok(hash)) = hash
            && wanted.contains(&hash)
            && let Some(prompt) = prompt_of(record, &hash)
        {
            prompts.insert(hash, prompt);
        }
    }
    Ok(prompts.into_values().collect())
}

/// Removes a prompt's commit mark, then its arrays: in between it does not count as committed.
fn remove(layout: &ModelLayout, hash: &PromptHash, arrays: ArrayLayout) -> Result<(), StoreError> {
    for path in [layout.prompt_json(hash), layout.activations(hash, arrays)] {
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::new(Op::Remove, path, error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{scope::tests::layout, verify::prompt::tests::commit};

    #[test]
    fn a_text_is_found_in_the_record_or_in_the_index() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path(), "gpt2");
        let [a, b, c] = ["a", "b", "c"].map(|text| commit(&layout, text));
        let line = fs::read_to_string(layout.prompt_json(&b)).unwrap();
        fs::write(layout.prompts_jsonl(), format!("torn{{\n{line}\n")).unwrap();
        fs::write(layout.prompt_json(&b), "{").unwrap();
        fs::remove_file(layout.prompt_json(&c)).unwrap();
        let set = read_prompts(&layout, &[a.clone(), b.clone(), c].into(), &[]).unwrap();
        let found: BTreeSet<_> = set.hashes().cloned().collect();
        assert_eq!(found, [a, b].into(), "the third is lost");
    }

    #[test]
    fn removing_takes_the_files_and_is_no_error_twice() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path(), "gpt2");
        let hash = commit(&layout, "a");
        for _ in 0..2 {
            remove(&layout, &hash, ArrayLayout::PerLayer).unwrap();
            assert_eq!(fs::read_dir(layout.prompt(&hash)).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_was_repaired_is_told_with_what_was_not() {
        let runs = vec![RunId("r".to_owned())];
        let repaired = Repaired { runs, prompts: 2, left: 1, ..Repaired::default() };
        let text = repaired.text();
        assert!(
            text.starts_with("2 prompts removed and enqueued again\n  run r: ")
                && text.contains("still broken: 1 prompt;")
        );
    }
}
