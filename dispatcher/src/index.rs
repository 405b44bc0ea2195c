//! `dispatcher index`: prompts.jsonl as it should be, from the journals of a run or from everything there is.

use std::path::Path;

use common::{
    exit::Exit,
    job::RunId,
    settings::Settings,
    store::{IndexReport, JournalReader, ModelLayout, Progress, Store, Unlisted, runs},
    talk::{counted, say},
};
use jiff::Timestamp;
use tokio::runtime::Runtime;

use crate::{
    Error,
    cli::IndexArgs,
    scope::{self, Wanted},
};

/// Indexes one run, or every model of the data directories.
pub fn run(args: &IndexArgs, settings: &Settings, runtime: &Runtime) -> Result<Exit, Error> {
    let scope = &args.scope;
    match &scope.run {
        Some(run) => {
            let (model, save_path) = (scope.model.as_deref(), scope.save_path.as_deref());
            let mut hidden = Vec::new();
            for part in scope::find_run(run, model, save_path, settings, runtime)? {
                if part.layout.run(&part.run).exists() {
                    say(format_args!("{}\n", index_run(&part.layout, &part.run)?));
                } else {
                    hidden.push(part.layout.run(&part.run).display().to_string());
                }
            }
            if !hidden.is_empty() {
                return Err(Error::Request(format!(
                    "could not see {}; run this where the data directory is mounted, or name it with --save-path",
                    hidden.join(", ")
                )));
            }
        }
        None => {
            let wanted = Wanted::of(scope)?;
            for path in scope::directories(&wanted, settings, runtime)? {
                for told in index_directory(&path, &wanted)? {
                    say(format_args!("{told}\n"));
                }
            }
        }
    }
    Ok(Exit::Done)
}

/// Adds what one run committed, and notes where that is all of it.
fn index_run(layout: &ModelLayout, run: &RunId) -> Result<String, Error> {
    // Asked before the index is built: what is over then is in it.
    let (over, as_of) = (is_over(layout, run)?, Timestamp::now());
    let store = Store::new(layout.save().root(), &RunId::fresh());
    let report = store.index_run(layout, Some(run))?;
    store.update_models()?;
    if over {
        runs::mark_indexed(layout, run, as_of)?;
    }
    let rest = if over { "" } else { "; the run is not over: index again when it is" };
    Ok(format!("{} ({run}): {}{rest}", layout.name(), told(&report, layout)))
}

/// Lists every prompt of every model, and models.jsonl.
fn index_directory(path: &Path, wanted: &Wanted) -> Result<Vec<String>, Error> {
    let store = Store::new(path, &RunId::fresh());
    let mut lines = Vec::new();
    for layout in scope::models_of(path)? {
        if !wanted.takes_model(layout.name().as_str()) {
            continue;
        }
        let mut over = Vec::new();
        let as_of = Timestamp::now();
        for record in runs::list_runs(&layout)? {
            if !record.indexed && is_over(&layout, &record.card.run)? {
                over.push(record.card.run);
            }
        }
        let report = store.index_prompts(&layout)?;
        for run in &over {
            runs::mark_indexed(&layout, run, as_of)?;
        }
        lines.push(format!("{}: {}", layout.name(), told(&report, &layout)));
    }
    let models = store.update_models()?;
    lines.push(format!(
        "{}: {} listed in models.jsonl",
        path.display(),
        counted(models.lines as u64, "model")
    ));
    Ok(lines)
}

/// Whether every prompt that was published is committed, or has failed.
pub(crate) fn is_over(layout: &ModelLayout, run: &RunId) -> Result<bool, Error> {
    let Some(record) = runs::read_run(layout, run)? else { return Ok(false) };
    let mut progress = Progress::default();
    JournalReader::new(layout, Some(run)).poll(|_, line| progress.take(line))?;
    Ok(record.complete && progress.committed() + progress.failed().len() >= record.published)
}

fn told(report: &IndexReport, layout: &ModelLayout) -> String {
    for Unlisted { path, reason } in &report.unlisted {
        tracing::warn!("{} is not listed: {reason}", path.display());
    }
    let more = report.unlisted_count - report.unlisted.len();
    if more > 0 {
        tracing::warn!("{more} more prompts of {} are not listed", layout.name());
    }
    let mut told = format!("{} listed, {} read anew", counted(report.lines as u64, "prompt"), report.read);
    if report.dropped > 0 {
        told.push_str(&format!(", {} taken out", report.dropped));
    }
    if report.unlisted_count > 0 {
        told.push_str(&format!(", {} cannot be listed", report.unlisted_count));
    }
    told
}

#[cfg(test)]
mod tests {
    use std::fs;

    use common::{
        job::{Failure, FailureKind, JobId},
        prompt::{Prompt, PromptHash},
        store::{Event, Journal, runs::RunLedger},
    };

    use super::*;
    use crate::scope::tests::{card, layout};

    fn commit(layout: &ModelLayout, text: &str) -> PromptHash {
        let (record, hash) = Prompt::from_text(text).into_parts();
        fs::create_dir_all(layout.prompt(&hash)).unwrap();
        fs::write(layout.prompt(&hash).join("activations.npz"), b"x").unwrap();
        fs::write(layout.prompt_json(&hash), record.to_python_json()).unwrap();
        hash
    }

    #[test]
    fn a_run_is_marked_once_all_of_it_is_in_the_index() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, card) = (layout(dir.path(), "gpt2"), card("r", "gpt2", 2));
        let [a, b] = ["a", "b"].map(|text| commit(&layout, text));
        commit(&layout, "another run's");
        let mut ledger = RunLedger::announce(&layout, &card).unwrap();
        ledger.published(&JobId("1".to_owned()), vec![a.clone(), b.clone()]).unwrap();
        ledger.complete().unwrap();
        let journal = Journal::new(&Store::new(dir.path(), &card.run), &layout, &card.run);
        journal.note(Event::Committed { hash: a, bytes: 1 }).unwrap();
        assert!(
            index_run(&layout, &card.run).unwrap().ends_with("; the run is not over: index again when it is")
        );
        assert!(!layout.run_indexed(&card.run).exists());

        let failure = Failure { hash: Some(b), kind: FailureKind::Permanent, reason: "why".to_owned() };
        journal.note(Event::Failed { job: JobId("1".to_owned()), failure, last: true }).unwrap();
        let all = index_directory(dir.path(), &Wanted::default()).unwrap();
        // How many are read anew depends on the file system's clock.
        assert!(all[0].starts_with("gpt2: 3 prompts listed, "), "{}", all[0]);
        assert!(layout.run_indexed(&card.run).exists());
        assert!(index_run(&layout, &card.run).unwrap().contains("3 prompts listed, "));
    }
}
