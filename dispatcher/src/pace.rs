//! How fast prompts end: by the writers' clocks, over a recent window and over all.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

/// What counts as recent, in seconds.
const WINDOW: i64 = 120;

/// When prompts ended.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// Prompts that ended, by second; the recent ones.
    seconds: BTreeMap<i64, usize>,
    /// When the first and the last thing happened.
    span: Option<(Timestamp, Timestamp)>,
    total: usize,
}

impl Pace {
    /// Something happened: `ended` prompts more are over.
    pub fn note(&mut self, at: Timestamp, ended: usize) {
        let (first, last) = self.span.map_or((at, at), |(first, last)| (first.min(at), last.max(at)));
        self.span = Some((first, last));
        self.total += ended;
        let (at, last) = (at.as_second(), last.as_second());
        if ended > 0 && at > last - WINDOW {
            *self.seconds.entry(at).or_default() += ended;
            self.seconds = self.seconds.split_off(&(last - WINDOW + 1));
        }
    }

    /// Prompts a second in the window before `now`; none where nothing ended in it.
    pub fn recent(&self, now: Timestamp) -> Option<f64> {
        let now = now.as_second();
        let (first, _) = self.span?;
        let ended: usize = self.seconds.range(now - WINDOW + 1..).map(|(_, ended)| ended).sum();
        // A run younger than the window is measured over its own age.
        let over = (now - first.as_second()).clamp(1, WINDOW);
        (ended > 0).then(|| ended as f64 / over as f64)
    }

    /// Prompts a second from the first event to the last; none where there is no telling.
    pub fn overall(&self) -> Option<f64> {
        let (first, last) = self.span?;
        let seconds = last.duration_since(first).as_secs_f64();
        // What came at once came after work whose beginning is not on record.
        (self.total > 0 && seconds >= 1.0).then(|| self.total as f64 / seconds)
    }
}

/// How long `pending` prompts take at `rate` prompts a second.
pub fn eta(pending: usize, rate: Option<f64>) -> Option<Duration> {
    let rate = rate.filter(|&rate| rate > 0.0)?;
    Duration::try_from_secs_f64((pending as f64 / rate).round()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_steady_run_and_one_that_stopped() {
        let mut pace = Pace::default();
        assert_eq!((pace.recent(at(0)), pace.overall()), (None, None));
        pace.note(at(1000), 0);
        assert_eq!((pace.recent(at(1000)), pace.overall()), (None, None));
        for second in 1000..2000 {
            pace.note(at(second), 3);
        }
        assert_eq!(pace.recent(at(1999)), Some(3.0));
        assert!((pace.overall().unwrap() - 3.0).abs() < 0.01);
        assert!(pace.seconds.len() <= WINDOW as usize);
        assert_eq!(pace.recent(at(2060)), Some(3.0 * 59.0 / 120.0));
        assert_eq!(pace.recent(at(3000)), None, "nothing moves, so nothing is promised");
    }

    #[test]
    fn writers_come_in_any_order_and_young_runs_count_over_their_age() {
        let mut pace = Pace::default();
        pace.note(at(1010), 10);
        pace.note(at(1000), 10);
        assert_eq!(pace.recent(at(1010)), Some(2.0));
        pace.note(at(5000), 1);
        pace.note(at(1005), 10);
        assert_eq!(pace.recent(at(5000)), Some(1.0 / 120.0));
        assert_eq!(pace.overall(), Some(31.0 / 4000.0));
    }

    #[test]
    fn a_short_run_has_its_own_speed_wherever_in_a_second_it_began() {
        for begin in [1_000_100, 1_000_900] {
            let mut pace = Pace::default();
            pace.note(Timestamp::from_millisecond(begin).unwrap(), 0);
            pace.note(Timestamp::from_millisecond(begin + 250).unwrap(), 20);
            assert_eq!(pace.overall(), None);
            pace.note(Timestamp::from_millisecond(begin + 1250).unwrap(), 20);
            assert_eq!(pace.overall(), Some(32.0));
        }
    }

    #[test]
    fn an_estimate_needs_a_rate() {
        assert_eq!(eta(100, Some(2.0)), Some(Duration::from_secs(50)));
        assert_eq!(eta(100, None), None);
        assert_eq!(eta(100, Some(0.0)), None);
        assert_eq!(eta(0, Some(1.0)), Some(Duration::ZERO));
    }
}
