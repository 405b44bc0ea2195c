//! How a run is shown while it goes on: a bar for a person, a line now and then for a log, nothing for a script.

use std::time::{Duration, Instant};

use bytesize::ByteSize;
use common::talk::{PROGRESS, View, add_bar};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::tally::{Tally, rate};

/// How often a log gets a line.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// The progress of one model's run.
#[derive(Debug)]
pub struct Progress {
    view: View,
    bar: ProgressBar,
    model: String,
    total: usize,
    begin: Instant,
    logged: Instant,
}

impl Progress {
    /// Progress over `total` prompts of `model`.
    pub fn new(view: View, model: &str, total: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::hidden()).with_style(
            ProgressStyle::with_template(
                "{prefix} {wide_bar:.cyan/dim} {pos}/{len} prompts  {msg}  ETA {eta}",
            )
            .expect("the template is well formed")
            .progress_chars("━╸─"),
        );
        bar.set_prefix(model.to_owned());
        let bar = if view == View::Bar { add_bar(bar) } else { bar };
        if view == View::Bar {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        let now = Instant::now();
        Progress { view, bar, model: model.to_owned(), total, begin: now, logged: now }
    }

    /// Shows where `tally` stands.
    pub fn show(&mut self, tally: &Tally) {
        self.bar.set_position(tally.ended() as u64);
        let elapsed = self.begin.elapsed();
        let status = || {
            format!(
                "{:.0} tokens/s  {}/s written  n_ctx {}",
                rate(tally.tokens as f64, elapsed),
                ByteSize(rate(tally.npz_bytes as f64, elapsed) as u64).display().si(),
                tally.n_ctx
            )
        };
        match self.view {
            View::Bar => self.bar.set_message(status()),
            View::Log if self.logged.elapsed() >= LOG_EVERY => {
                self.logged = Instant::now();
                let (model, done, total) = (&self.model, tally.ended(), self.total);
                tracing::info!(target: PROGRESS, "{model}: {done} of {total} prompts, {}", status());
            }
            View::Log | View::Quiet => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}
