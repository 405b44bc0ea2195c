//! A job as a message: the body is the job in JSON; headers carry what changes from try to try, so that a body is
//! never rewritten, and what an operator wants to see without reading bodies.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde::{Deserialize, Serialize};

use super::error::BrokerError;
use crate::job::{Failure, FailureKind, JOB_VERSION, Job};

/// Bytes a message is planned to stay under: what brokers move well.
pub const MESSAGE_BYTES: usize = 1 << 20;
/// Bytes over which no message is sent. A broker takes 16 MiB from 4.0 on; half of it leaves room for headers.
pub const MESSAGE_LIMIT: usize = 8 << 20;
/// More layers, or heads of a layer, than any model has: what a message says is not believed beyond it.
const MOST_LAYERS_OR_HEADS: usize = 4096;
/// Failures a message carries along; the first and the last ones are kept.
const HISTORY_KEPT: usize = 10;
/// Bytes of a reason that a header carries.
const REASON_BYTES: usize = 2000;

const JSON: &str = "application/json";
const JOB_TYPE: &str = "lenspool.job";
/// Persistent: written to disk before it is confirmed.
const PERSISTENT: u8 = 2;

mod header {
    pub const VERSION: &str = "lenspool-version";
    pub const RUN: &str = "lenspool-run";
    pub const MODEL: &str = "lenspool-model";
    pub const PROMPTS: &str = "lenspool-prompts";
    pub const ATTEMPTS: &str = "lenspool-attempts";
    pub const HISTORY: &str = "lenspool-history";
    /// The broker's own, on what it dead-lettered.
    pub const X_DEATH: &str = "x-death";
}

/// One failed try of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Try {
    /// When, by the worker's clock.
    pub at: Timestamp,
    /// On which host.
    pub host: String,
    /// Which kind of failure.
    pub kind: FailureKind,
    /// What was attempted, and what to do.
    pub reason: String,
}

impl Try {
    /// A failure that happened here and now.
    pub fn now(failure: &Failure) -> Try {
        Try {
            at: Timestamp::now(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            kind: failure.kind,
            reason: shortened(&failure.reason),
        }
    }
}

fn shortened(text: &str) -> String {
    if text.len() <= REASON_BYTES {
        return text.to_owned();
    }
    let end = (0..=REASON_BYTES).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    format!("{}...", &text[..end])
}

/// What a message says outside its body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The job's id.
    pub id: String,
    /// Its run.
    pub run: String,
    /// Its model's name.
    pub model: String,
    /// How many prompts it holds.
    pub prompts: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// How those tries ended.
    pub history: Vec<Try>,
    /// Why the broker itself dead-lettered it, where it did: `delivery_limit`, `rejected`, ...
    pub broker_reason: Option<String>,
}

impl Envelope {
    /// The envelope of a job that was not tried yet.
    pub fn of(job: &Job) -> Envelope {
        Envelope {
            id: job.id.0.clone(),
            run: job.run.0.clone(),
            model: job.model.name.clone(),
            prompts: job.prompts.len() as u64,
            ..Envelope::default()
        }
    }

    /// The same after a further failed try.
    pub fn tried(mut self, failed: Try) -> Envelope {
        self.attempts += 1;
        if self.history.len() >= HISTORY_KEPT {
            self.history.remove(1);
        }
        self.history.push(failed);
        self.broker_reason = None;
        self
    }

    /// The same as if it had never been tried.
    pub fn anew(self) -> Envelope {
        Envelope { attempts: 0, history: Vec::new(), broker_reason: None, ..self }
    }

    /// Reads a message's properties. What is missing or of another type stays at its default: a stranger's
    /// message is shown as far as it goes.
    pub fn read(properties: &BasicProperties) -> Envelope {
        let empty = FieldTable::default();
        let headers = properties.headers().as_ref().unwrap_or(&empty).inner();
        let text = |key: &str| headers.get(key).and_then(text_of).unwrap_or_default();
        let number = |key: &str| headers.get(key).and_then(number_of).and_then(|n| u64::try_from(n).ok());
        Envelope {
            id: properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default(),
            run: text(header::RUN),
            model: text(header::MODEL),
            prompts: number(header::PROMPTS).unwrap_or(0),
            attempts: number(header::ATTEMPTS).and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            history: serde_json::from_str(&text(header::HISTORY)).unwrap_or_default(),
            broker_reason: headers.get(header::X_DEATH).and_then(death_reason),
        }
    }

