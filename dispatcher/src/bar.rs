//! The bar of work that goes prompt by prompt.

use common::talk::{View, add_bar};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over so many prompts, shown where somebody looks.
pub fn bar(view: View, model: &str, what: &'static str, prompts: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(prompts as u64), ProgressDrawTarget::hidden()).with_style(
        ProgressStyle::with_template("{prefix} {msg} {wide_bar:.cyan/dim} {pos}/{len} prompts  {per_sec}")
            .expect("the template is well formed")
            .progress_chars("━╸─"),
    );
    bar.set_prefix(model.to_owned());
    bar.set_message(what);
    if view == View::Bar { add_bar(bar) } else { bar }
}
