//! How both commands talk: logs and progress to stderr, data (`--json`) to stdout.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    sync::LazyLock,
};

use indicatif::{MultiProgress, ProgressBar};
use tracing_subscriber::EnvFilter;

use crate::settings::{self, LogFormat};

/// Every bar of this process: log lines have to know them, or they tear them.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// stderr for log lines: takes the bars away while it writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct BesideBars;

impl Write for BesideBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The log target of progress: told also where a command else is brief, for a log that nobody watches has no bar.
pub const PROGRESS: &str = "progress";

/// Where progress goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// A bar on a terminal.
    Bar,
    /// A line every half minute.
    Log,
    /// Nothing.
    Quiet,
}

impl View {
    /// What suits where stderr goes.
    pub fn of_stderr(quiet: bool) -> View {
        match (quiet, io::stderr().is_terminal()) {
            (true, _) => View::Quiet,
            (false, true) => View::Bar,
            (false, false) => View::Log,
        }
    }
}

/// For a person: `1 prompt`, `2 prompts`.
pub fn counted(count: impl Into<u64>, one: &str) -> String {
    match count.into() {
        1 => format!("1 {one}"),
        count => format!("{count} {one}s"),
    }
}

/// Shows a bar among the others of this process.
pub fn add_bar(bar: ProgressBar) -> ProgressBar {
    BARS.add(bar)
}

/// Writes data to stdout. A reader that has seen enough, as `head` has, is no error.
pub fn say(data: impl Display) {
    let mut out = io::stdout().lock();
    let _ = write!(out, "{data}").and_then(|()| out.flush());
}

/// How much a command says by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Talk {
    /// Errors only.
    Quiet,
    /// Warnings; to a person at a terminal, also how things go on.
    Brief,
    /// How things go on, wherever it goes: for what runs for hours in a batch job.
    Full,
}

/// Starts the log, on stderr. What the settings or RUST_LOG ask for goes before `talk`.
pub fn start_log(log: Option<&settings::Log>, talk: Talk) {
    let terminal = io::stderr().is_terminal();
    let asked = log.map_or("warn", |log| log.filter.as_str());
    let told = talk == Talk::Full || (talk == Talk::Brief && terminal);
    let filter = if talk == Talk::Quiet {
        "error".to_owned()
    } else if asked == settings::Log::default().filter {
        let more = if told { ",worker=info,dispatcher=info,common=info" } else { "" };
        format!("{asked},{PROGRESS}=info{more}")
    } else {
        asked.to_owned()
    };
    let variable = if talk == Talk::Quiet { None } else { EnvFilter::try_from_default_env().ok() };
    // What lapin says of a lost connection is said again by us, with what to do.
    let filter = variable.unwrap_or_else(|| EnvFilter::new(format!("lapin=off,{filter}")));
    let log_lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(BesideBars::default);
    match log.map(|log| log.format) {
        Some(LogFormat::Json) => log_lines.json().init(),
        _ if terminal => log_lines.with_target(false).without_time().init(),
        _ => log_lines.with_target(false).with_ansi(false).init(),
    }
}

/// The kernel's high-water mark of this process's resident memory, in bytes.
pub fn peak_memory() -> Option<u64> {
    process_status("VmHWM:")
}

/// This process's resident memory now, in bytes.
pub fn resident_memory() -> Option<u64> {
    process_status("VmRSS:")
}

/// Bytes that the kernel says of this process under `name`.
fn process_status(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_told_as_one() {
        let told = [0_u64, 1, 2].map(|count| counted(count, "letter"));
        assert_eq!(told, ["0 letters", "1 letter", "2 letters"]);
    }
}
