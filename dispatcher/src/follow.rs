//! How far one model of a run is, from the files in its data directory, read as they grow.

use std::{
    collections::{HashMap, HashSet},
    fs,
    time::Duration,
};

use common::{
    job::FailureKind,
    prompt::PromptHash,
    store::{
        Event, Failed, JournalReader, Progress, StoreError,
        runs::{self, RunRecord},
    },
};
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    pace::{Pace, eta},
    publish::REPAIR,
    scope::Part,
};

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// `dispatcher enqueue` is at it, or was on another machine.
    Publishing,
    /// Publishing stopped before the end; the same `dispatcher enqueue` goes on.
    Interrupted,
    /// Everything is published, not everything is over.
    Running,
    /// Every prompt is committed or has failed for good.
    Done,
    /// It was called off.
    Cancelled,
    /// Its data directory cannot be seen from here.
    Unknown,
}

impl State {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            State::Publishing => "publishing",
            State::Interrupted => "interrupted",
            State::Running => "running",
            State::Done => "done",
            State::Cancelled => "cancelled",
            State::Unknown => "unknown",
        }
    }
}

/// What the broker adds to the files.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    /// Whether a queue, or a worker, holds something that may be this run's; none where there is no telling.
    pub outstanding: Option<bool>,
    /// The prompts of the run's dead letters.
    pub dead: HashSet<PromptHash>,
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Where it stands.
    pub state: State,
    /// Prompts to compute.
    pub todo: usize,
    /// Prompts in jobs that the broker confirmed.
    pub published: usize,
    /// Prompts committed.
    pub committed: usize,
    /// Prompts that failed and were not committed since.
    pub failed: usize,
    /// Prompts that are neither, or may be tried again.
    pub pending: usize,
    /// Bytes of arrays written.
    pub bytes: u64,
    /// Prompts a second in the last minutes.
    pub recent: Option<f64>,
    /// Prompts a second since the first.
    pub overall: Option<f64>,
    /// How long the rest takes at the recent rate.
    pub eta: Option<Duration>,
}

/// Reads the ledger and the journals of one model of a run.
#[derive(Debug)]
pub struct Follower {
    /// Which.
    pub part: Part,
    reader: JournalReader,
    progress: Progress,
    pace: Pace,
    record: Option<RunRecord>,
    /// The length of the ledger that was read.
    ledger: u64,
}

impl Follower {
    /// Nothing is read yet.
    pub fn new(part: Part) -> Follower {
        let reader = JournalReader::new(&part.layout, Some(&part.run));
        Follower {
            part,
            reader,
            progress: Progress::default(),
            pace: Pace::default(),
            record: None,
            ledger: 0,
        }
    }

    /// Reads what is new. None where the run's files cannot be seen from here.
    pub fn poll(&mut self, outside: &Outside, now: Timestamp) -> Result<Option<Figures>, StoreError> {
        self.read_ledger()?;
        let Some(record) = &self.record else { return Ok(None) };
        let (progress, pace) = (&mut self.progress, &mut self.pace);
        self.reader.poll(|_, line| {
            let (at, counts) =
                (line.at, matches!(line.event, Event::Committed { .. } | Event::Cached { .. }));
            let before = progress.committed();
            progress.take(line);
            pace.note(at, if counts { progress.committed() - before } else { 0 });
        })?;
        let committed = self.progress.committed();
        let failures =
            self.progress.failed().filter_map(|failed| Some((failed.failure.hash.as_ref()?, failed)));
        let failed: HashMap<&PromptHash, &Failed> = failures.collect();
        let dead_only = outside
            .dead
            .iter()
            .filter(|hash| !self.progress.is_committed(hash) && !failed.contains_key(hash));
        let dead_only = dead_only.count();
        // A failure that may pass is over once nothing is left that could try it again.
        let may_be_tried = |(hash, failed): &(&&PromptHash, &&Failed)| {
            let is_left = match outside.outstanding {
                Some(outstanding) => outstanding,
                // Then its worker knew whether there was a try left.
                None => !failed.last,
            };
            failed.failure.kind == FailureKind::Retryable && is_left && !outside.dead.contains(**hash)
        };
        let waiting = failed.iter().filter(may_be_tried).count();
        let failed = failed.len() + dead_only;
        let todo = if record.complete { record.published } else { record.card.todo.max(record.published) };
        let pending = todo.saturating_sub(committed + failed - waiting);
        let state = state(record, pending);
        let moves = matches!(state, State::Running | State::Publishing | State::Interrupted);
        let recent = self.pace.recent(now).filter(|_| moves);
        Ok(Some(Figures {
            state,
            todo,
            published: record.published,
            committed,
            failed,
            pending,
            bytes: self.progress.bytes,
            recent,
            overall: self.pace.overall(),
            eta: eta(pending, recent).filter(|_| state == State::Running),
        }))
    }

    /// Reads the ledger again where it grew.
    fn read_ledger(&mut self) -> Result<(), StoreError> {
        let (layout, run) = (&self.part.layout, &self.part.run);
        let length = fs::metadata(layout.run(run)).map_or(0, |meta| meta.len());
        if self.record.is_none() || length != self.ledger {
            self.record = runs::read_run(layout, run)?;
            self.ledger = length;
        } else if let Some(record) = &mut self.record {
            record.cancelled = runs::is_cancelled(layout, run)?;
        }
        Ok(())
    }

    /// The command that goes on with it, where publishing was interrupted.
    pub fn goes_on(&self) -> &'static str {
        match &self.record {
            Some(record) if record.card.request.starts_with(REPAIR) => "`dispatcher verify --repair`",
            _ => "the same `dispatcher enqueue`",
        }
    }

    /// Jobs that were published.
    pub fn jobs(&self) -> usize {
        self.record.as_ref().map_or(0, |record| record.jobs)
    }
}

