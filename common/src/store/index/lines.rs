//! The lines of a prompts.jsonl as it is: whose they are and where they lie.

use std::{
    fs::File,
    io::{self, Read},
};

use rayon::prelude::*;
use serde::Deserialize;

use crate::prompt::{Json, PromptHash, Record};

/// Read at once.
const BLOCK: usize = 8 << 20;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) hash: PromptHash,
    /// Where it begins.
    pub(super) at: u64,
    /// Its length, newline included.
    pub(super) len: u64,
}

/// All of them, in the file's order.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) lines: Vec<Line>,
    /// Whether every byte of the file belongs to one of them.
    pub(super) is_clean: bool,
    /// The file's length.
    pub(super) bytes: u64,
}

impl Default for Lines {
    fn default() -> Self {
        Lines { lines: Vec::new(), is_clean: true, bytes: 0 }
    }
}

impl Lines {
    /// Whether this is a file as we write it: nothing but lines, in order, each prompt once.
    pub(super) fn is_orderly(&self) -> bool {
        self.is_clean && self.lines.is_sorted_by(|a, b| a.hash < b.hash)
    }
}

/// Reads the file from its beginning; what cannot be a prompt's line is skipped.
pub(super) fn read(file: &File) -> io::Result<Lines> {
    let mut found = Lines::default();
    let mut block = Vec::new();
    loop {
        let before = block.len();
        let read = file.take(BLOCK as u64).read_to_end(&mut block)?;
        // Up to the last newline; the rest belongs to a line that goes on in the next block.
        let Some(end) = block[before..].iter().rposition(|&byte| byte == b'\n').map(|at| before + at + 1)
        else {
            if read == 0 {
                break;
            }
            continue;
        };
        take(&block[..end], &mut found);
        block.drain(..end);
    }
    if !block.is_empty() {
        found.is_clean = false;
        found.bytes += block.len() as u64;
    }
    Ok(found)
}

/// Takes whole lines.
fn take(block: &[u8], found: &mut Lines) {
    let lines: Vec<&[u8]> = block.split_inclusive(|&byte| byte == b'\n').collect();
    let hashes: Vec<Option<PromptHash>> =
        lines.par_iter().with_min_len(16).map(|line| hash_of(&line[..line.len() - 1]).ok()).collect();
    for (line, hash) in lines.into_iter().zip(hashes) {
        let (at, len) = (found.bytes, line.len() as u64);
        found.bytes += len;
        match hash {
            Some(hash) => found.lines.push(Line { hash, at, len }),
            None => found.is_clean = false,
        }
    }
}

#[derive(Deserialize)]
struct Hashed {
    hash: PromptHash,
}

/// The "hash" of a prompt's JSON object, or why the text is none.
pub(super) fn hash_of(text: &[u8]) -> Result<PromptHash, String> {
    if let Ok(Hashed { hash }) = serde_json::from_slice(text) {
        return Ok(hash);
    }
    // Python also writes NaN and Infinity; and this tells better what is wrong.
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    let record = Record::parse(text).map_err(|error| error.to_string())?;
    let hash = record.get("hash").and_then(Json::as_str).ok_or("it has no \"hash\"")?;
    PromptHash::try_from(hash.to_owned()).map_err(|error| error.to_string())
}
