//! What takes the place of a job that failed: further tries, and dead letters.

use std::collections::BTreeSet;

use super::{
    Broker,
    message::{self, Envelope, Try},
    publisher::Message,
};
use crate::job::{Failure, FailureKind, Job};

/// A message as it was delivered.
#[derive(Debug)]
pub(super) struct Original {
    pub(super) envelope: Envelope,
    /// Leads home.
    pub(super) routing_key: String,
    pub(super) body: Vec<u8>,
}

/// The messages that take the place of a delivery whose prompts failed: those worth another try together, into the
/// wait that is due; each of the others alone, to the dead letters, so that it can be looked at and sent again alone.
pub(super) fn successors(broker: &Broker, original: &Original, failures: Vec<Failure>) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut send = |envelope: &Envelope, body: Vec<u8>, failure: &Failure| {
        let later = failure.kind == FailureKind::Retryable;
        let envelope = envelope.clone().tried(Try::now(failure));
        messages.push(Message::failed(broker, &envelope, &original.routing_key, body, later));
    };
    let whole = failures.iter().find(|failure| failure.hash.is_none());
    let job = match (whole, message::parse(&original.body)) {
        (None, Ok(job)) => job,
        (whole, _) => {
            if let Some(failure) = whole.or(failures.first()) {
                send(&original.envelope, original.body.clone(), failure);
            }
            return messages;
        }
    };
    let (later, never): (Vec<_>, Vec<_>) =
        failures.into_iter().partition(|failure| failure.kind == FailureKind::Retryable);
    let mut send_part = |failures: &[Failure]| {
        let part = only(&job, failures);
        let envelope = Envelope {
            attempts: original.envelope.attempts,
            history: original.envelope.history.clone(),
            ..Envelope::of(&part)
        };
        if let Some(failure) = failures.first() {
            // A part is smaller than the whole, unless a stranger wrote the whole: then it goes as it came.
            let body = message::body(&part).unwrap_or_else(|_| original.body.clone());
            send(&envelope, body, failure);
        }
    };
    let last_try = broker.names.retry_after(original.envelope.attempts + 1).is_none();
    if last_try {
        later.iter().for_each(|failure| send_part(std::slice::from_ref(failure)));
    } else if !later.is_empty() {
        send_part(&later);
    }
    never.iter().for_each(|failure| send_part(std::slice::from_ref(failure)));
    messages
}

/// The same job with the failed prompts alone.
fn only(job: &Job, failures: &[Failure]) -> Job {
    let failed: BTreeSet<_> = failures.iter().filter_map(|failure| failure.hash.as_ref()).collect();
    let prompts = job.prompts.iter().filter(|prompt| failed.contains(&prompt.hash)).cloned().collect();
    Job::new(
        job.run.clone(),
        job.model.clone(),
        job.shape,
        job.capture.clone(),
        job.save_path.clone(),
        job.force,
        prompts,
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{
        capture::Capture,
        job::{JobPrompt, ModelPin, ModelShape, RunId},
        prompt::{PromptHash, Record},
        settings::Queue,
    };

    const TEXTS: [&str; 3] = ["a", "b", "c"];

    fn original(attempts: u32) -> Original {
        let prompt = |text| JobPrompt { hash: PromptHash::of(text), record: Record::new(), ids: vec![1] };
        let job = Job::new(
            RunId("run".into()),
            ModelPin { name: "gpt2".into(), source: "gpt2".into(), commit: "0".into() },
            ModelShape { n_layers: 1, n_heads: 1 },
            Capture::default(),
            PathBuf::from("/data"),
            false,
            TEXTS.map(prompt).into(),
        );
        let envelope = Envelope { attempts, ..Envelope::of(&job) };
        Original { envelope, routing_key: "gpt2".into(), body: message::body(&job).unwrap() }
    }

    /// Where each successor goes, and how many prompts it holds.
    fn sent(original: &Original, failures: &[(&str, FailureKind)]) -> Vec<(String, usize)> {
        let failure = |&(text, kind): &(&str, FailureKind)| {
            let hash = (!text.is_empty()).then(|| PromptHash::of(text));
            Failure { hash, kind, reason: "why".into() }
        };
        let broker = Broker::new(&Queue::default()).unwrap();
        let messages = successors(&broker, original, failures.iter().map(failure).collect());
        let shown = |message: &Message| {
            let envelope = Envelope::read(&message.properties);
            assert_eq!((envelope.attempts, envelope.history.len()), (original.envelope.attempts + 1, 1));
            (message.exchange.clone(), message::parse(&message.body).map_or(0, |job| job.prompts.len()))
        };
        messages.iter().map(shown).collect()
    }

    #[test]
    fn what_may_pass_waits_together_and_what_will_not_is_told_apart() {
        use FailureKind::{Permanent, Retryable};
        let to = |exchange: &str, prompts| (format!("lenspool.{exchange}"), prompts);
        let mixed = [("a", Retryable), ("b", Permanent), ("c", Retryable)];
        assert_eq!(sent(&original(0), &mixed), [to("retry.30s", 2), to("dlx", 1)]);
        assert_eq!(sent(&original(1), &mixed[..1]), [to("retry.5m", 1)]);
        assert_eq!(sent(&original(3), &mixed), [to("dlx", 1), to("dlx", 1), to("dlx", 1)], "the last try");
        assert_eq!(sent(&original(0), &[("", Retryable)]), [to("retry.30s", 3)], "the job as a whole");
        let stranger = Original { body: b"no job".to_vec(), ..original(0) };
        assert_eq!(sent(&stranger, &[("", Permanent)]), [to("dlx", 0)], "it goes as it came");
    }
}
