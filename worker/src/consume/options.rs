//! The settings of a worker that takes jobs from a broker, read once.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use common::{
    model::{
        hub::HubOptions,
        reference::{ModelRef, ModelRefError},
    },
    plan::memory::default_batch_memory,
    queue::rabbitmq::{Broker, BrokerError, ConsumeOptions, Leave, Wanted},
    settings::Settings,
};

use crate::run::{ComputeOptions, OptionsError};

/// How long queues must be empty where `--exit-when-empty` is given without `--max-idle`.
const EMPTY_FOR: Duration = Duration::from_secs(10);
/// What is left of a Slurm job's time for the end itself, besides the grace.
const MARGIN: Duration = Duration::from_secs(30);
/// When a Slurm job ends, in seconds since 1970.
const SLURM_END: &str = "SLURM_JOB_END_TIME";

/// How a worker takes jobs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The broker.
    pub broker: Broker,
    /// From which queues, how many, until when.
    pub consume: ConsumeOptions,
    /// Data directories that may be written to; empty: wherever a run was announced.
    pub allow_save_path: Vec<PathBuf>,
    /// How long work in hand may go on after the first signal.
    pub grace: Duration,
    /// How long to take jobs at most.
    pub max_runtime: Option<Duration>,
    /// Where models come from.
    pub hub: HubOptions,
    /// Bytes of patterns of one forward pass.
    pub batch_bytes: usize,
    /// How it computes.
    pub compute: ComputeOptions,
}

/// A setting whose value means nothing.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConsumeOptionsError {
    #[error(transparent)]
    Compute(#[from] OptionsError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Model(#[from] ModelRefError),
}

impl Options {
    /// Reads the settings. `slurm_end` is what [`slurm_end`] found.
    pub fn parse(settings: &Settings, slurm_end: Option<Duration>) -> Result<Options, ConsumeOptionsError> {
        let Settings { run, hub, queue, consume, .. } = settings;
        let names = run.model.iter().map(|name| Ok(ModelRef::parse(name, hub.revision.as_deref())?.name));
        let names = names.collect::<Result<Vec<_>, ConsumeOptionsError>>()?;
        let idle = match (consume.max_idle, consume.exit_when_empty) {
            (Some(idle), _) => Some(idle.0),
            (None, true) => Some(EMPTY_FOR),
            (None, false) => None,
        };
        let grace = consume.grace.0;
        let in_time = slurm_end.map(|left| left.saturating_sub(grace + MARGIN));
        let batch_bytes =
            run.batch_memory.map_or_else(|| default_batch_memory().batch_bytes, |memory| memory.0);
        Ok(Options {
            broker: Broker::new(queue)?,
            consume: ConsumeOptions {
                wanted: if names.is_empty() { Wanted::All } else { Wanted::Models(names) },
                prefetch: consume.prefetch.get(),
                leave: Leave { idle, retries: consume.wait_for_retries.map(|span| span.0) },
            },
            allow_save_path: consume.allow_save_path.clone(),
            grace,
            max_runtime: consume.max_runtime.map(|span| span.0).or(in_time),
            hub: hub.options(),
            batch_bytes: usize::try_from(batch_bytes).unwrap_or(usize::MAX),
            compute: ComputeOptions::parse(settings)?,
        })
    }
}

/// How much of a Slurm job's time is left, where this is one.
pub fn slurm_end() -> Option<Duration> {
    let end = std::env::var(SLURM_END).ok()?.trim().parse().ok()?;
    let end = UNIX_EPOCH.checked_add(Duration::from_secs(end))?;
    Some(end.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use common::settings::Span;

    use super::*;

    fn parsed(change: impl FnOnce(&mut Settings), slurm_end: Option<Duration>) -> Options {
        let mut settings = Settings::default();
        change(&mut settings);
        Options::parse(&settings, slurm_end).unwrap()
    }

    #[test]
    fn when_to_leave_follows_from_what_is_set() {
        assert_eq!(parsed(|_| {}, None).consume.leave.idle, None);
        let empty = parsed(|s| s.consume.exit_when_empty = true, None);
        assert_eq!(empty.consume.leave.idle, Some(EMPTY_FOR));
        let idle = |s: &mut Settings| {
            s.consume.exit_when_empty = true;
            s.consume.max_idle = Some(Span::seconds(300));
        };
        assert_eq!(parsed(idle, None).consume.leave.idle, Some(Duration::from_secs(300)));
    }

    #[test]
    fn a_slurm_jobs_end_leaves_time_to_finish_unless_a_time_is_set() {
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(parsed(|_| {}, None).max_runtime, None);
        assert_eq!(parsed(|_| {}, hour).max_runtime, Some(Duration::from_secs(3600 - 120 - 30)));
        assert_eq!(parsed(|_| {}, Some(Duration::from_secs(5))).max_runtime, Some(Duration::ZERO));
        let set = parsed(|s| s.consume.max_runtime = Some(Span::seconds(60)), hour);
        assert_eq!(set.max_runtime, Some(Duration::from_secs(60)));
    }

    #[test]
    fn models_are_taken_by_name_and_without_any_all_are() {
        assert_eq!(parsed(|_| {}, None).consume.wanted, Wanted::All);
        let two = parsed(|s| s.run.model = vec!["gpt2".into(), "EleutherAI/pythia-70m".into()], None);
        let Wanted::Models(names) = two.consume.wanted else { panic!("all") };
        assert_eq!(names.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["gpt2", "pythia-70m"]);
    }
}
