//! `dispatcher dead`: what failed for good, and what becomes of it.
//!
//! A letter may lie there twice, as after a worker that lost its connection while it settled: it is shown once, and
//! whatever is done is done to both.
//!
//! `list --json` prints an array of `job`, `run`, `model`, `prompts`, `attempts`, `kind` (`retryable`, `permanent`,
//! `bug`; null where the broker gave it up), `host`, `at`, `reason`, `copies`; `show --json` adds `history` (`at`,
//! `host`, `kind`, `reason`), `save_path`, `contents` (`hash`, `tokens`, `text`), `unreadable`, `bytes`.

pub mod letters;
mod reasons;
mod text;

use std::collections::BTreeSet;

use common::{
    exit::Exit,
    queue::rabbitmq::{Broker, DeadLetter, Judged, Observer, Verdict},
    settings::Settings,
    talk::{counted, say},
};
use letters::{Distinct, Filter, Full, Letter, refusal};
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::{
    Error,
    cli::{Dead, DeadFilter},
};

/// Looks at dead letters, sends them again, or removes them.
pub fn run(command: &Dead, settings: &Settings, runtime: &Runtime) -> Result<Exit, Error> {
    let desk = Desk { settings, runtime };
    match command {
        Dead::List { which, json, .. } => {
            let letters = desk.look(which, |letter| Letter::of(letter, letter.job().ok().as_ref()))?;
            print(&letters, *json, || text::list(&letters))
        }
        Dead::Show { which, json, .. } => {
            let letters = desk.look(which, Full::of)?;
            let shown = || match letters[..] {
                [] => text::list(&[]),
                _ => letters.iter().map(text::full).collect::<Vec<_>>().join("\n"),
            };
            print(&letters, *json, shown)
        }
        Dead::Requeue { which, .. } => desk.requeue(which),
        Dead::Purge { which, all, .. } => desk.purge(which, *all),
    }
}

fn print(data: &impl Serialize, json: bool, text: impl FnOnce() -> String) -> Result<Exit, Error> {
    if json {
        say(format_args!("{}\n", serde_json::to_string_pretty(data).expect("letters are plain data")));
    } else {
        say(text());
    }
    Ok(Exit::Done)
}

/// Where dead letters are judged.
struct Desk<'a> {
    settings: &'a Settings,
    runtime: &'a Runtime,
}

/// A letter as it is kept for showing.
trait Copied {
    fn copied(&mut self);
}

impl Copied for Letter {
    fn copied(&mut self) {
        self.copies += 1;
    }
}

impl Copied for Full {
    fn copied(&mut self) {
        self.letter.copied();
    }
}

impl Desk<'_> {
    fn look<T: Copied>(&self, which: &DeadFilter, read: impl Fn(&DeadLetter) -> T) -> Result<Vec<T>, Error> {
        let mut seen = Distinct::<T>::default();
        self.judge(which, |dead, letter| {
            match seen.before(&letter.job) {
                Some(before) => before.copied(),
                None => seen.push(&letter.job, read(dead)),
            }
            Verdict::Keep
        })?;
        Ok(seen.letters)
    }

    fn requeue(&self, which: &DeadFilter) -> Result<Exit, Error> {
        let (mut jobs, mut prompts, mut refused) = (BTreeSet::new(), 0, 0);
        let judged = self.judge(which, |dead, letter| {
            if let Some(reason) = refusal(dead) {
                let name = if letter.job.is_empty() { "without an id" } else { &letter.job };
                tracing::warn!("the letter {name} stays dead: {reason}");
                refused += 1;
                return Verdict::Keep;
            }
            if jobs.insert(letter.job.clone()) {
                prompts += letter.prompts;
            }
            Verdict::Requeue
        })?;
        let mut told =
            format!("{} of {} sent again", counted(jobs.len() as u64, "job"), counted(prompts, "prompt"));
        told.push_str(&copies(judged.requeued, jobs.len()));
        if refused > 0 {
            told.push_str(&format!("; {} cannot be and stay dead", counted(refused as u64, "letter")));
        }
        say(format_args!("{told}\n"));
        Ok(if refused > 0 { Exit::SomeFailed } else { Exit::Done })
    }

    fn purge(&self, which: &DeadFilter, all: bool) -> Result<Exit, Error> {
        if Filter::new(which)?.is_empty() && !all {
            return Err(Error::Request(
                "purge removes for good: say which with --run, --model, --reason or --job, or --all for all of them"
                    .to_owned(),
            ));
        }
        let (mut jobs, mut strangers) = (BTreeSet::new(), 0);
        let judged = self.judge(which, |_, letter| {
            if letter.job.is_empty() {
                strangers += 1;
            } else {
                jobs.insert(letter.job.clone());
            }
            Verdict::Remove
        })?;
        let distinct = jobs.len() + strangers;
        let letters = counted(distinct as u64, "dead letter");
        say(format_args!("{letters} removed{}\n", copies(judged.removed, distinct)));
        Ok(Exit::Done)
    }

    /// Shows the letters that are meant to `judge`.
    fn judge(
        &self,
        which: &DeadFilter,
        mut judge: impl FnMut(&DeadLetter, &Letter) -> Verdict,
    ) -> Result<Judged, Error> {
        let filter = Filter::new(which)?;
        let broker = Broker::new(&self.settings.queue)?;
        self.runtime.block_on(async {
            let observer = Observer::connect(&broker).await?;
            let judged = observer
                .judge_dead(|dead| {
                    let letter = Letter::of(dead, dead.job().ok().as_ref());
                    if filter.takes(&letter) { judge(dead, &letter) } else { Verdict::Keep }
                })
                .await?;
            observer.close().await;
            Ok(judged)
        })
    }
}

/// What to say where letters lay there more than once.
fn copies(messages: u64, distinct: usize) -> String {
    let more = messages.saturating_sub(distinct as u64);
    match more {
        0 => String::new(),
        1 => " (with a further copy)".to_owned(),
        more => format!(" (with {more} further copies)"),
    }
}
