//! Reading the journals of a model, all at once or what is new since the last look.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::Line;
use crate::{
    job::RunId,
    store::{
        error::{Context, Op, StoreError},
        layout::ModelLayout,
        writer::WriterId,
    },
};

/// Read at once.
const BLOCK: u64 = 4 << 20;

/// Reads journals as they grow.
#[derive(Debug)]
pub struct JournalReader {
    model: ModelLayout,
    run: Option<RunId>,
    /// How much of each file was read: whole lines.
    read: HashMap<PathBuf, u64>,
}

impl JournalReader {
    /// A reader of `model`'s journals, of `run` alone where one is given.
    pub fn new(model: &ModelLayout, run: Option<&RunId>) -> Self {
        JournalReader { model: model.clone(), run: run.cloned(), read: HashMap::new() }
    }

    /// Hands out every line not handed out before, in the order of each file. A last line without its
    /// end is left for the next time; lines that cannot be read are skipped.
    pub fn poll(&mut self, mut take: impl FnMut(&WriterId, Line)) -> Result<(), StoreError> {
        for path in super::files(&self.model)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(writer) = name.strip_suffix(".jsonl").and_then(WriterId::parse) else { continue };
            if self.run.as_ref().is_some_and(|run| !writer.works_for(run)) {
                continue;
            }
            let offset = self.read.get(&path).copied().unwrap_or(0);
            let read = read_from(&path, offset, |line| take(&writer, line)).on(Op::Read, &path)?;
            self.read.insert(path, read);
        }
        Ok(())
    }
}

/// Reads the whole lines from `offset` on; returns where they end.
fn read_from(path: &Path, mut offset: u64, mut take: impl FnMut(Line)) -> io::Result<u64> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(offset),
        Err(error) => return Err(error),
    };
    file.seek(SeekFrom::Start(offset))?;
    let mut block = Vec::new();
    loop {
        let read = (&file).take(BLOCK).read_to_end(&mut block)?;
        if let Some(last) = block.iter().rposition(|&byte| byte == b'\n') {
            for line in block[..last].split(|&byte| byte == b'\n') {
                if let Ok(line) = serde_json::from_slice(line) {
                    take(line);
                }
            }
            block.drain(..=last);
            offset += last as u64 + 1;
        }
        if read == 0 {
            return Ok(offset);
        }
    }
}
