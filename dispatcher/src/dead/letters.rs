//! A dead letter as it is shown, and which ones are meant.

use std::collections::HashMap;

use common::{
    job::{FailureKind, Job},
    model::reference::ModelName,
    prompt::Json,
    queue::rabbitmq::{DeadLetter, Try},
};
use jiff::Timestamp;
use serde::Serialize;

use crate::{Error, cli::DeadFilter, scope::ModelFilter};

/// Characters of a prompt's text that are shown.
const TEXT_SHOWN: usize = 80;

/// What is known of a dead letter without its body.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Letter {
    /// The job; empty in a stranger's message.
    pub job: String,
    /// Its run.
    pub run: String,
    /// Its model.
    pub model: String,
    /// Prompts in it.
    pub prompts: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// The kind of its last failure; none where the broker gave it up.
    pub kind: Option<FailureKind>,
    /// Where it failed last.
    pub host: Option<String>,
    /// When.
    pub at: Option<Timestamp>,
    /// Why.
    pub reason: String,
    /// How often it lies there.
    pub copies: u64,
}

/// The same with all that is known.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Full {
    /// The letter.
    #[serde(flatten)]
    pub letter: Letter,
    /// Every try, the first ones first; of many, some in the middle are left out.
    pub history: Vec<Try>,
    /// The data directory it was for.
    pub save_path: Option<String>,
    /// Its prompts.
    pub contents: Vec<Content>,
    /// Why its body is no job, where it is none.
    pub unreadable: Option<String>,
    /// Bytes of its body.
    pub bytes: usize,
}

/// A prompt of a dead letter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Content {
    /// Its hash.
    pub hash: String,
    /// Its length for the model.
    pub tokens: usize,
    /// How its text begins.
    pub text: String,
}

impl Letter {
    /// Reads a letter; `job` is its body, as far as that is one.
    pub fn of(letter: &DeadLetter, job: Option<&Job>) -> Letter {
        let envelope = &letter.envelope;
        let last = envelope.history.last().filter(|_| envelope.broker_reason.is_none());
        let or_job = |header: &str, of: fn(&Job) -> &str| match (header, job) {
            ("", Some(job)) => of(job).to_owned(),
            (header, _) => header.to_owned(),
        };
        Letter {
            job: or_job(&envelope.id, |job| &job.id.0),
            run: or_job(&envelope.run, |job| &job.run.0),
            model: or_job(&envelope.model, |job| &job.model.name),
            prompts: job.map_or(envelope.prompts, |job| job.prompts.len() as u64),
            attempts: envelope.attempts,
            kind: letter.kind(),
            host: last.map(|last| last.host.clone()),
            at: last.map(|last| last.at),
            reason: envelope.reason(),
            copies: 1,
        }
    }
}

impl Full {
    /// Reads a letter and its body.
    pub fn of(letter: &DeadLetter) -> Full {
        let job = letter.job();
        let content = |prompt: &common::job::JobPrompt| {
            let text = prompt.record.get("text").and_then(Json::as_str).unwrap_or_default();
            let text = text.chars().take(TEXT_SHOWN).collect();
            Content { hash: prompt.hash.to_string(), tokens: prompt.ids.len(), text }
        };
        Full {
            letter: Letter::of(letter, job.as_ref().ok()),
            history: letter.envelope.history.clone(),
            save_path: job.as_ref().ok().map(|job| job.save_path.display().to_string()),
            contents: job.iter().flat_map(|job| &job.prompts).map(content).collect(),
            unreadable: job.err().map(|failure| failure.reason),
            bytes: letter.body.len(),
        }
    }
}

/// Which letters are meant: those that pass all that was asked for.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    run: Option<String>,
    model: Option<ModelFilter>,
    /// In lower case.
    reason: Option<String>,
    job: Option<String>,
}

impl Filter {
    /// Reads the flags.
    pub fn new(flags: &DeadFilter) -> Result<Filter, Error> {
        Ok(Filter {
            run: flags.run.clone(),
            model: flags.model.as_deref().map(ModelFilter::parse).transpose()?,
            reason: flags.reason.as_ref().map(|reason| reason.to_lowercase()),
            job: flags.job.clone(),
        })
    }

    /// Whether every letter is meant.
    pub fn is_empty(&self) -> bool {
        self.run.is_none() && self.model.is_none() && self.reason.is_none() && self.job.is_none()
    }

    /// Whether this letter is meant.
    pub fn takes(&self, letter: &Letter) -> bool {
        let is =
            |wanted: &Option<String>, there: &str| wanted.as_deref().is_none_or(|wanted| wanted == there);
        is(&self.run, &letter.run)
            && is(&self.job, &letter.job)
            && self.model.as_ref().is_none_or(|model| model.takes(&letter.model))
            && self.reason.as_ref().is_none_or(|reason| letter.reason.to_lowercase().contains(reason))
    }
}

/// Letters by their jobs: one that lies there twice is one.
#[derive(Debug)]
pub struct Distinct<T> {
    /// Those seen, in order.
    pub letters: Vec<T>,
    places: HashMap<String, usize>,
}

