//! What loading a prompt file met: every line it passed over, with the reason.

use std::{fmt, path::PathBuf};

use crate::{prompt::PromptHash, talk::PROGRESS};

/// Of bad lines and of conflicts this many are kept to be shown; all are counted.
pub const MAX_SHOWN: usize = 1000;

/// A line that is no prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Line, from 1.
    pub line: usize,
    /// Column in code points, from 1.
    pub column: usize,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

/// A prompt that was left out because another one with another text has its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The hash both carry.
    pub hash: PromptHash,
    /// The line that was kept.
    pub kept_line: usize,
    /// The line that was left out.
    pub line: usize,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}: left out, because line {} has the same hash {} with another text; \
             remove \"hash\" from one of them to have it computed",
            self.line, self.kept_line, self.hash
        )
    }
}

/// What loading met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// The file.
    pub path: PathBuf,
    /// Lines read, blank and bad ones too.
    pub lines: usize,
    /// Blank lines.
    pub blank: usize,
    /// How many lines were bad.
    pub bad_lines: usize,
    /// The first [`MAX_SHOWN`] of them.
    pub bad: Vec<BadLine>,
    /// Prompts whose text and hash came before.
    pub duplicates: usize,
    /// Prompts whose hash came before with another text.
    pub conflicting: usize,
    /// The first [`MAX_SHOWN`] of them.
    pub conflicts: Vec<Conflict>,
    /// Texts and last pieces of texts under `--min-chars`.
    pub too_short: usize,
    /// Lines over `--max-chars`, which were split.
    pub split: usize,
    /// Lines whose "meta" was no object and was wrapped as `{"value": …}`.
    pub meta_wrapped: usize,
    /// Prompts left out because of `--n-samples`; of those lines only that were read.
    pub beyond_n_samples: usize,
    /// Whether reading ended early, because `--n-samples` were found.
    pub stopped_early: bool,
    /// The seed of the shuffle, to be given again for the same order.
    pub seed: Option<u64>,
    /// Prompts loaded.
    pub prompts: usize,
}

/// Bad lines and hash conflicts told one by one; more are only counted.
const LINES_TOLD: usize = 20;

impl LoadReport {
    /// Says what was found in the file in the log, bad lines by name.
    pub fn tell(&self) {
        for line in self.bad_lines_located().take(LINES_TOLD) {
            tracing::warn!("{line}");
        }
        if self.bad_lines > LINES_TOLD {
            tracing::warn!("and {} more bad lines", self.bad_lines - LINES_TOLD);
        }
        for conflict in self.conflicts.iter().take(LINES_TOLD) {
            tracing::warn!("{}: {conflict}", self.path.display());
        }
        if let Some(seed) = self.seed {
            // At once, not at the end: whoever is killed before goes on with it.
            tracing::info!(target: PROGRESS, "{}: shuffled with --seed {seed}", self.path.display());
        }
        tracing::info!(
            "{}: {} prompts from {} lines ({} blank, {} bad, {} duplicates, {} too short, {} split)",
            self.path.display(),
            self.prompts,
            self.lines,
            self.blank,
            self.bad_lines,
            self.duplicates,
            self.too_short,
            self.split
        );
    }

    /// Why nothing came of it, and what to do.
    pub(super) fn no_prompts(&self) -> String {
        let LoadReport { path, lines, blank, bad_lines, too_short, .. } = self;
        let advice = match self.bad.first() {
            Some(bad) => format!("the first bad line is {bad}"),
            None if *too_short > 0 => "lower --min-chars, or raise --max-chars".to_owned(),
            None => "give a file with an object like {\"text\": \"...\"} on each line".to_owned(),
        };
        let path = path.display();
        format!(
            "{path} has no usable prompt ({lines} lines: {blank} blank, {bad_lines} bad; {too_short} texts too short): {advice}"
        )
    }

    /// The shown bad lines as editors understand them: `file:line:column: message`.
    pub fn bad_lines_located(&self) -> impl Iterator<Item = String> {
        self.bad
            .iter()
            .map(|bad| format!("{}:{}:{}: {}", self.path.display(), bad.line, bad.column, bad.message))
    }
}
