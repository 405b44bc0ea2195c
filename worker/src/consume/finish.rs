//! Building a run's index once its last prompt is committed, by whoever sees that.
//!
//! A worker looks when a run it worked for has been quiet for a moment: it counts what the journals say is over, a
//! read of what is new in them. Where that may be all of the run, it adds the committed prompts to prompts.jsonl and
//! leaves a mark, so that the other workers, who see the same, need not. A prompt that came after the mark, from a
//! late retry, is indexed by the worker that committed it.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use common::{
    job::{Job, RunId},
    model::reference::ModelName,
    store::{
        Event, JournalReader, Store, StoreError,
        layout::{ModelLayout, SaveLayout},
        runs,
    },
};
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
                    run.worked = SystemTime::now();
                    run.due = Some(Instant::now() + QUIET);
                }
                None => break,
            },
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                runs = off_thread(runs, |run| run.due.is_some_and(|due| due <= Instant::now())).await;
            }
        }
    }
    off_thread(runs, |run| run.due.is_some()).await;
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
    /// Prompts the journals say are over; those that were done twice count twice.
    over: usize,
    /// When this worker last did something for it.
    worked: SystemTime,
    /// When to look; none where nothing happened since the last look.
    due: Option<Instant>,
}

impl Watched {
    fn new(key: &Key) -> Watched {
        let model = SaveLayout::new(&key.save_path).model(&key.model);
        let reader = JournalReader::new(&model, Some(&key.run));
        Watched { model, reader, over: 0, worked: SystemTime::now(), due: None }
    }

    fn look(&mut self, key: &Key) -> Result<(), StoreError> {
        let over = &mut self.over;
        self.reader.poll(|_, line| {
            *over += usize::from(matches!(
                line.event,
                Event::Committed { .. } | Event::Cached { .. } | Event::Failed { .. }
            ));
        })?;
        let Some(record) = runs::read_run(&self.model, &key.run)? else { return Ok(()) };
        let may_be_over = record.complete && self.over >= record.published;
        if !(may_be_over || record.cancelled) || self.is_indexed(&key.run)? {
            return Ok(());
        }
        let store = Store::new(&key.save_path, &key.run);
        let report = store.index_run(&self.model, Some(&key.run))?;
        runs::mark_indexed(&self.model, &key.run)?;
        tracing::info!("run {}: prompts.jsonl of {} lists {} prompts", key.run, key.model, report.lines);
        Ok(())
    }

    /// Whether somebody indexed the run after this worker's last commit.
    fn is_indexed(&self, run: &RunId) -> Result<bool, StoreError> {
        let mark = fs::metadata(self.model.run_indexed(run)).and_then(|mark| mark.modified());
        Ok(mark.is_ok_and(|marked| marked > self.worked))
    }
}
