//! Reads a prompt file: JSONL in, a [`PromptSet`] and a report of what was passed over out.
//!
//! pattern_lens's `load_text_data`, with better manners: a bad line is named and the rest goes on, a
//! blank line is nothing, a text that comes twice is computed once, a shuffle can be repeated.
//! Tokens are [`crate::tokenize`]'s, what is computed already is [`crate::store`]'s.

mod report;

use std::{
    collections::{HashMap, hash_map::Entry},
    fs::File,
    io,
    path::{Component, Path, PathBuf},
};

use rayon::prelude::*;

pub use report::{BadLine, Conflict, LoadReport, MAX_SHOWN};

use super::{
    PromptHash, PromptSet, PromptSetWriter,
    blocks::{Blocks, MAX_LINE},
    line::{self, Line, RawRules, ReadyPrompt, TextDigest},
    shuffle,
};
use crate::spool::{SpoolError, SpoolOptions};

/// Which prompts to take from which file.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The JSONL file. Without `--prompts` the caller gives the model's own prompts.jsonl.
    pub path: PathBuf,
    /// `--raw-prompts`: note the file's name, drop short texts, split long ones. Otherwise each line
    /// is a prompt as it is and the lengths are not looked at.
    pub raw: bool,
    /// `--min-chars` and `--max-chars`.
    pub lengths: LengthRules,
    /// `--shuffle`.
    pub shuffle: bool,
    /// `--seed` of the shuffle; without one a fresh one is drawn and reported.
    pub seed: Option<u64>,
    /// `--n-samples`: take the first so many distinct prompts, after the shuffle.
    pub n_samples: Option<usize>,
    /// Where the prompts wait.
    pub spool: SpoolOptions,
}

impl LoadOptions {
    /// The options a user gets who gives none.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        LoadOptions {
            path: path.into(),
            raw: false,
            lengths: LengthRules::default(),
            shuffle: false,
            seed: None,
            n_samples: None,
            spool: SpoolOptions::default(),
        }
    }
}

/// How long a raw prompt may be, in code points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthRules {
    /// Shorter texts are dropped.
    pub min_chars: usize,
    /// Longer texts are split into pieces of this length.
    pub max_chars: usize,
}

impl Default for LengthRules {
    fn default() -> Self {
        LengthRules { min_chars: 100, max_chars: 1000 }
    }
}

/// The prompts of a file and what was passed over on the way.
#[derive(Debug)]
pub struct Loaded {
    /// The prompts in the order of the run.
    pub prompts: PromptSet,
    /// What happened.
    pub report: LoadReport,
}

/// Loading gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The options contradict themselves.
    #[error("{0}")]
    Options(String),
    /// The file could not be opened or read.
    #[error("could not read the prompts in {}: {source}; --prompts names the file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file was read and no prompt was found.
    #[error("{}", .0.no_prompts())]
    NoPrompts(Box<LoadReport>),
    /// What was read could not be kept.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// Loads the prompts of a file. Uses all cores; takes memory for the hashes and up to
/// [`SpoolOptions::memory`] for the rest, however long the file is.
pub fn load(options: &LoadOptions) -> Result<Loaded, LoadError> {
    if options.raw && options.lengths.max_chars == 0 {
        return Err(LoadError::Options("--max-chars must be at least 1".to_owned()));
    }
    if options.n_samples == Some(0) {
        return Err(LoadError::Options("--n-samples must be at least 1".to_owned()));
    }
    let raw = options
        .raw
        .then(|| RawRules { lengths: options.lengths, source_fname: python_posix_path(&options.path) });
    let io_error = |source| LoadError::Read { path: options.path.clone(), source };
    // Without a shuffle the first prompts are known once they are read.
    let wanted = options.n_samples.filter(|_| !options.shuffle).unwrap_or(usize::MAX);

    let mut collector = Collector::new(options);
    let mut blocks = Blocks::new(File::open(&options.path).map_err(io_error)?);
    while let Some(block) = blocks.next().map_err(io_error)? {
        let lines = block.lines();
        let last = lines.last().map_or(0, |&(number, _)| number);
        let read: Vec<_> = lines
            .into_par_iter()
            .map(|(number, bytes)| match block.last_is_cut && number == last {
                true => (number, Line::Bad(overlong(number))),
                false => (number, line::read(bytes, number, raw.as_ref())),
            })
            .collect();
        for (number, line) in read {
            collector.take(number, line)?;
            if collector.prompts.len() >= wanted {
                collector.report.stopped_early = true;
                break;
            }
        }
        if collector.report.stopped_early {
            break;
        }
    }
    collector.finish(options)
}

