//! `dispatcher cancel`: calls a run off.
//!
//! A mark beside the run's ledger does it; nothing is taken off the broker. Workers drop its jobs as they meet them.

use common::{
    exit::Exit,
    settings::Settings,
    store::runs,
    talk::{counted, say},
};
use jiff::Timestamp;
use tokio::runtime::Runtime;

use crate::{
    Error,
    cli::CancelArgs,
    follow::{Follower, Outside},
    scope::{self, Part},
};

/// Marks every model of a run.
pub fn run(args: &CancelArgs, settings: &Settings, runtime: &Runtime) -> Result<Exit, Error> {
    let parts = scope::find_run(&args.run, None, args.save_path.as_deref(), settings, runtime)?;
    let mut hidden = 0;
    for part in parts {
        match cancel(part)? {
            Some(told) => say(format_args!("{told}\n")),
            None => hidden += 1,
        }
    }
    if hidden > 0 {
        return Err(Error::Request(format!(
            "{} of run {} could not be called off: see the warnings above; run this where the data directory is \
             mounted, or name it with --save-path",
            counted(hidden as u64, "model"),
            args.run
        )));
    }
    say(
        "Workers drop its jobs as they meet them; what is committed stays, and so does what is in hand until it ends.\n",
    );
    Ok(Exit::Done)
}

/// Marks one model of a run and says how far it was; none where its files cannot be seen.
fn cancel(part: Part) -> Result<Option<String>, Error> {
    let (run, layout) = (part.run.clone(), part.layout.clone());
    let mut follower = Follower::new(part);
    let Some(figures) = follower.poll(&Outside::default(), Timestamp::now())? else {
        tracing::warn!(
            "the ledger of {run} for {} cannot be seen: {}",
            layout.name(),
            layout.run(&run).display()
        );
        return Ok(None);
    };
    let already = runs::is_cancelled(&layout, &run)?;
    runs::cancel_run(&layout, &run)?;
    let off = if already { "was called off before" } else { "is called off" };
    Ok(Some(format!(
        "{run} of {} {off}: {} of {} prompts are committed, {} failed",
        layout.name(),
        figures.committed,
        figures.todo,
        figures.failed
    )))
}

#[cfg(test)]
mod tests {
    use common::store::runs::RunLedger;

    use super::*;
    use crate::scope::tests::{card, layout};

    fn args(run: &str, dir: &std::path::Path) -> CancelArgs {
        CancelArgs { run: run.to_owned(), save_path: Some(dir.to_owned()), queue: Default::default() }
    }

    #[test]
    fn every_model_of_a_run_is_marked_and_an_unknown_run_is_told() {
        let dir = tempfile::tempdir().unwrap();
        for model in ["gpt2", "pythia"] {
            drop(RunLedger::announce(&layout(dir.path(), model), &card("r", model, 7)).unwrap());
        }
        drop(RunLedger::announce(&layout(dir.path(), "gpt2"), &card("other", "gpt2", 7)).unwrap());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        for _ in 0..2 {
            assert_eq!(run(&args("r", dir.path()), &Settings::default(), &runtime).unwrap(), Exit::Done);
        }
        for (run, model, cancelled) in [("r", "gpt2", true), ("r", "pythia", true), ("other", "gpt2", false)]
        {
            let run = common::job::RunId(run.to_owned());
            assert_eq!(runs::is_cancelled(&layout(dir.path(), model), &run).unwrap(), cancelled);
        }
        let error = run(&args("none", dir.path()), &Settings::default(), &runtime).unwrap_err();
        assert_eq!(error.exit(), Exit::Configuration);
        assert!(
            error.to_string().contains("no run \"none\"") && error.to_string().contains("\n  other"),
            "{error}"
        );
    }

    #[test]
    fn how_far_it_was_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path(), "gpt2");
        let card = card("r", "gpt2", 7);
        drop(RunLedger::announce(&layout, &card).unwrap());
        let part = Part { run: card.run, layout, at: card.at, entry: None };
        let told = |part: &Part| cancel(part.clone()).unwrap().unwrap();
        assert_eq!(told(&part), "r of gpt2 is called off: 0 of 7 prompts are committed, 0 failed");
        assert!(told(&part).contains("was called off before"));
    }
}
