//! `status` for people.

use common::{settings::Span, talk::counted};

use super::report::{Report, RunRow};
use crate::{
    follow::State,
    table::{Align, table},
};

/// Runs that are over are listed up to this many; the newest ones.
const OVER_SHOWN: usize = 10;

/// The whole report.
pub fn text(report: &Report) -> String {
    let mut text = format!("namespace {} at {}\n", report.namespace, report.broker.url);
    if !report.queues.is_empty() {
        text.push('\n');
        text.push_str(&queues(report));
    }
    if report.broker.reachable {
        let waits: Vec<_> = report.retry.iter().filter(|retry| retry.waiting > 0).collect();
        for retry in waits {
            let wait = Span::seconds(retry.delay_seconds);
            text.push_str(&format!("{} for another try (waits of {wait})\n", waiting(retry.waiting)));
        }
        text.push_str(&dead(report));
    }
    text.push('\n');
    if report.runs.is_empty() {
        text.push_str("no runs\n");
    } else {
        text.push_str(&runs(report));
    }
    text
}

fn waiting(jobs: u64) -> String {
    if jobs == 1 { "1 job waits".to_owned() } else { format!("{jobs} jobs wait") }
}

fn queues(report: &Report) -> String {
    let header = [
        ("MODEL", Align::Left),
        ("READY", Align::Right),
        ("IN HAND", Align::Right),
        ("WORKERS", Align::Right),
    ];
    let row = |queue: &super::report::QueueRow| {
        if !queue.exists {
            return vec![queue.model.clone(), "no queue".to_owned(), "-".to_owned(), "-".to_owned()];
        }
        let unacked = queue.unacked.map_or_else(|| "-".to_owned(), |unacked| unacked.to_string());
        vec![queue.model.clone(), queue.ready.to_string(), unacked, queue.consumers.to_string()]
    };
    table(&header, &report.queues.iter().map(row).collect::<Vec<_>>())
}

fn dead(report: &Report) -> String {
    let dead = &report.dead;
    if dead.total == 0 {
        return "no dead letters\n".to_owned();
    }
    let total = counted(dead.total, "dead letter");
    let Some(others) = dead.others else {
        return format!("{total}, not all looked at: `dispatcher dead list` does\n");
    };
    let beside = format!("({} of other models or runs)", counted(others, "dead letter"));
    let mut text = match (dead.by.is_empty(), others) {
        (true, _) => return format!("no dead letters of these {beside}\n"),
        (false, 0) => format!("{total}; `dispatcher dead list` says why:\n"),
        (false, _) => {
            let here: u64 = dead.by.iter().map(|row| row.letters).sum();
            format!("{} {beside}; `dispatcher dead list` says why:\n", counted(here, "dead letter"))
        }
    };
    for row in &dead.by {
        let name = |name: &str| if name.is_empty() { "?".to_owned() } else { name.to_owned() };
        text.push_str(&format!(
            "  {} of {}, run {}: {}\n",
            counted(row.letters, "letter"),
            name(&row.model),
            name(&row.run),
            counted(row.prompts, "prompt")
        ));
    }
    text
}

fn runs(report: &Report) -> String {
    let header = [
        ("RUN", Align::Left),
        ("MODEL", Align::Left),
        ("STATE", Align::Left),
        ("PROMPTS", Align::Right),
        ("DONE", Align::Right),
        ("FAILED", Align::Right),
        ("NOW/S", Align::Right),
        ("ALL/S", Align::Right),
        ("ETA", Align::Right),
    ];
    let over = report.runs.iter().filter(|row| row.is_over()).count();
    let mut hidden = over.saturating_sub(OVER_SHOWN);
    let more = hidden + report.older_runs;
    let shown: Vec<&RunRow> = report
        .runs
        .iter()
        .filter(|row| {
            let hide = row.is_over() && hidden > 0;
            hidden -= usize::from(hide);
            !hide
        })
        .collect();
    let mut text = table(&header, &shown.iter().map(|row| cells(row)).collect::<Vec<_>>());
    if more > 0 {
        text.push_str(&format!("and {more} older ones; --run RUN shows one\n"));
    }
    for row in shown {
        if let Some(note) = &row.note {
            text.push_str(&format!("{} ({}): {note}\n", row.run, row.model));
        }
    }
    text
}