    /// The properties to send it with.
    pub fn properties(&self) -> BasicProperties {
        let mut headers = FieldTable::default();
        let mut put = |key: &str, value: AMQPValue| {
            headers.insert(key.into(), value);
        };
        put(header::VERSION, AMQPValue::LongLongInt(JOB_VERSION.into()));
        put(header::RUN, AMQPValue::LongString(self.run.as_str().into()));
        put(header::MODEL, AMQPValue::LongString(self.model.as_str().into()));
        put(header::PROMPTS, AMQPValue::LongLongInt(i64::try_from(self.prompts).unwrap_or(i64::MAX)));
        put(header::ATTEMPTS, AMQPValue::LongLongInt(self.attempts.into()));
        if !self.history.is_empty() {
            let history = serde_json::to_string(&self.history).expect("a history is plain data");
            put(header::HISTORY, AMQPValue::LongString(history.into()));
        }
        let now = u64::try_from(Timestamp::now().as_second()).unwrap_or(0);
        let mut properties = BasicProperties::default()
            .with_content_type(JSON.into())
            .with_type(JOB_TYPE.into())
            .with_delivery_mode(PERSISTENT)
            .with_timestamp(now)
            .with_headers(headers);
        // A stranger's id may be longer than AMQP takes; ours never is.
        if let Ok(id) = lapin::types::ShortString::try_new(self.id.as_str()) {
            properties = properties.with_message_id(id);
        }
        properties
    }

    /// Why it is where it is, in a sentence.
    pub fn reason(&self) -> String {
        match (self.history.last(), self.broker_reason.as_deref()) {
            (_, Some("delivery_limit")) => {
                "it was delivered again and again and never settled: whoever took it \
                 died or was told to leave"
                    .to_owned()
            }
            (_, Some(reason)) => format!("the broker dead-lettered it ({reason})"),
            (Some(last), None) => last.reason.clone(),
            (None, None) => "no reason was given".to_owned(),
        }
    }
}

fn text_of(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

fn number_of(value: &AMQPValue) -> Option<i64> {
    Some(match *value {
        AMQPValue::ShortShortInt(n) => n.into(),
        AMQPValue::ShortShortUInt(n) => n.into(),
        AMQPValue::ShortInt(n) => n.into(),
        AMQPValue::ShortUInt(n) => n.into(),
        AMQPValue::LongInt(n) => n.into(),
        AMQPValue::LongUInt(n) => n.into(),
        AMQPValue::LongLongInt(n) => n,
        AMQPValue::Timestamp(n) => i64::try_from(n).ok()?,
        _ => return None,
    })
}

/// The reason of the newest entry of `x-death` that is a death: a wait that ended (`expired`) is none.
fn death_reason(value: &AMQPValue) -> Option<String> {
    let AMQPValue::FieldArray(deaths) = value else { return None };
    deaths.as_slice().iter().find_map(|death| {
        let AMQPValue::FieldTable(death) = death else { return None };
        death.inner().get("reason").and_then(text_of).filter(|reason| reason != "expired")
    })
}

/// The body of a job.
pub fn body(job: &Job) -> Result<Vec<u8>, BrokerError> {
    let body = serde_json::to_vec(job).expect("a job is plain data");
    if body.len() > MESSAGE_LIMIT {
        let (job, bytes) = (job.id.0.clone(), body.len());
        return Err(BrokerError::TooLarge { job, bytes, limit: MESSAGE_LIMIT });
    }
    Ok(body)
}

/// Reads a body. The failure says whether it is worth waiting for a newer worker.
pub fn parse(body: &[u8]) -> Result<Job, Failure> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let permanent = |reason: String| Failure { hash: None, kind: FailureKind::Permanent, reason };
    let Version { version } = serde_json::from_slice(body)
        .map_err(|error| permanent(format!("the message is no job of lenspool: {error}")))?;
    if version > JOB_VERSION {
        let reason = format!(
            "the job is of version {version}, and this worker (lenspool {}) reads up to {JOB_VERSION}: start \
             workers of the version that enqueued it",
            env!("CARGO_PKG_VERSION")
        );
        return Err(Failure { hash: None, kind: FailureKind::Retryable, reason });
    }
    let job: Job = serde_json::from_slice(body)
        .map_err(|error| permanent(format!("the message is no job of version {version}: {error}")))?;
    check(&job).map_err(permanent)?;
    Ok(job)
}

