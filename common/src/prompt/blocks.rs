//! A file in blocks of whole lines, so that gigabytes pass through a few megabytes of memory.

use std::io::{self, Read};

/// Lines are handed out in blocks of about this many bytes.
const BLOCK: usize = 4 << 20;

/// A longer line is not read, only counted: no prompt is that long, but a file without newlines may be.
pub(super) const MAX_LINE: usize = 256 << 20;

/// Some whole lines.
#[derive(Debug)]
pub(super) struct Block {
    bytes: Vec<u8>,
    /// The number of the first line, from 1.
    first: usize,
    /// Whether the last line was longer than [`MAX_LINE`] and is not here whole.
    pub(super) last_is_cut: bool,
}

impl Block {
    /// The lines with their numbers, without their line ends.
    pub(super) fn lines(&self) -> Vec<(usize, &[u8])> {
        let mut lines: Vec<_> = self.bytes.split(|&byte| byte == b'\n').collect();
        // What follows the last newline is nothing, unless the file ends without one.
        if lines.last().is_some_and(|line| line.is_empty()) {
            lines.pop();
        }
        lines.into_iter().enumerate().map(|(at, line)| (self.first + at, line)).collect()
    }
}

/// Hands out the blocks of a file.
pub(super) struct Blocks<R> {
    input: R,
    /// The beginning of a line whose end was not read yet.
    rest: Vec<u8>,
    next_line: usize,
    ended: bool,
}

impl<R: Read> Blocks<R> {
    pub(super) fn new(input: R) -> Self {
        Blocks { input, rest: Vec::new(), next_line: 1, ended: false }
    }

    /// The next block, or `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Block>> {
        let mut bytes = std::mem::take(&mut self.rest);
        let mut searched = 0;
        loop {
            if self.ended {
                return Ok((!bytes.is_empty()).then(|| self.block(bytes, false)));
            }
            let read = self.input.by_ref().take(BLOCK as u64).read_to_end(&mut bytes)?;
            if read == 0 {
                self.ended = true;
                continue;
            }
            if let Some(last) = bytes[searched..].iter().rposition(|&byte| byte == b'\n') {
                self.rest = bytes.split_off(searched + last + 1);
                return Ok(Some(self.block(bytes, false)));
            }
            searched = bytes.len();
            if bytes.len() > MAX_LINE {
                self.skip_line()?;
                bytes.truncate(1);
                return Ok(Some(self.block(bytes, true)));
            }
        }
    }

    fn block(&mut self, bytes: Vec<u8>, last_is_cut: bool) -> Block {
        let block = Block { bytes, first: self.next_line, last_is_cut };
        self.next_line += block.lines().len();
        block
    }

    /// Reads past the next newline.
    fn skip_line(&mut self) -> io::Result<()> {
        let mut chunk = Vec::new();
        loop {
            chunk.clear();
            if self.input.by_ref().take(BLOCK as u64).read_to_end(&mut chunk)? == 0 {
                self.ended = true;
                return Ok(());
            }
            if let Some(at) = chunk.iter().position(|&byte| byte == b'\n') {
                self.rest = chunk.split_off(at + 1);
                return Ok(());
            }
        }
    }
}