fn state(record: &RunRecord, pending: usize) -> State {
    match (record.cancelled, record.complete, record.is_being_published()) {
        (true, ..) => State::Cancelled,
        (_, true, _) if pending == 0 => State::Done,
        (_, true, _) => State::Running,
        (_, false, Some(false)) => State::Interrupted,
        (_, false, _) => State::Publishing,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use common::{
        job::{Failure, JobId},
        store::{Journal, Store, WriterId, runs::RunLedger},
    };

    use super::*;
    use crate::scope::tests::{card, layout};

    struct Story {
        ledger: Option<RunLedger>,
        journal: Journal,
        follower: Follower,
    }

    impl Story {
        fn new(dir: &Path, todo: usize) -> Story {
            let (layout, mut card) = (layout(dir, "m"), card("r", "m", todo));
            card.writer = WriterId::this_process(&card.run).to_string();
            let ledger = Some(RunLedger::announce(&layout, &card).unwrap());
            let journal = Journal::new(&Store::new(dir, &card.run), &layout, &card.run);
            let part = Part { run: card.run, layout, at: card.at, entry: None };
            Story { ledger, journal, follower: Follower::new(part) }
        }

        fn publish(&mut self, hashes: &[PromptHash]) {
            let job = JobId(hashes[0].to_string());
            self.ledger.as_mut().unwrap().published(&job, hashes.to_vec()).unwrap();
        }

        fn commit(&self, hash: &PromptHash) {
            self.journal.note(Event::Committed { hash: hash.clone(), bytes: 10 }).unwrap();
        }

        fn fail(&self, hash: &PromptHash, kind: FailureKind, last: bool) {
            let failure = Failure { hash: Some(hash.clone()), kind, reason: "why".to_owned() };
            self.journal.note(Event::Failed { job: JobId("j".to_owned()), failure, last }).unwrap();
        }

        fn poll(&mut self, outside: &Outside) -> Figures {
            self.follower.poll(outside, Timestamp::now()).unwrap().unwrap()
        }
    }

    fn empty() -> Outside {
        Outside { outstanding: Some(false), ..Outside::default() }
    }

    #[test]
    fn a_run_from_its_announcement_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut story = Story::new(dir.path(), 3);
        let [a, b, c] = ["a", "b", "c"].map(PromptHash::of);
        let figures = story.poll(&empty());
        assert_eq!((figures.state, figures.todo, figures.pending), (State::Publishing, 3, 3));
        assert_eq!((figures.recent, figures.overall, figures.eta), (None, None, None));
        story.publish(&[a.clone(), b.clone()]);
        story.publish(std::slice::from_ref(&c));
        story.ledger.take().unwrap().complete().unwrap();
        story.commit(&a);
        story.commit(&a);
        let figures = story.poll(&empty());
        assert_eq!((figures.state, figures.committed, figures.pending), (State::Running, 1, 2));
        assert!(figures.recent.is_some() && figures.eta.is_some());
        story.commit(&b);
        story.fail(&c, FailureKind::Permanent, false);
        let figures = story.poll(&empty());
        assert_eq!((figures.state, figures.committed, figures.failed), (State::Done, 2, 1));
        assert_eq!(figures.eta, None);
    }

    #[test]
    fn a_failure_that_may_pass_is_over_once_nothing_is_left_to_try() {
        let dir = tempfile::tempdir().unwrap();
        let mut story = Story::new(dir.path(), 1);
        let a = PromptHash::of("a");
        story.publish(std::slice::from_ref(&a));
        story.ledger.take().unwrap().complete().unwrap();
        story.fail(&a, FailureKind::Retryable, false);
        for (outstanding, state) in
            [(Some(true), State::Running), (None, State::Running), (Some(false), State::Done)]
        {
            let figures = story.poll(&Outside { outstanding, ..Outside::default() });
            assert_eq!((figures.state, figures.failed), (state, 1));
        }
        let dead = Outside { outstanding: Some(true), dead: [a.clone()].into() };
        assert_eq!(story.poll(&dead).state, State::Done);
        // Once the last try failed, nobody has to be asked.
        story.fail(&a, FailureKind::Retryable, true);
        for (outstanding, state) in [(Some(true), State::Running), (None, State::Done)] {
            assert_eq!(story.poll(&Outside { outstanding, ..Outside::default() }).state, state);
        }
    }

    #[test]
    fn what_the_broker_alone_gave_up_counts_as_failed() {
        let dir = tempfile::tempdir().unwrap();
        let mut story = Story::new(dir.path(), 1);
        let a = PromptHash::of("a");
        story.publish(std::slice::from_ref(&a));
        story.ledger.take().unwrap().complete().unwrap();
        assert_eq!(story.poll(&empty()).state, State::Running);
        let figures = story.poll(&Outside { outstanding: Some(false), dead: [a].into() });
        assert_eq!((figures.state, figures.failed), (State::Done, 1));
    }

    #[test]
    fn cancelled_or_unseen() {
        let dir = tempfile::tempdir().unwrap();
        let mut story = Story::new(dir.path(), 1);
        assert_eq!(story.poll(&empty()).state, State::Publishing);
        runs::cancel_run(&story.follower.part.layout, &story.follower.part.run).unwrap();
        assert_eq!(story.poll(&empty()).state, State::Cancelled);
        let mut part = story.follower.part.clone();
        part.layout = layout(Path::new("/nowhere"), "m");
        assert_eq!(Follower::new(part).poll(&empty(), Timestamp::now()).unwrap(), None);
    }
}
