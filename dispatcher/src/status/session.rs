//! Looking again and again: a connection that is kept, journals read from where they were left.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use common::{
    model::reference::ModelName,
    queue::rabbitmq::{Broker, BrokerError, Observer, RunEntry},
    settings::Settings,
};
use jiff::Timestamp;

use super::{
    look::{DeadPrompts, Seen, look},
    report::{BrokerRow, Dead, DeadRow, Rates, Report, RunRow},
};
use crate::{
    Error,
    follow::{Figures, Follower, State},
    scope::{self, Part, Wanted},
};

/// How often the registry and the data directory are asked for new runs.
const NEW_RUNS_EVERY: Duration = Duration::from_secs(30);
/// Runs that are looked into whether they are over or not: the newest ones.
const NEWEST: usize = 20;

/// What `status` does once and `watch` again and again.
#[derive(Debug)]
pub struct Session {
    wanted: Wanted,
    settings: Settings,
    broker: Broker,
    observer: Option<Observer>,
    entries: Vec<RunEntry>,
    followers: Vec<Follower>,
    older: usize,
    listed: Option<Instant>,
    dead: Option<DeadPrompts>,
}

impl Session {
    /// Connects to nothing yet.
    pub fn new(wanted: Wanted, settings: &Settings) -> Result<Session, Error> {
        Ok(Session {
            wanted,
            broker: Broker::new(&settings.queue)?,
            settings: settings.clone(),
            observer: None,
            entries: Vec::new(),
            followers: Vec::new(),
            older: 0,
            listed: None,
            dead: None,
        })
    }

    /// Looks. A broker that does not answer is an error only where there is nothing else to look at.
    pub async fn look(&mut self) -> Result<Report, Error> {
        let due = self.listed.is_none_or(|listed| listed.elapsed() >= NEW_RUNS_EVERY);
        let (seen, error) = match self.ask(due).await {
            Ok(seen) => (seen, None),
            // What was seen before is still there to be followed.
            Err(error) if self.wanted.save_path.is_some() || !self.followers.is_empty() => {
                self.observer = None;
                (Seen::default(), Some(error))
            }
            Err(error) => return Err(error.into()),
        };
        let mut warnings = seen.warnings.clone();
        if let Some(error) = &error {
            warnings.push(format!("{error}; what follows is from files alone"));
        }
        if due {
            self.list(&mut warnings)?;
            self.listed = Some(Instant::now());
        }
        let now = Timestamp::now();
        let runs = self.followers.iter_mut().map(|follower| row(follower, &seen, now)).collect();
        let reachable = error.is_none();
        self.dead = reachable.then(|| seen.dead.clone());
        Ok(Report {
            namespace: self.broker.names.namespace().to_owned(),
            at: now,
            broker: BrokerRow {
                url: self.broker.shown(),
                reachable,
                error: error.map(|error| error.to_string()),
            },
            queues: seen.queues,
            retry: seen.retry,
            dead: self.of_interest(seen.dead.report),
            runs,
            older_runs: self.older,
            warnings,
        })
    }

    /// Says goodbye to the broker.
    pub async fn close(self) {
        if let Some(observer) = self.observer {
            observer.close().await;
        }
    }

    async fn ask(&mut self, due: bool) -> Result<Seen, BrokerError> {
        let observer = match self.observer.take().filter(Observer::is_alive) {
            Some(observer) => self.observer.insert(observer),
            None => self.observer.insert(Observer::connect(&self.broker).await?),
        };
        if due {
            self.entries = observer.runs().await?;
        }
        let models: BTreeSet<ModelName> = self
            .entries
            .iter()
            .filter(|entry| self.wanted.takes_model(&entry.model.name))
            .filter_map(|entry| ModelName::try_from(entry.model.name.as_str()).ok())
            .collect();
        let models: Vec<ModelName> = models.into_iter().collect();
        look(observer, &models, self.settings.queue.management.as_ref(), self.dead.as_ref()).await
    }

    /// Begins to follow what is new.
    fn list(&mut self, warnings: &mut Vec<String>) -> Result<(), Error> {
        let registered = scope::registered(self.entries.clone(), &self.wanted);
        let announced = match &self.wanted.save_path {
            Some(path) => scope::announced(path, &self.wanted).or_else(|error| {
                warnings.push(error.to_string());
                if registered.is_empty() { Err(error) } else { Ok(Vec::new()) }
            })?,
            None => Vec::new(),
        };
        let parts = scope::merged(registered, announced);
        if let (Some(run), true) = (&self.wanted.run, parts.is_empty()) {
            return Err(Error::Request(format!(
                "there is no run {run}; `dispatcher status` without --run lists those there are"
            )));
        }
        let newest = parts.len().saturating_sub(NEWEST);
        self.older = 0;
        for (at, part) in parts.into_iter().enumerate() {
            if at < newest && is_over(&part) {
                self.older += 1;
            } else if !self.followers.iter().any(|follower| follower.part.is(&part)) {
                self.followers.push(Follower::new(part));
            }
        }
        Ok(())
    }

    /// The dead letters of what was asked for; the total is that of the queue.
    fn of_interest(&self, mut dead: Dead) -> Dead {
        let wanted = |row: &DeadRow| {
            self.wanted.takes_model(&row.model) && self.wanted.run.as_ref().is_none_or(|run| run.0 == row.run)
        };
        let (by, others): (Vec<_>, Vec<_>) = dead.by.into_iter().partition(wanted);
        dead.others = dead.looked.then(|| others.iter().map(|row| row.letters).sum());
        dead.by = by;
        dead
    }
}

