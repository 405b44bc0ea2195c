//! Jobs in this worker's hands: one delivery, the prompts of it that are to be computed, and what
//! became of them. Pure bookkeeping, owned by the serve loop.

use std::{collections::HashMap, time::Instant};

use common::job::{Failure, Outcome};
use common::queue::{Attempt, Settlement};

use super::JobEnd;

/// Numbers this worker's deliveries in the order they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(pub u64);

/// How one prompt of a delivery ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptEnd {
    /// Both files are committed.
    Committed,
    /// Both files were there already.
    Cached,
    /// It failed; the others go on.
    Failed(Failure),
    /// Not begun or interrupted: somebody computes it later.
    Unfinished,
}

#[derive(Debug)]
struct Hand<T> {
    tag: T,
    attempt: Attempt,
    open: usize,
    unfinished: bool,
    cancelled: bool,
    taken: Instant,
    outcome: Outcome,
}

/// The deliveries in hand.
#[derive(Debug)]
pub struct Hands<T> {
    next: u64,
    held: HashMap<Serial, Hand<T>>,
}

/// A delivery whose prompts have all ended, ready to be settled.
#[derive(Debug, PartialEq, Eq)]
pub struct Finished<T> {
    /// The queue's handle.
    pub tag: T,
    /// Which try of the job this was.
    pub attempt: Attempt,
    /// What the queue is told.
    pub settlement: Settlement,
    /// What became of the prompts.
    pub outcome: Outcome,
    /// How it ended, as far as this worker decides.
    pub how: JobEnd,
}

impl<T> Default for Hands<T> {
    fn default() -> Self {
        Hands { next: 0, held: HashMap::new() }
    }
}

impl<T> Hands<T> {
    /// Takes a delivery of `prompts` prompts in hand.
    pub fn take(&mut self, tag: T, attempt: Attempt, prompts: usize) -> Serial {
        let serial = Serial(self.next);
        self.next += 1;
        let outcome = Outcome::default();
        self.held.insert(
            serial,
            Hand {
                tag,
                attempt,
                open: prompts,
                unfinished: false,
                cancelled: false,
                taken: Instant::now(),
                outcome,
            },
        );
        serial
    }

    /// Deliveries in hand.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether nothing is in hand.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Records how a prompt ended; gives the delivery back once it was the last.
    pub fn end(&mut self, serial: Serial, end: PromptEnd) -> Option<Finished<T>> {
        let hand = self.held.get_mut(&serial)?;
        hand.open = hand.open.saturating_sub(1);
        match end {
            PromptEnd::Committed => hand.outcome.done += 1,
            PromptEnd::Cached => hand.outcome.cached += 1,
            PromptEnd::Failed(failure) => hand.outcome.failures.push(failure),
            PromptEnd::Unfinished => hand.unfinished = true,
        }
        if hand.open == 0 { self.finish(serial) } else { None }
    }

    /// Gives up a delivery's prompts that have not ended, as when its job is refused before any is looked at.
    pub fn finish(&mut self, serial: Serial) -> Option<Finished<T>> {
        let mut hand = self.held.remove(&serial)?;
        hand.outcome.millis = u64::try_from(hand.taken.elapsed().as_millis()).unwrap_or(u64::MAX);
        let settlement = if hand.unfinished || hand.open > 0 {
            // What is committed stays committed: the next worker finds it and skips it.
            Settlement::HandBack
        } else if hand.outcome.failures.is_empty() {
            Settlement::Done
        } else {
            Settlement::Failed(hand.outcome.failures.clone())
        };
        let how = match settlement {
            Settlement::HandBack => JobEnd::HandedBack,
            _ if hand.cancelled => JobEnd::Cancelled,
            _ => JobEnd::Over,
        };
        Some(Finished { tag: hand.tag, attempt: hand.attempt, settlement, outcome: hand.outcome, how })
    }

    /// Ends a delivery that nobody wants any more.
    pub fn cancel(&mut self, serial: Serial) -> Option<Finished<T>> {
        let hand = self.held.get_mut(&serial)?;
        hand.open = 0;
        hand.cancelled = true;
        self.finish(serial)
    }

    /// Ends a delivery whose job cannot be run at all.
    pub fn refuse(&mut self, serial: Serial, failure: Failure) -> Option<Finished<T>> {
        let hand = self.held.get_mut(&serial)?;
        hand.open = 0;
        hand.outcome.failures.push(failure);
        self.finish(serial)
    }
}

#[cfg(test)]
mod tests {
    use common::job::FailureKind;

    use super::*;

    fn failure() -> Failure {
        Failure { hash: None, kind: FailureKind::Permanent, reason: "why".into() }
    }

    #[test]
    fn a_delivery_is_done_only_when_every_prompt_ended() {
        let mut hands = Hands::default();
        let a = hands.take("a", Attempt::ONLY, 2);
        let b = hands.take("b", Attempt::ONLY, 1);
        assert_eq!(hands.end(a, PromptEnd::Committed), None);
        let b = hands.end(b, PromptEnd::Cached).unwrap();
        assert_eq!((b.tag, b.settlement, b.outcome.cached), ("b", Settlement::Done, 1));
        let a = hands.end(a, PromptEnd::Cached).unwrap();
        assert_eq!((a.tag, a.settlement, a.outcome.done), ("a", Settlement::Done, 1));
        assert!(hands.is_empty());
    }

    #[test]
    fn one_failed_prompt_does_not_hide_the_others() {
        let mut hands = Hands::default();
        let a = hands.take((), Attempt::ONLY, 2);
        hands.end(a, PromptEnd::Failed(failure()));
        let end = hands.end(a, PromptEnd::Committed).unwrap();
        assert_eq!(end.settlement, Settlement::Failed(vec![failure()]));
        assert_eq!(end.outcome.done, 1);
    }

    #[test]
    fn an_interrupted_delivery_is_handed_back() {
        let mut hands = Hands::default();
        let a = hands.take((), Attempt::ONLY, 2);
        hands.end(a, PromptEnd::Committed);
        assert_eq!(hands.end(a, PromptEnd::Unfinished).unwrap().settlement, Settlement::HandBack);
    }
}
