//! Building a run's index once its last prompt is committed, by whoever sees that.
//!
//! A worker looks when a run it worked for has been quiet for a moment: it counts the jobs the journals say are over, a
//! read of what is new in them. Where that is all of the run, it adds the committed prompts to prompts.jsonl and
//! leaves a mark, so that the other workers, who see the same, need not. A prompt that came after the mark, from a
//! late retry, is indexed by the worker that committed it.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use common::{
    job::{Job, JobId, RunId},
    model::reference::ModelName,
    store::{
        Event, JournalReader, Store, StoreError,
        layout::{ModelLayout, SaveLayout},
        runs,
    },
};
use jiff::Timestamp;
use tokio::{sync::mpsc, task::JoinHandle};

/// How long a run must be quiet before it is looked at.
const QUIET: Duration = Duration::from_secs(2);

/// Watches over the runs this worker works for.
#[derive(Debug)]
pub struct Finisher {
    worked: mpsc::UnboundedSender<Key>,
    task: JoinHandle<()>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    save_path: PathBuf,
    model: ModelName,
    run: RunId,
}

impl Finisher {
    /// Starts watching.
    pub fn start() -> Finisher {
        let (worked, heard) = mpsc::unbounded_channel();
        Finisher { worked, task: tokio::spawn(watch(heard)) }
    }

    /// Notes that a job of a run was settled.
    pub fn worked_for(&self, job: &Job) {
        if let Ok(model) = ModelName::try_from(job.model.name.clone()) {
            let key = Key { save_path: job.save_path.clone(), model, run: job.run.clone() };
            let _ = self.worked.send(key);
        }
    }

    /// Looks a last time at every run that was not finished.
    pub async fn close(self) {
        drop(self.worked);
        let _ = self.task.await;
    }
}

async fn watch(mut heard: mpsc::UnboundedReceiver<Key>) {
    let mut runs: HashMap<Key, Watched> = HashMap::new();
    loop {
        let due = runs.values().filter_map(|run| run.due).min();
        tokio::select! {
            key = heard.recv() => match key {
                Some(key) => {
                    let run = runs.entry(key).or_insert_with_key(Watched::new);
                    run.worked = Timestamp::now();
                    run.indexed = false;
                    run.due = Some(Instant::now() + QUIET);
                }
                None => break,
            },
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                runs = off_thread(runs, |run| run.due.is_some_and(|due| due <= Instant::now())).await;
            }
        }
    }
    off_thread(runs, |run| !run.indexed).await;
}

/// Looks at those runs that `due` picks, on a thread that may block.
async fn off_thread(mut runs: HashMap<Key, Watched>, due: fn(&Watched) -> bool) -> HashMap<Key, Watched> {
    let look = move || {
        for (key, run) in runs.iter_mut().filter(|(_, run)| due(run)) {
            run.due = None;
            if let Err(error) = run.look(key) {
                tracing::warn!(
                    "the index of run {} waits: {error}; `dispatcher index --run {}` builds it",
                    key.run,
                    key.run
                );
            }
        }
        runs
    };
    tokio::task::spawn_blocking(look).await.expect("looking at runs neither panics nor is aborted")
}

/// A run this worker worked for.
struct Watched {
    model: ModelLayout,
    reader: JournalReader,
    /// Jobs the journals say are over.
    over: HashSet<JobId>,
    /// When this worker last did something for it.
    worked: Timestamp,
    /// When to look; none where nothing happened since the last look.
    due: Option<Instant>,
    /// Whether all this worker did is known to be in the index.
    indexed: bool,
}

impl Watched {
    fn new(key: &Key) -> Watched {
        let model = SaveLayout::new(&key.save_path).model(&key.model);
        let reader = JournalReader::new(&model, Some(&key.run));
        Watched { model, reader, over: HashSet::new(), worked: Timestamp::now(), due: None, indexed: false }
    }

    fn look(&mut self, key: &Key) -> Result<(), StoreError> {
        let over = &mut self.over;
        self.reader.poll(|_, line| {
            if let Event::Finished { job, .. } = line.event {
                over.insert(job);
            }
        })?;
        let Some(record) = runs::read_run(&self.model, &key.run)? else { return Ok(()) };
        let is_over = record.complete && self.over.len() >= record.jobs;
        if !(is_over || record.cancelled) {
            return Ok(());
        }
        self.indexed = runs::indexed_at(&self.model, &key.run)?.is_some_and(|at| at > self.worked);
        if self.indexed {
            return Ok(());
        }
        let as_of = Timestamp::now();
        let store = Store::new(&key.save_path, &key.run);
        let report = store.index_run(&self.model, Some(&key.run))?;
        runs::mark_indexed(&self.model, &key.run, as_of)?;
        self.indexed = true;
        tracing::info!("run {}: prompts.jsonl of {} lists {} prompts", key.run, key.model, report.lines);
        Ok(())
    }
}