/// What a message could say that its types allow and lenspool never does.
fn check(job: &Job) -> Result<(), String> {
    if job.prompts.is_empty() {
        return Err("the job holds no prompts".to_owned());
    }
    let possible = 1..=MOST_LAYERS_OR_HEADS;
    if !possible.contains(&job.shape.n_layers) || !possible.contains(&job.shape.n_heads) {
        return Err(format!(
            "a model of {} layers of {} heads cannot be: no layers, no heads or far too many",
            job.shape.n_layers, job.shape.n_heads
        ));
    }
    if job.capture.layers.indices(job.shape.n_layers).is_empty() {
        return Err(format!("the job wants none of the {} layers of its model", job.shape.n_layers));
    }
    if !job.save_path.is_absolute() {
        return Err(format!("the job's save path {} is not absolute", job.save_path.display()));
    }
    let mut seen = BTreeMap::new();
    for (at, prompt) in job.prompts.iter().enumerate() {
        if prompt.ids.is_empty() {
            return Err(format!("prompt {} of the job has no tokens", prompt.hash));
        }
        if let Some(before) = seen.insert(&prompt.hash, at) {
            return Err(format!("prompts {before} and {at} of the job are both {}", prompt.hash));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{
        capture::Capture,
        job::{JobPrompt, ModelPin, ModelShape, RunId},
        prompt::{PromptHash, Record},
    };

    fn job() -> Job {
        let model = ModelPin { name: "gpt2".into(), source: "gpt2".into(), commit: "0".into() };
        let prompt =
            |text: &str| JobPrompt { hash: PromptHash::of(text), record: Record::new(), ids: vec![1, 2] };
        Job::new(
            RunId("run".into()),
            model,
            ModelShape { n_layers: 2, n_heads: 2 },
            Capture::default(),
            PathBuf::from("/data"),
            false,
            vec![prompt("a"), prompt("b")],
        )
    }

    fn failure(reason: &str) -> Failure {
        Failure { hash: None, kind: FailureKind::Retryable, reason: reason.to_owned() }
    }

    #[test]
    fn an_envelope_survives_the_journey_and_counts_tries() {
        let first = Envelope::of(&job());
        assert_eq!(Envelope::read(&first.properties()), first);
        let mut envelope = first.clone();
        for i in 0..40 {
            envelope = envelope.tried(Try::now(&failure(&format!("try {i}"))));
        }
        let read = Envelope::read(&envelope.properties());
        assert_eq!((read.attempts, read.history.len()), (40, HISTORY_KEPT));
        assert_eq!(read, envelope);
        assert_eq!((read.history[0].reason.as_str(), read.reason().as_str()), ("try 0", "try 39"));
        assert_eq!(read.anew(), first);
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let cut = Try::now(&failure(&"é".repeat(3000))).reason;
        assert!(cut.len() <= REASON_BYTES + 3 && cut.ends_with("é..."));
    }

    #[test]
    fn a_strangers_message_is_shown_as_far_as_it_goes() {
        assert_eq!(Envelope::read(&BasicProperties::default()), Envelope::default());
        let mut headers = FieldTable::default();
        headers.insert(header::ATTEMPTS.into(), AMQPValue::LongString("many".into()));
        headers.insert(header::HISTORY.into(), AMQPValue::LongString("[1]".into()));
        let read = Envelope::read(&BasicProperties::default().with_headers(headers));
        assert_eq!((read.attempts, read.history.len()), (0, 0));
    }

    #[test]
    fn bodies_that_are_no_jobs_say_why_and_newer_ones_wait() {
        let whole = job();
        let text = String::from_utf8(body(&whole).unwrap()).unwrap();
        assert_eq!(parse(text.as_bytes()).unwrap(), whole);
        let failed = |text: &str| parse(text.as_bytes()).unwrap_err();
        assert_eq!(failed(&text.replacen("\"version\":1", "\"version\":99", 1)).kind, FailureKind::Retryable);
        for (bad, said) in [
            (String::new(), "no job of lenspool"),
            ("{}".to_owned(), "no job of lenspool"),
            (text[..text.len() - 20].to_owned(), "no job of"),
            (text.replacen("/data", "data", 1), "is not absolute"),
            (text.replacen("\"n_layers\":2", "\"n_layers\":0", 1), "no layers"),
            (text.replacen("\"n_layers\":2", "\"n_layers\":1000000000000000000", 1), "far too many"),
            (text.replacen("[1,2]", "[]", 1), "no tokens"),
            (text.replacen(PromptHash::of("b").as_str(), PromptHash::of("a").as_str(), 1), "are both"),
            (text.replacen(PromptHash::of("b").as_str(), "../../../../etc/passwd", 1), "no job of version 1"),
        ] {
            let failure = failed(&bad);
            assert_eq!(failure.kind, FailureKind::Permanent);
            assert!(failure.reason.contains(said), "{said}: {}", failure.reason);
        }
    }

    #[test]
    fn what_no_broker_takes_is_refused_before_it_is_sent() {
        let mut job = job();
        job.prompts[0].ids = vec![50_000; MESSAGE_LIMIT / 6 + 1];
        let error = body(&job).unwrap_err().to_string();
        assert!(error.contains(&job.id.0) && error.contains("--batch-size"), "{error}");
    }
}
