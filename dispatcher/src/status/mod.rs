//! `dispatcher status`: queues, workers and failures from the broker, progress from the journals in the data
//! directories.
//!
//! `--json` prints one object. Its fields are stable; further ones may come.
//!
//! | field | what |
//! |---|---|
//! | `namespace`, `at` | where and when was looked |
//! | `broker` | `url`, `reachable`, `error` |
//! | `queues[]` | a model's queue: `model`, `queue`, `exists`, `ready`, `unacked` (null unless queue.management is set), `consumers` |
//! | `retry[]` | jobs that wait for another try: `queue`, `delay_seconds`, `waiting` |
//! | `dead` | `total` messages; `looked`: whether each was looked at (not where there are very many, or somebody else looks at them); `by[]`, of what was asked for: `model`, `run`, `letters`, `prompts`, `kinds`, a letter that lies there twice counted once; `others`: letters of other models and runs, null where not each was looked at |
//! | `runs[]` | a model of a run, oldest first: `run`, `model`, `save_path`, `enqueued_at`, `state` (`publishing`, `interrupted`, `running`, `done`, `cancelled`, `unknown`), in prompts `todo`, `published`, `committed`, `failed`, `pending`, further `jobs` published, `bytes` of arrays written, `prompts_per_second` (`recent`: of the last two minutes, `overall`; null where nothing moves), `eta_seconds` (null where unknown), `note` |
//! | `older_runs` | runs that are over and were left out; `--run` shows one |
//! | `warnings[]` | what could not be seen |
//!
//! Numbers of a run are null where its data directory cannot be seen from this machine.

mod look;
mod report;
mod session;
mod text;

use common::{exit::Exit, settings::Settings, talk::say};
pub use report::{Report, RunRow};
pub use session::Session;
pub use text::{line, text};
use tokio::runtime::Runtime;

use crate::{Error, cli::StatusArgs, scope::Wanted};

/// Prints how far things are.
pub fn run(args: &StatusArgs, settings: &Settings, runtime: &Runtime) -> Result<Exit, Error> {
    let mut session = Session::new(Wanted::of(&args.scope)?, settings)?;
    let report = runtime.block_on(session.look())?;
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    if args.json {
        say(format_args!("{}\n", serde_json::to_string_pretty(&report).expect("a report is plain data")));
    } else {
        say(text(&report));
    }
    runtime.block_on(session.close());
    Ok(Exit::Done)
}

#[cfg(test)]
pub mod tests {
    use jiff::Timestamp;

    use super::report::{BrokerRow, Dead, DeadRow, QueueRow, Rates, Report, RetryRow, RunRow};
    use crate::follow::State;

    /// A row in the middle of a run.
    pub fn row(run: &str, state: State) -> RunRow {
        RunRow {
            run: run.to_owned(),
            model: "gpt2".to_owned(),
            save_path: "/data".to_owned(),
            enqueued_at: Timestamp::UNIX_EPOCH,
            state,
            todo: Some(100),
            published: Some(100),
            committed: Some(40),
            failed: Some(2),
            pending: Some(58),
            jobs: Some(4),
            bytes: Some(9),
            prompts_per_second: Rates { recent: Some(2.0), overall: Some(12.3) },
            eta_seconds: Some(4000),
            note: None,
        }
    }

    /// A report of a broker with one of everything.
    pub fn report(runs: Vec<RunRow>) -> Report {
        let queue = QueueRow {
            model: "gpt2".to_owned(),
            queue: "lenspool.jobs.gpt2".to_owned(),
            exists: true,
            ready: 12,
            unacked: None,
            consumers: 3,
        };
        let kinds = Vec::new();
        let (model, run) = ("gpt2".to_owned(), "r".to_owned());
        Report {
            namespace: "lenspool".to_owned(),
            at: Timestamp::UNIX_EPOCH,
            broker: BrokerRow { url: "amqp://h/".to_owned(), reachable: true, error: None },
            queues: vec![queue],
            retry: vec![RetryRow { queue: "q".to_owned(), delay_seconds: 30, waiting: 2 }],
            dead: Dead {
                total: 1,
                looked: true,
                others: Some(0),
                by: vec![DeadRow { model, run, letters: 1, prompts: 1, kinds }],
            },
            runs,
            older_runs: 0,
            warnings: Vec::new(),
        }
    }
}
