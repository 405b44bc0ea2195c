//! The exit codes of both commands, by `sysexits.h` where it has one.

use std::process::ExitCode;

use crate::job::FailureKind;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for is on disk.
    Done = 0,
    /// Some prompts or lines failed; the rest is on disk and the summary names them.
    SomeFailed = 65,
    /// lenspool itself is wrong.
    Bug = 70,
    /// Trouble that may pass: storage, memory, the broker, the hub. Run the same command again.
    Transient = 75,
    /// Settings, model or prompt file: nothing will change until somebody changes them.
    Configuration = 78,
    /// Stopped by a signal after what was in hand; the same command goes on from there.
    Interrupted = 130,
}

impl Exit {
    /// The exit a process's code stands for; none where it is none of ours.
    pub fn of_code(code: i32) -> Option<Exit> {
        use Exit::{Bug, Configuration, Done, Interrupted, SomeFailed, Transient};
        [Done, SomeFailed, Bug, Transient, Configuration, Interrupted]
            .into_iter()
            .find(|exit| i32::from(*exit as u8) == code)
    }
}

impl From<FailureKind> for Exit {
    fn from(kind: FailureKind) -> Exit {
        match kind {
            FailureKind::Retryable => Exit::Transient,
            FailureKind::Permanent => Exit::Configuration,
            FailureKind::Bug => Exit::Bug,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}
