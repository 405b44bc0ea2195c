//! The tokens of as many prompts as there are, on all cores, in memory that does not grow with them.

use std::{
    io::{self, Write},
    sync::Arc,
};

use rayon::prelude::*;

use super::{OnTooLong, PromptTokenizer, TokenizeFailure, TokenizeReason, job_prompt};
use crate::{
    job::JobPrompt,
    plan::PlanItem,
    prompt::{Json, PromptSet},
    spool::{Span, Spool, SpoolError, SpoolOptions, SpoolWriter},
};

/// Prompts tokenized at once; what is in memory at a time.
const CHUNK: usize = 2048;

/// What tokenizing met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizeReport {
    /// Prompts tokenized and ready.
    pub prompts: usize,
    /// Their tokens, BOS counted.
    pub tokens: u64,
    /// The longest one's length, BOS counted.
    pub longest: usize,
    /// Prompts cut to `n_ctx`.
    pub truncated: usize,
    /// Prompts left out because they were over `n_ctx`.
    pub skipped: usize,
}

#[derive(Debug)]
struct Entry {
    /// Which prompt of the set.
    prompt: usize,
    /// Its ids, as little-endian u32.
    ids: Span,
    n: u32,
    message_bytes: u32,
    /// Whether a token's string is something else than the vocabulary's for its id.
    odd: bool,
}

/// Tokenized prompts, to be planned by their lengths and fetched batch by batch.
#[derive(Debug)]
pub struct TokenizedSet {
    tokenizer: Arc<PromptTokenizer>,
    prompts: Arc<PromptSet>,
    entries: Vec<Entry>,
    ids: Spool,
    /// Prompts that could not be tokenized.
    pub failures: Vec<TokenizeFailure>,
    /// What tokenizing met.
    pub report: TokenizeReport,
}

/// One prompt's way through a chunk.
struct Tokenized {
    ids: Vec<u32>,
    message_bytes: usize,
    truncated: bool,
    odd: bool,
}

impl TokenizedSet {
    /// Tokenizes those of `prompts` whose indices `wanted` gives (the ones not computed yet). `progress`
    /// is told now and then how many prompts were gone through.
    pub fn new(
        tokenizer: Arc<PromptTokenizer>,
        prompts: Arc<PromptSet>,
        wanted: &[usize],
        spool: SpoolOptions,
        mut progress: impl FnMut(usize),
    ) -> Result<Self, SpoolError> {
        let mut entries = Vec::with_capacity(wanted.len());
        let mut ids = SpoolWriter::new(spool);
        let mut failures = Vec::new();
        let mut report = TokenizeReport::default();
        let mut bytes = Vec::new();
        let skip = tokenizer.options().on_too_long == OnTooLong::Skip;
        for (chunk_at, chunk) in wanted.chunks(CHUNK).enumerate() {
            let tokenized: Vec<_> = chunk
                .par_iter()
                .map(|&at| tokenize_one(&tokenizer, &prompts, at))
                .collect::<Result<_, _>>()?;
            for (&prompt, tokenized) in chunk.iter().zip(tokenized) {
                let one = match tokenized {
                    Ok(one) => one,
                    Err(failure) if skip && matches!(failure.reason, TokenizeReason::TooLong { .. }) => {
                        report.skipped += 1;
                        continue;
                    }
                    Err(failure) => {
                        failures.push(failure);
                        continue;
                    }
                };
                bytes.clear();
                bytes.extend(one.ids.iter().flat_map(|id| id.to_le_bytes()));
                let n = one.ids.len();
                report.prompts += 1;
                report.tokens += n as u64;
                report.longest = report.longest.max(n);
                report.truncated += usize::from(one.truncated);
                entries.push(Entry {
                    prompt,
                    ids: ids.append(&bytes)?,
                    n: u32::try_from(n).unwrap_or(u32::MAX),
                    message_bytes: u32::try_from(one.message_bytes).unwrap_or(u32::MAX),
                    odd: one.odd,
                });
            }
            progress(chunk_at * CHUNK + chunk.len());
        }
        Ok(TokenizedSet { tokenizer, prompts, entries, ids: ids.finish()?, failures, report })
    }

    /// What the planner needs of each prompt; a batch's members are indices into this list.
    pub fn items(&self) -> Vec<PlanItem<'_>> {
        let item = |entry: &Entry| PlanItem {
            hash: self.prompts.hash(entry.prompt),
            n: entry.n as usize,
            message_bytes: entry.message_bytes as usize,
        };
        self.entries.iter().map(item).collect()
    }

    /// The prompts of a batch, ready for a job.
    pub fn job_prompts(&self, members: &[usize]) -> Result<Vec<JobPrompt>, SpoolError> {
        members.iter().map(|&at| self.job_prompt(&self.entries[at])).collect()
    }

    fn job_prompt(&self, entry: &Entry) -> Result<JobPrompt, SpoolError> {
        let prompt = self.prompts.get(entry.prompt)?;
        if entry.odd {
            let again = self.tokenizer.job_prompt(prompt);
            return Ok(again.expect("a text that was tokenized once can be again"));
        }
        let bytes = self.ids.read(entry.ids)?;
        let (ids, _) = bytes.as_chunks::<4>();
        let ids: Vec<u32> = ids.iter().map(|id| u32::from_le_bytes(*id)).collect();
        let strings: Vec<Json> = self.tokenizer.strings_of(&ids).map(Json::from).collect();
        Ok(job_prompt(prompt, ids, strings))
    }
}

fn tokenize_one(
    tokenizer: &PromptTokenizer,
    prompts: &PromptSet,
    at: usize,
) -> Result<Result<Tokenized, TokenizeFailure>, SpoolError> {
    let prompt = prompts.get(at)?;
    let tokens = match tokenizer.tokens(prompt.text()) {
        Ok(tokens) => tokens,
        Err(reason) => return Ok(Err(TokenizeFailure { hash: prompt.into_parts().1, reason })),
    };
    let odd = !tokenizer.strings_of(&tokens.ids).eq(&tokens.strings);
    let truncated = tokens.truncated_from.is_some();
    let ready = job_prompt(prompt, tokens.ids, tokens.strings);
    let mut count = Count(0);
    serde_json::to_writer(&mut count, &ready).expect("a prompt is plain data");
    Ok(Ok(Tokenized { ids: ready.ids, message_bytes: count.0, truncated, odd }))
}

/// Counts what is written.
struct Count(usize);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