/// Whether the marks beside an old run's ledger say that it is over, without reading more.
fn is_over(part: &Part) -> bool {
    let there = |path: std::path::PathBuf| path.exists();
    !part.layout.run(&part.run).exists()
        || there(part.layout.run_indexed(&part.run))
        || there(part.layout.run_cancelled(&part.run))
}

fn row(follower: &mut Follower, seen: &Seen, now: Timestamp) -> RunRow {
    let outside = seen.outside(&follower.part.run.0, follower.part.model());
    let (figures, trouble) = match follower.poll(&outside, now) {
        Ok(figures) => (figures, None),
        Err(error) => (None, Some(error.to_string())),
    };
    let (part, goes_on) = (&follower.part, follower.goes_on());
    let figure = |of: fn(&Figures) -> usize| figures.as_ref().map(of);
    let queue = seen.queues.iter().find(|queue| queue.model == part.model());
    let note = trouble.or_else(|| match &figures {
        None => Some(format!(
            "its files under {} cannot be seen from this machine; look where that is mounted",
            part.layout.bookkeeping().display()
        )),
        Some(figures) => {
            let queue = queue.map(|queue| (queue.ready, queue.consumers));
            note(figures, queue, seen.retry.iter().map(|retry| retry.waiting).sum(), goes_on)
        }
    });
    let registered = part.entry.as_ref();
    RunRow {
        run: part.run.to_string(),
        model: part.model().to_owned(),
        save_path: part.layout.save().root().display().to_string(),
        enqueued_at: part.at,
        state: figures.as_ref().map_or(State::Unknown, |figures| figures.state),
        todo: figure(|figures| figures.todo).or_else(|| registered.map(|entry| entry.prompts)),
        published: figure(|figures| figures.published),
        committed: figure(|figures| figures.committed),
        failed: figure(|figures| figures.failed),
        pending: figure(|figures| figures.pending),
        jobs: figures.as_ref().map(|_| follower.jobs()).or_else(|| registered.map(|entry| entry.jobs)),
        bytes: figures.as_ref().map(|figures| figures.bytes),
        prompts_per_second: Rates {
            recent: figures.as_ref().and_then(|figures| figures.recent),
            overall: figures.as_ref().and_then(|figures| figures.overall),
        },
        eta_seconds: figures.as_ref().and_then(|figures| figures.eta).map(|eta| eta.as_secs()),
        note,
    }
}

/// What a person who wonders why nothing moves should know; `queue` is ready jobs and consumers, `waiting` the jobs of the
/// namespace that wait for another try.
fn note(figures: &Figures, queue: Option<(u64, u64)>, waiting: u64, goes_on: &str) -> Option<String> {
    match (figures.state, queue) {
        (State::Interrupted, _) => Some(format!("publishing was interrupted; {goes_on} goes on")),
        (State::Running, Some((1.., 0))) => {
            Some("no worker takes its jobs; start `worker consume`".to_owned())
        }
        (State::Running, Some((0, 0))) if figures.recent.is_none() => {
            let pending = figures.pending;
            let waits = match waiting {
                0 => String::new(),
                jobs => format!(
                    "those in the {jobs} jobs that wait for another try come back by themselves; else "
                ),
            };
            Some(format!(
                "{pending} prompts are not done, and the queue is empty: {waits}enqueue the same prompts again to have \
                 them computed"
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_learns_for_what() {
        let figures = |state| Figures {
            state,
            todo: 9,
            published: 9,
            committed: 0,
            failed: 0,
            pending: 9,
            bytes: 0,
            recent: None,
            overall: None,
            eta: None,
        };
        let said = |state, queue| note(&figures(state), queue, 0, "enqueue").unwrap_or_default();
        assert!(said(State::Interrupted, None).contains("enqueue"));
        assert!(said(State::Running, Some((5, 0))).contains("worker consume"));
        assert!(said(State::Running, Some((0, 0))).starts_with("9 prompts are not done"));
        let waits = note(&figures(State::Running), Some((0, 0)), 2, "enqueue").unwrap();
        assert!(waits.contains("in the 2 jobs that wait") && waits.contains("enqueue"), "{waits}");
        assert_eq!(said(State::Running, Some((5, 1))), "");
        assert_eq!(said(State::Done, Some((0, 0))), "");
    }

    #[tokio::test]
    async fn files_alone_do_where_no_broker_answers() {
        use common::store::runs::RunLedger;

        use crate::scope::tests::{card, layout};

        let dir = tempfile::tempdir().unwrap();
        drop(RunLedger::announce(&layout(dir.path(), "gpt2"), &card("r", "gpt2", 5)).unwrap());
        let mut settings = Settings::default();
        settings.queue.amqp = common::settings::BrokerUrl::new("amqp://127.0.0.1:1");
        let wanted = |path| Wanted::new(None, None, path).unwrap();
        let mut session = Session::new(wanted(Some(dir.path())), &settings).unwrap();
        let report = session.look().await.unwrap();
        assert!(!report.broker.reachable && report.warnings[0].contains("from files alone"), "{report:?}");
        assert_eq!((report.runs[0].state, report.runs[0].todo), (State::Interrupted, Some(5)));
        assert!(Session::new(wanted(None), &settings).unwrap().look().await.is_err());
    }
}