fn cells(row: &RunRow) -> Vec<String> {
    let number = |number: Option<usize>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
    let rates = row.prompts_per_second;
    let moving = matches!(row.state, State::Running | State::Publishing);
    let unknown = if moving { "unknown" } else { "-" };
    let eta = row.eta_seconds.map_or_else(|| unknown.to_owned(), short);
    vec![
        row.run.clone(),
        row.model.clone(),
        row.state.word().to_owned(),
        number(row.todo),
        number(row.committed),
        number(row.failed),
        rates.recent.map_or_else(|| unknown.to_owned(), rate),
        rates.overall.map_or_else(|| "-".to_owned(), rate),
        eta,
    ]
}

/// A run in one line, for logs.
pub fn line(row: &RunRow) -> String {
    let number = |number: Option<usize>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
    let mut line = format!(
        "{} {} {}: {} of {} prompts, {} failed",
        row.run,
        row.model,
        row.state.word(),
        number(row.committed),
        number(row.todo),
        number(row.failed)
    );
    if let Some(recent) = row.prompts_per_second.recent {
        line.push_str(&format!(", {}/s", rate(recent)));
    }
    if let Some(eta) = row.eta_seconds {
        line.push_str(&format!(", ETA {}", short(eta)));
    }
    line
}

fn rate(rate: f64) -> String {
    if rate >= 10.0 { format!("{rate:.0}") } else { format!("{rate:.2}") }
}

/// A time as exact as anybody wants it.
fn short(seconds: u64) -> String {
    let unit = match seconds {
        0..600 => 1,
        600..86_400 => 60,
        _ => 3600,
    };
    Span::seconds(seconds / unit * unit).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{report, row};

    #[test]
    fn a_person_sees_queues_waits_deaths_and_runs() {
        let text = text(&report(vec![row("r1", State::Running)]));
        assert_eq!(
            text,
            "namespace lenspool at amqp://h/\n\n\
             MODEL  READY  IN HAND  WORKERS\n\
             gpt2      12        -        3\n\
             2 jobs wait for another try (waits of 30s)\n\
             1 dead letter; `dispatcher dead list` says why:\n  \
               1 letter of gpt2, run r: 1 prompt\n\n\
             RUN  MODEL  STATE    PROMPTS  DONE  FAILED  NOW/S  ALL/S     ETA\n\
             r1   gpt2   running      100    40       2   2.00     12  1h 6m\n"
                .replace("     ETA\n", "    ETA\n")
        );
    }

    #[test]
    fn dead_letters_of_others_are_told_apart() {
        let mut report = report(Vec::new());
        report.dead.others = Some(3);
        let here =
            "1 dead letter (3 dead letters of other models or runs); `dispatcher dead list` says why:\n";
        assert!(dead(&report).starts_with(here), "{}", dead(&report));
        report.dead.by.clear();
        let none = "no dead letters of these (3 dead letters of other models or runs)\n";
        assert_eq!(dead(&report), none);
        (report.dead.looked, report.dead.others) = (false, None);
        assert_eq!(dead(&report), "1 dead letter, not all looked at: `dispatcher dead list` does\n");
    }

    #[test]
    fn what_does_not_move_has_no_estimate() {
        let mut still = row("r1", State::Running);
        still.prompts_per_second.recent = None;
        still.eta_seconds = None;
        let cells = cells(&still);
        assert_eq!((cells[6].as_str(), cells[8].as_str()), ("unknown", "unknown"));
        assert_eq!(line(&still), "r1 gpt2 running: 40 of 100 prompts, 2 failed");
        assert_eq!(
            line(&row("r1", State::Running)),
            "r1 gpt2 running: 40 of 100 prompts, 2 failed, 2.00/s, ETA 1h 6m"
        );
    }

    #[test]
    fn old_runs_that_are_over_do_not_bury_the_others() {
        let mut rows: Vec<_> = (0..30).map(|i| row(&format!("done{i}"), State::Done)).collect();
        rows.insert(0, row("old", State::Running));
        let text = runs(&report(rows));
        assert!(text.contains("old ") && text.contains("done29") && !text.contains("done19 "), "{text}");
        assert!(text.ends_with("and 20 older ones; --run RUN shows one\n"), "{text}");
    }
}
