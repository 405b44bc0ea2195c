//! A budget of bytes between two stages of the pipeline: what keeps memory flat when one stage is
//! faster than the next.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that may be held at once. Holders keep a [`Lease`]; dropping it gives the bytes back.
#[derive(Debug)]
pub struct ByteBudget {
    limit: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held: usize,
    peak: usize,
    closed: bool,
}

/// The budget was closed: whoever would use the bytes is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl ByteBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(ByteBudget { limit, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Waits until `bytes` fit beside what is held. A piece larger than the whole budget is let in
    /// alone: refusing it would stop the pipeline for ever.
    pub fn acquire(self: &Arc<Self>, bytes: usize) -> Result<Lease, Closed> {
        let mut state = self
            .changed
            .wait_while(self.lock(), |s| !s.closed && s.held > 0 && s.held + bytes > self.limit)
            .unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(Closed);
        }
        Ok(self.grant(&mut state, bytes))
    }

    /// Holds `bytes` without waiting, over the limit if need be: for a stage whose input is bounded already.
    pub fn overdraw(self: &Arc<Self>, bytes: usize) -> Lease {
        let mut state = self.lock();
        self.grant(&mut state, bytes)
    }

    /// Waits until less than the limit is held.
    pub fn wait_for_room(&self) -> Result<(), Closed> {
        let state = self
            .changed
            .wait_while(self.lock(), |s| !s.closed && s.held > self.limit)
            .unwrap_or_else(PoisonError::into_inner);
        if state.closed { Err(Closed) } else { Ok(()) }
    }

    /// Ends every wait, now and later, with [`Closed`].
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The most bytes that were ever held at once.
    pub fn peak(&self) -> usize {
        self.lock().peak
    }

    fn grant(self: &Arc<Self>, state: &mut State, bytes: usize) -> Lease {
        state.held += bytes;
        state.peak = state.peak.max(state.held);
        Lease { budget: Arc::clone(self), bytes }
    }

    // The state is a few numbers, true after every statement: a panicking holder leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes taken from a [`ByteBudget`] until dropped.
#[derive(Debug)]
pub struct Lease {
    budget: Arc<ByteBudget>,
    bytes: usize,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.lock().held -= self.bytes;
        self.budget.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    #[test]
    fn a_full_budget_waits_for_a_lease_to_end() {
        let budget = ByteBudget::new(100);
        let first = budget.acquire(80).unwrap();
        let waiting = thread::spawn({
            let budget = Arc::clone(&budget);
            move || budget.acquire(30).map(drop)
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(first);
        assert_eq!(waiting.join().unwrap(), Ok(()));
        assert_eq!(budget.peak(), 80);
    }

    #[test]
    fn a_piece_larger_than_the_budget_goes_alone() {
        let budget = ByteBudget::new(10);
        drop(budget.acquire(50).unwrap());
        assert_eq!(budget.peak(), 50);
    }

    #[test]
    fn closing_ends_the_wait() {
        let budget = ByteBudget::new(10);
        let _held = budget.acquire(10).unwrap();
        let waiting = thread::spawn({
            let budget = Arc::clone(&budget);
            move || budget.acquire(1).map(drop)
        });
        budget.close();
        assert_eq!(waiting.join().unwrap(), Err(Closed));
    }
}