fn overlong(number: usize) -> BadLine {
    let message =
        format!("the line is longer than {} MiB; is the file JSONL, an object a line?", MAX_LINE >> 20);
    BadLine { line: number, column: 1, message }
}

/// Gathers the lines in order: what is a duplicate depends on what came before.
struct Collector {
    prompts: PromptSetWriter,
    /// Each hash met, with the text it stands for and its line.
    seen: HashMap<PromptHash, (TextDigest, usize)>,
    report: LoadReport,
}

impl Collector {
    fn new(options: &LoadOptions) -> Self {
        Collector {
            prompts: PromptSetWriter::new(options.spool.clone()),
            seen: HashMap::new(),
            report: LoadReport { path: options.path.clone(), ..LoadReport::default() },
        }
    }

    fn take(&mut self, number: usize, line: Line) -> Result<(), SpoolError> {
        let report = &mut self.report;
        report.lines += 1;
        match line {
            Line::Blank => report.blank += 1,
            Line::Bad(bad) => {
                report.bad_lines += 1;
                if report.bad.len() < MAX_SHOWN {
                    report.bad.push(bad);
                }
            }
            Line::Good(good) => {
                report.split += usize::from(good.split);
                report.meta_wrapped += usize::from(good.meta_wrapped);
                report.too_short += good.too_short;
                for prompt in good.prompts {
                    self.take_prompt(number, prompt)?;
                }
            }
        }
        Ok(())
    }

    fn take_prompt(&mut self, line: usize, prompt: ReadyPrompt) -> Result<(), SpoolError> {
        match self.seen.entry(prompt.hash) {
            Entry::Vacant(place) => {
                self.prompts.push_text(place.key().clone(), &prompt.record)?;
                place.insert((prompt.digest, line));
            }
            Entry::Occupied(known) => {
                let &(digest, kept_line) = known.get();
                if digest == prompt.digest {
                    self.report.duplicates += 1;
                } else {
                    self.report.conflicting += 1;
                    if self.report.conflicts.len() < MAX_SHOWN {
                        let hash = known.key().clone();
                        self.report.conflicts.push(Conflict { hash, kept_line, line });
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(self, options: &LoadOptions) -> Result<Loaded, LoadError> {
        let Collector { prompts, seen, mut report } = self;
        drop(seen);
        if prompts.is_empty() {
            return Err(LoadError::NoPrompts(Box::new(report)));
        }
        let found = prompts.len();
        if options.shuffle {
            // 32 bits: short enough to be typed again, and exact in every JSON reader.
            report.seed = Some(options.seed.unwrap_or_else(|| rand::random::<u32>().into()));
        }
        let prompts = prompts.finish(|order| {
            if let Some(seed) = report.seed {
                shuffle::shuffle(order, seed);
            }
            order.truncate(options.n_samples.unwrap_or(usize::MAX));
        })?;
        report.beyond_n_samples = found - prompts.len();
        report.prompts = prompts.len();
        Ok(Loaded { prompts, report })
    }
}

/// `pathlib.Path(path).as_posix()`: no `.` components and no doubled slashes, `..` kept.
fn python_posix_path(path: &Path) -> String {
    let mut out = String::new();
    // POSIX leaves the meaning of exactly two leading slashes open, so Python keeps them.
    let text = path.to_string_lossy();
    if text.starts_with("//") && !text.starts_with("///") {
        out.push('/');
    }
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::RootDir => out.push('/'),
            other => {
                if !out.is_empty() && !out.ends_with('/') {
                    out.push('/');
                }
                out.push_str(&other.as_os_str().to_string_lossy());
            }
        }
    }
    if out.is_empty() { ".".to_owned() } else { out }
}

#[cfg(test)]
mod tests;
