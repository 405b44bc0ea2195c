//! The prompts of a run, as many as there are: hashes at hand, records in a spool until wanted.

use super::{Prompt, PromptHash, Record};
use crate::spool::{Span, Spool, SpoolError, SpoolOptions, SpoolWriter};

/// A list of prompts that takes about 100 bytes of memory a prompt, whatever their length.
#[derive(Debug)]
pub struct PromptSet {
    entries: Vec<Entry>,
    spool: Spool,
}

#[derive(Clone, Debug)]
struct Entry {
    hash: PromptHash,
    span: Span,
}

/// A [`PromptSet`] being filled.
#[derive(Debug)]
pub struct PromptSetWriter {
    entries: Vec<Entry>,
    spool: SpoolWriter,
}

impl PromptSetWriter {
    /// An empty set.
    pub fn new(options: SpoolOptions) -> Self {
        PromptSetWriter { entries: Vec::new(), spool: SpoolWriter::new(options) }
    }

    /// Adds a prompt at the end.
    pub fn push(&mut self, prompt: &Prompt) -> Result<(), SpoolError> {
        self.push_text(prompt.hash().clone(), &prompt.record().to_compact_utf8())
    }

    /// Adds a prompt whose record was written by [`Record::to_compact_utf8`].
    pub(super) fn push_text(&mut self, hash: PromptHash, record: &str) -> Result<(), SpoolError> {
        let span = self.spool.append(record.as_bytes())?;
        self.entries.push(Entry { hash, span });
        Ok(())
    }

    /// How many prompts were added.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Ends the filling; `order` may rearrange and shorten the list of prompt indices.
    pub fn finish(self, order: impl FnOnce(&mut Vec<usize>)) -> Result<PromptSet, SpoolError> {
        let mut indices: Vec<usize> = (0..self.entries.len()).collect();
        order(&mut indices);
        let in_place = indices.iter().copied().eq(0..self.entries.len());
        let entries = if in_place {
            self.entries
        } else {
            indices.into_iter().map(|at| self.entries[at].clone()).collect()
        };
        Ok(PromptSet { entries, spool: self.spool.finish()? })
    }
}

impl PromptSet {
    /// A set of prompts that are in memory already.
    pub fn from_prompts<'p>(prompts: impl IntoIterator<Item = &'p Prompt>) -> Result<Self, SpoolError> {
        let mut writer = PromptSetWriter::new(SpoolOptions::default());
        for prompt in prompts {
            writer.push(prompt)?;
        }
        writer.finish(|_| ())
    }

    /// How many prompts there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The hash of prompt `at`, from 0, in the order of the run.
    pub fn hash(&self, at: usize) -> &PromptHash {
        &self.entries[at].hash
    }

    /// All hashes in order.
    pub fn hashes(&self) -> impl ExactSizeIterator<Item = &PromptHash> {
        self.entries.iter().map(|entry| &entry.hash)
    }

    /// Prompt `at`, read back from the spool.
    pub fn get(&self, at: usize) -> Result<Prompt, SpoolError> {
        let entry = &self.entries[at];
        let bytes = self.spool.read(entry.span)?;
        let text = std::str::from_utf8(&bytes).expect("the spool holds text");
        let record = Record::parse(text).expect("the spool holds records");
        Ok(Prompt { record, hash: entry.hash.clone() })
    }

    /// Whether the records outgrew memory and lie in a temporary file.
    pub fn is_on_disk(&self) -> bool {
        self.spool.is_on_disk()
    }
}