impl<T> Default for Distinct<T> {
    fn default() -> Self {
        Distinct { letters: Vec::new(), places: HashMap::new() }
    }
}

impl<T> Distinct<T> {
    /// The same job's letter that came before.
    pub fn before(&mut self, job: &str) -> Option<&mut T> {
        let place = *self.places.get(job)?;
        self.letters.get_mut(place)
    }

    /// Adds a letter. A stranger's message without an id is like no other.
    pub fn push(&mut self, job: &str, letter: T) {
        if !job.is_empty() {
            self.places.insert(job.to_owned(), self.letters.len());
        }
        self.letters.push(letter);
    }
}

/// Why a letter cannot be sent again.
pub fn refusal(letter: &DeadLetter) -> Option<String> {
    let job = match letter.job() {
        Ok(job) => job,
        Err(failure) => return Some(failure.reason),
    };
    ModelName::try_from(job.model.name.as_str()).err().map(|error| error.to_string())
}

#[cfg(test)]
pub mod tests {
    use std::path::PathBuf;

    use common::{
        capture::Capture,
        job::{Failure, JobPrompt, ModelPin, ModelShape, RunId},
        prompt::Prompt,
        queue::rabbitmq::{Envelope, message},
    };

    use super::*;

    /// A letter of one prompt that failed once, for good.
    pub fn letter(run: &str, model: &str, text: &str, reason: &str) -> DeadLetter {
        let model = ModelPin { name: model.to_owned(), source: model.to_owned(), commit: "0".to_owned() };
        let (record, hash) = Prompt::from_text(text).into_parts();
        let job = Job::new(
            RunId(run.to_owned()),
            model,
            ModelShape { n_layers: 2, n_heads: 2 },
            Capture::default(),
            PathBuf::from("/data"),
            false,
            vec![JobPrompt { hash, record, ids: vec![1, 2] }],
        );
        let failure = Failure { hash: None, kind: FailureKind::Permanent, reason: reason.to_owned() };
        let envelope = Envelope::of(&job).tried(Try::now(&failure));
        DeadLetter { envelope, body: message::body(&job).unwrap() }
    }

    fn short(letter: &DeadLetter) -> Letter {
        Letter::of(letter, letter.job().ok().as_ref())
    }

    #[test]
    fn every_filter_that_is_given_must_match() {
        let there = short(&letter("r1", "gpt2", "a", "Prompt TOO long"));
        let flags = |run: &str, model: &str, reason: &str, job: &str| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            DeadFilter { run: some(run), model: some(model), reason: some(reason), job: some(job) }
        };
        for (flags, taken) in [
            (flags("", "", "", ""), true),
            (flags("r1", "gpt2", "too LONG", &there.job), true),
            (flags("r", "", "", ""), false),
            (flags("r1", "pythia", "", ""), false),
            (flags("r1", "", "short", ""), false),
            (flags("", "", "", "1234"), false),
        ] {
            let filter = Filter::new(&flags).unwrap();
            assert_eq!(filter.takes(&there), taken, "{flags:?}");
        }
        assert!(Filter::new(&flags("", "", "", "")).unwrap().is_empty());
        assert!(!Filter::new(&flags("", "", "x", "")).unwrap().is_empty());
    }

    #[test]
    fn what_the_headers_do_not_say_the_body_does() {
        let mut letter = letter("r1", "gpt2", "a", "why");
        letter.envelope =
            Envelope { broker_reason: Some("delivery_limit".to_owned()), ..Envelope::default() };
        let shown = short(&letter);
        assert_eq!((shown.run.as_str(), shown.model.as_str(), shown.prompts), ("r1", "gpt2", 1));
        assert_eq!((shown.kind, shown.host.clone(), shown.job.len()), (None, None, 32));
        assert!(shown.reason.contains("again and again"));
    }

    #[test]
    fn a_stranger_is_shown_and_cannot_be_sent_again() {
        let stranger = DeadLetter { envelope: Envelope::default(), body: b"hello".to_vec() };
        let full = Full::of(&stranger);
        assert!(full.unreadable.as_ref().unwrap().contains("no job of lenspool"));
        assert_eq!((full.contents.len(), full.bytes, full.letter.job.as_str()), (0, 5, ""));
        assert!(refusal(&stranger).unwrap().contains("no job of lenspool"));
        let mut odd = letter("r", "gpt2", "a", "why");
        assert_eq!(refusal(&odd), None);
        odd.body =
            String::from_utf8(odd.body).unwrap().replace("\"name\":\"gpt2\"", "\"name\":\"../x\"").into();
        assert!(refusal(&odd).unwrap().contains("cannot name a model's directory"));
    }

    #[test]
    fn a_job_that_lies_there_twice_is_one_and_strangers_are_not() {
        let mut distinct = Distinct::default();
        for job in ["a", "b", "a", "", ""] {
            match distinct.before(job) {
                Some(count) => *count += 1,
                None => distinct.push(job, 1),
            }
        }
        assert_eq!(distinct.letters, [2, 1, 1, 1]);
    }
}
