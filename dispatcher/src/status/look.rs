//! What the broker says: queues, waits, dead letters.

use std::collections::{BTreeMap, HashMap, HashSet};

use common::{
    job::FailureKind,
    model::reference::ModelName,
    prompt::PromptHash,
    queue::rabbitmq::{BrokerError, DeadLetter, Observer, Verdict, Waiting, unacknowledged},
    settings::BrokerUrl,
};

use super::report::{Dead, DeadRow, QueueRow, RetryRow};
use crate::follow::Outside;

/// More dead letters than this are counted, not looked at: each has to be taken and given back.
const LOOKED_AT: u64 = 10_000;

/// What was seen at the broker.
#[derive(Debug, Default)]
pub struct Seen {
    /// A row a model.
    pub queues: Vec<QueueRow>,
    /// A row a wait.
    pub retry: Vec<RetryRow>,
    /// The dead letters.
    pub dead: DeadPrompts,
    /// What could not be seen.
    pub warnings: Vec<String>,
}

impl Seen {
    /// What the broker adds to the files of one model of a run.
    pub fn outside(&self, run: &str, model: &str) -> Outside {
        let queue = self.queues.iter().find(|queue| queue.model == model);
        let waiting = self.retry.iter().any(|retry| retry.waiting > 0);
        let outstanding = queue.and_then(|queue| match queue.unacked {
            _ if waiting || queue.ready > 0 => Some(true),
            Some(unacked) => Some(unacked > 0),
            // Over AMQP alone nobody knows what workers hold; where there are none, it is nothing.
            None if queue.consumers == 0 => Some(false),
            None => None,
        });
        let dead = self.dead.prompts.get(&(model.to_owned(), run.to_owned()));
        Outside { outstanding, dead: dead.cloned().unwrap_or_default() }
    }
}

/// The dead letters, summed and by their prompts.
#[derive(Clone, Debug, Default)]
pub struct DeadPrompts {
    /// The sums.
    pub report: Dead,
    /// Prompts by model and run.
    prompts: HashMap<(String, String), HashSet<PromptHash>>,
}

/// Asks the broker. `before` is what was seen of the dead letters the last time: they are looked at again only where
/// their number changed.
pub async fn look(
    observer: &Observer,
    models: &[ModelName],
    management: Option<&BrokerUrl>,
    before: Option<&DeadPrompts>,
) -> Result<Seen, BrokerError> {
    let mut seen = Seen::default();
    let names = &observer.broker().names;
    let unacked = match management {
        None => None,
        Some(url) => match unacknowledged(observer.broker(), url).await {
            Ok(unacked) => Some(unacked),
            Err(warning) => {
                seen.warnings.push(warning);
                None
            }
        },
    };
    for model in models {
        let queue = names.queue(model);
        let counts = observer.counts(&queue).await?;
        seen.queues.push(QueueRow {
            model: model.to_string(),
            exists: counts.is_some(),
            ready: counts.map_or(0, |counts| counts.ready),
            unacked: unacked.as_ref().and_then(|unacked| unacked.get(&queue).copied()),
            consumers: counts.map_or(0, |counts| counts.consumers),
            queue,
        });
    }
    let row =
        |Waiting { queue, delay, jobs }| RetryRow { queue, delay_seconds: delay.as_secs(), waiting: jobs };
    seen.retry = observer.waiting().await?.into_iter().map(row).collect();
    let total = observer.counts(&names.dead()).await?.map_or(0, |counts| counts.ready);
    seen.dead = match before {
        Some(before) if before.report.total == total && before.report.looked => before.clone(),
        _ if total > LOOKED_AT => {
            DeadPrompts { report: Dead { total, ..Dead::default() }, ..DeadPrompts::default() }
        }
        _ => {
            let mut sums = Sums::default();
            let judged = observer
                .judge_dead(|letter| {
                    sums.take(letter);
                    Verdict::Keep
                })
                .await?;
            // Those that somebody else looks at in this moment are not seen.
            sums.finish(total, judged.kept >= total)
        }
    };
    Ok(seen)
}

/// Dead letters being summed.
#[derive(Debug, Default)]
struct Sums {
    by: BTreeMap<(String, String), (u64, u64, Vec<FailureKind>)>,
    prompts: HashMap<(String, String), HashSet<PromptHash>>,
    seen: HashSet<String>,
}

impl Sums {
    fn take(&mut self, letter: &DeadLetter) {
        let job = letter.job().ok();
        let (model, run) = match &job {
            Some(job) => (job.model.name.clone(), job.run.0.clone()),
            None => (letter.envelope.model.clone(), letter.envelope.run.clone()),
        };
        // A letter may lie there twice.
        let id = &letter.envelope.id;
        if !id.is_empty() && !self.seen.insert(id.clone()) {
            return;
        }
        let (letters, prompts, kinds) = self.by.entry((model.clone(), run.clone())).or_default();
        *letters += 1;
        *prompts += job.as_ref().map_or(letter.envelope.prompts, |job| job.prompts.len() as u64);
        kinds.extend(letter.kind().filter(|kind| !kinds.contains(kind)));
        if let Some(job) = job {
            let hashes = job.prompts.into_iter().map(|prompt| prompt.hash);
            self.prompts.entry((model, run)).or_default().extend(hashes);
        }
    }

    fn finish(self, total: u64, looked: bool) -> DeadPrompts {
        let row = |((model, run), (letters, prompts, kinds))| DeadRow { model, run, letters, prompts, kinds };
        let by = self.by.into_iter().map(row).collect();
        DeadPrompts { report: Dead { total, looked, others: None, by }, prompts: self.prompts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead::letters::tests::letter;

    #[test]
    fn dead_letters_are_summed_by_model_and_run_each_once() {
        let mut sums = Sums::default();
        for (run, text) in [("r1", "a"), ("r1", "b"), ("r1", "b"), ("r2", "a")] {
            sums.take(&letter(run, "gpt2", text, "why"));
        }
        let mut strange = letter("", "", "x", "why");
        strange.body = b"{}".to_vec();
        strange.envelope.id = String::new();
        strange.envelope.model = String::new();
        strange.envelope.run = String::new();
        sums.take(&strange);
        let dead = sums.finish(5, true);
        let rows: Vec<_> =
            dead.report.by.iter().map(|row| (row.run.as_str(), row.letters, row.prompts)).collect();
        assert_eq!(rows, [("", 1, 1), ("r1", 2, 2), ("r2", 1, 1)]);
        let seen = Seen { dead, ..Seen::default() };
        assert_eq!(seen.outside("r1", "gpt2").dead.len(), 2);
        assert_eq!(seen.outside("r1", "other").dead.len(), 0);
        assert_eq!(seen.outside("r1", "gpt2").outstanding, None, "nobody asked that model's queue");
    }

    #[test]
    fn what_workers_may_hold_is_not_ruled_out() {
        let outstanding = |ready, unacked, consumers| {
            let (model, queue) = ("gpt2".to_owned(), "q".to_owned());
            let queue = QueueRow { model, queue, exists: true, ready, unacked, consumers };
            Seen { queues: vec![queue], ..Seen::default() }.outside("r", "gpt2").outstanding
        };
        assert_eq!(outstanding(1, None, 0), Some(true));
        assert_eq!(outstanding(0, Some(2), 0), Some(true));
        assert_eq!(outstanding(0, Some(0), 1), Some(false));
        assert_eq!(outstanding(0, None, 0), Some(false));
        assert_eq!(outstanding(0, None, 1), None);
    }
}
