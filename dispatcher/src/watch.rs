//! `dispatcher watch`: status again and again, until every run is over.
//!
//! On a terminal the screen is redrawn; otherwise there is a line a run and a change, or with `--json` a whole report
//! a change. Ends with 0 once every run is done or called off, with 65 where prompts failed or dead letters lie there,
//! with 130 on Ctrl-C. A run that was interrupted counts as over once what was published of it is; one whose data
//! directory cannot be seen from here is not waited for.

use std::{
    collections::HashMap,
    io::{self, IsTerminal},
};

use common::{exit::Exit, settings::Settings, talk::say};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

use crate::{
    Error,
    cli::WatchArgs,
    follow::State,
    scope::Wanted,
    status::{Report, RunRow, Session, line, text},
};

/// From the top left corner on, everything is cleared.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Shows how things go on.
pub fn run(args: &WatchArgs, settings: &Settings, runtime: &Runtime) -> Result<Exit, Error> {
    let mut session = Session::new(Wanted::of(&args.status.scope)?, settings)?;
    runtime.spawn(leave_on_signal());
    let mut screen = Screen {
        json: args.status.json,
        terminal: io::stdout().is_terminal(),
        shown: HashMap::new(),
        warned: Vec::new(),
    };
    loop {
        let report = runtime.block_on(session.look())?;
        screen.show(&report);
        if let Some(exit) = verdict(&report)? {
            runtime.block_on(session.close());
            return Ok(exit);
        }
        std::thread::sleep(args.every.0);
    }
}

/// Nothing is held that an abrupt end would harm.
async fn leave_on_signal() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    std::process::exit(Exit::Interrupted as i32);
}

/// How it ended; none while something still goes on.
fn verdict(report: &Report) -> Result<Option<Exit>, Error> {
    let seen: Vec<&RunRow> = report.runs.iter().filter(|row| row.state != State::Unknown).collect();
    if seen.is_empty() && !report.runs.is_empty() {
        return Err(Error::Request(
            "none of the runs' data directories can be seen from this machine; watch where they are mounted"
                .to_owned(),
        ));
    }
    if !seen.iter().all(|row| row.is_over()) {
        return Ok(None);
    }
    let letters = if report.dead.looked { report.dead.by.len() as u64 } else { report.dead.total };
    let whole = seen.iter().all(|row| row.is_whole()) && letters == 0;
    Ok(Some(if whole { Exit::Done } else { Exit::SomeFailed }))
}

struct Screen {
    json: bool,
    terminal: bool,
    /// The last line of each model of a run.
    shown: HashMap<(String, String), String>,
    warned: Vec<String>,
}

impl Screen {
    fn show(&mut self, report: &Report) {
        if self.terminal && !self.json {
            let warnings: String =
                report.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
            say(format_args!("{CLEAR}{}{warnings}", text(report)));
            return;
        }
        if self.warned != report.warnings {
            for warning in &report.warnings {
                tracing::warn!("{warning}");
            }
            self.warned.clone_from(&report.warnings);
        }
        let changed = self.changed(report);
        if self.json {
            if !changed.is_empty() {
                say(format_args!("{}\n", serde_json::to_string(report).expect("a report is plain data")));
            }
            return;
        }
        for line in changed {
            say(format_args!("{line}\n"));
        }
    }

    /// The lines that are not as they were.
    fn changed(&mut self, report: &Report) -> Vec<String> {
        let mut changed = Vec::new();
        for row in &report.runs {
            // Rates move all the time; what counts is how many prompts are over.
            let state = format!("{:?} {:?} {:?} {:?}", row.state, row.todo, row.committed, row.failed);
            let before = self.shown.insert((row.run.clone(), row.model.clone()), state.clone());
            if before.as_ref() != Some(&state) {
                changed.push(line(row));
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{report, row};

    #[test]
    fn it_ends_when_all_is_over_and_says_how() {
        let ended = |rows: Vec<RunRow>, letters: bool| {
            let mut report = report(rows);
            if !letters {
                report.dead = Default::default();
                report.dead.looked = true;
            }
            verdict(&report).unwrap()
        };
        let whole = RunRow { failed: Some(0), ..row("a", State::Done) };
        let interrupted = RunRow { published: Some(42), ..row("c", State::Interrupted) };
        assert_eq!(ended(vec![whole.clone(), row("b", State::Cancelled)], false), Some(Exit::Done));
        assert_eq!(ended(vec![whole.clone()], true), Some(Exit::SomeFailed));
        assert_eq!(ended(vec![row("a", State::Done)], false), Some(Exit::SomeFailed));
        assert_eq!(ended(vec![whole.clone(), row("b", State::Running)], false), None);
        assert_eq!(ended(vec![whole.clone(), row("b", State::Publishing)], false), None);
        assert_eq!(ended(vec![row("c", State::Interrupted)], false), None);
        assert_eq!(ended(vec![interrupted], false), Some(Exit::SomeFailed));
        assert_eq!(ended(vec![whole, row("d", State::Unknown)], false), Some(Exit::Done));
        assert_eq!(ended(Vec::new(), false), Some(Exit::Done));
        assert!(verdict(&report(vec![row("d", State::Unknown)])).is_err());
    }

    #[test]
    fn a_log_gets_a_line_a_change() {
        let mut screen = Screen { json: false, terminal: false, shown: HashMap::new(), warned: Vec::new() };
        let mut running = row("a", State::Running);
        assert_eq!(screen.changed(&report(vec![running.clone()])).len(), 1);
        running.prompts_per_second.recent = Some(3.0);
        assert_eq!(screen.changed(&report(vec![running.clone()])).len(), 0);
        running.committed = Some(41);
        assert_eq!(screen.changed(&report(vec![running, row("b", State::Running)])).len(), 2);
    }
}
