//! prompts.jsonl: the prompt.json of every complete prompt, one a line, in order of the hashes (as bytes).
//!
//! The order is that of the set alone, so any number of workers end with the bytes a single run would
//! have written. A prompt is complete when prompt.json and a file of arrays, layer by layer or stacked,
//! exist. A line stays as it is while its prompt.json is older than the index and of the line's length:
//! the index carries the time at which its writer began to look (see [`shared`]), so what was committed
//! meanwhile is newer.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    os::fd::OwnedFd,
};

use rayon::prelude::*;
use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags},
    io::Errno,
};

use super::{IndexReport, lines};
use crate::{
    prompt::PromptHash,
    store::{
        commit::Store,
        error::{Context, Op, StoreError},
        layout::{ModelLayout, NPZ, PROMPT_JSON, STACKED},
        shared::{self, Base, Replaced},
    },
};

/// How often an update begins again because prompts were committed while it ran. Whoever committed
/// them updates after their own last commit, so this only spares readers a wait.
const ROUNDS: usize = 3;
/// New lines read at once: what bounds memory.
const READ_AT_ONCE: usize = 1024;

/// Which prompts an update looks at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Candidates<'a> {
    /// All there are.
    Listing,
    /// These; the lines of others stay.
    These(&'a [PromptHash]),
}

/// Where a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The index as it is: offset and length, newline included.
    Line { at: u64, len: u64 },
    /// Its prompt.json.
    Prompt,
}

#[derive(Debug)]
struct Item {
    hash: PromptHash,
    source: Source,
}

pub(super) fn update(
    store: &Store,
    model: &ModelLayout,
    candidates: Candidates<'_>,
) -> Result<IndexReport, StoreError> {
    let target = model.prompts_jsonl();
    let mut report = IndexReport::default();
    if !model.dir().is_dir() {
        return Ok(report);
    }
    for _ in 0..ROUNDS {
        let mut looked_at = Vec::new();
        let replaced = shared::replace(store, &target, |base, out| {
            report = IndexReport::default();
            build(model, candidates, base, out, &mut report, &mut looked_at)
        })?;
        if replaced == Replaced::Unneeded || matches!(candidates, Candidates::These(_)) {
            break;
        }
        // Commits that came in between: a newcomer's files, not just its directory, must be there.
        let dir = open(model)?;
        let Some(dir) = dir else { break };
        let mut newcomers = list(&dir, model)?;
        newcomers.retain(|hash| looked_at.binary_search(hash).is_err());
        let name = &mut String::new();
        let mut complete = false;
        for hash in &newcomers {
            complete |= state(&dir, model, hash, name)?.is_some();
        }
        if !complete {
            break;
        }
    }
    Ok(report)
}

fn build(
    model: &ModelLayout,
    candidates: Candidates<'_>,
    base: &Base,
    out: &mut impl Write,
    report: &mut IndexReport,
    looked_at: &mut Vec<PromptHash>,
) -> Result<Replaced, StoreError> {
    let path = model.prompts_jsonl();
    let old = match base.file() {
        Some(file) => lines::read(file).on(Op::Read, &path)?,
        None => lines::Lines::default(),
    };
    let Some(dir) = open(model)? else {
        report.dropped = old.lines.len();
        return Ok(if base.file().is_some() && old.bytes == 0 { Replaced::Unneeded } else { Replaced::Yes });
    };
    let there: HashMap<&PromptHash, (u64, u64)> =
        old.lines.iter().map(|line| (&line.hash, (line.at, line.len))).collect();
    let line_of = |hash: &PromptHash| there.get(hash).map(|&(at, len)| Source::Line { at, len });

    // Bad lines may have been prompts of any name, so only a listing can mend them.
    *looked_at = match candidates {
        Candidates::These(hashes) if old.is_clean => hashes.to_vec(),
        _ => list(&dir, model)?,
    };
    looked_at.sort_unstable();
    looked_at.dedup();

    let looked: Vec<Option<Source>> = looked_at
        .par_iter()
        .with_min_len(64)
        .map_init(String::new, |name, hash| {
            let Some(json) = state(&dir, model, hash, name)? else { return Ok(None) };
            let line = there.get(hash).filter(|&&(_, len)| {
                json.size + 1 == len && base.modified().is_some_and(|modified| json.modified < modified)
            });
            Ok(Some(line.map_or(Source::Prompt, |&(at, len)| Source::Line { at, len })))
        })
        .collect::<Result<_, StoreError>>()?;

    let mut items: Vec<Item> = Vec::with_capacity(looked_at.len());
    for (hash, source) in looked_at.iter().zip(looked) {
        items.extend(source.map(|source| Item { hash: hash.clone(), source }));
    }
    if matches!(candidates, Candidates::These(_)) && old.is_clean {
        let others = old.lines.iter().filter(|line| looked_at.binary_search(&line.hash).is_err());
        items.extend(others.map(|line| Item {
            hash: line.hash.clone(),
            source: line_of(&line.hash).unwrap_or(Source::Prompt),
        }));
        items.sort_unstable_by(|a, b| a.hash.cmp(&b.hash));
    }

    let stays = items.iter().filter(|item| item.source != Source::Prompt).count();
    report.read = items.len() - stays;
    report.dropped =
        there.keys().filter(|hash| items.binary_search_by(|item| item.hash.cmp(hash)).is_err()).count();
    report.lines = items.len();
    if base.file().is_some() && old.is_orderly() && stays == items.len() && stays == old.lines.len() {
        return Ok(Replaced::Unneeded);
    }
    write(model, base, &items, out, report)?;
    Ok(Replaced::Yes)
}

/// Writes the lines in order: runs of old lines are copied, new ones are read by all cores.
fn write(
    model: &ModelLayout,
    base: &Base,
    items: &[Item],
    out: &mut impl Write,
    report: &mut IndexReport,
) -> Result<(), StoreError> {
    let path = model.prompts_jsonl();
    for part in items.chunks(READ_AT_ONCE) {
        let new: Vec<Option<io::Result<Made>>> = part
            .par_iter()
            .map(|item| (item.source == Source::Prompt).then(|| read_prompt(model, &item.hash)))
            .collect();
        let mut run = 0..0;
        for (item, new) in part.iter().zip(new) {
            match (item.source, new) {
                (Source::Line { at, len }, _) if at == run.end => run.end = at + len,
                (Source::Line { at, len }, _) => {
                    copy(base, std::mem::replace(&mut run, at..at + len), out).on(Op::Write, &path)?;
                }
                (Source::Prompt, new) => {
                    copy(base, std::mem::replace(&mut run, 0..0), out).on(Op::Write, &path)?;
                    match new.expect("read above").on(Op::Read, model.prompt_json(&item.hash))? {
                        Made::Line(line) => out.write_all(&line).on(Op::Write, &path)?,
                        Made::Nothing(reason) => {
                            report.lines -= 1;
                            report.read -= 1;
                            report.leave_out(model.prompt_json(&item.hash), reason);
                        }
                    }
                }
            }
        }
        copy(base, run, out).on(Op::Write, &path)?;
    }
    Ok(())
}

fn copy(base: &Base, range: std::ops::Range<u64>, out: &mut impl Write) -> io::Result<()> {
    let Some(mut file) = base.file().filter(|_| !range.is_empty()) else { return Ok(()) };
    file.seek(SeekFrom::Start(range.start))?;
    let wanted = range.end - range.start;
    let copied = io::copy(&mut file.take(wanted), out)?;
    if copied == wanted {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter"))
    }
}

/// What a prompt.json came to.
enum Made {
    /// Its line, newline included.
    Line(Vec<u8>),
    /// No line, and why.
    Nothing(String),
}

/// A prompt's line, or why it cannot have one. A file that has gone is a reason, not an error.
fn read_prompt(model: &ModelLayout, hash: &PromptHash) -> io::Result<Made> {
    let mut text = match fs::read(model.prompt_json(hash)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Made::Nothing("it was removed".to_owned()));
        }
        Err(error) => return Err(error),
    };
    while text.last().is_some_and(u8::is_ascii_whitespace) {
        text.pop();
    }
    // A JSON string holds no raw line break, so these are space between tokens.
    for byte in &mut text {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    Ok(match lines::hash_of(&text) {
        Ok(found) if found == *hash => {
            text.push(b'\n');
            Made::Line(text)
        }
        Ok(found) => Made::Nothing(format!("its \"hash\" is {found}, not its directory's name")),
        Err(reason) => Made::Nothing(reason),
    })
}

/// What the index depends on in a prompt.json.
struct JsonState {
    modified: (i64, i64),
    size: u64,
}

/// The state of a complete prompt's prompt.json; none where the prompt is not complete.
fn state(
    dir: &OwnedFd,
    model: &ModelLayout,
    hash: &PromptHash,
    name: &mut String,
) -> Result<Option<JsonState>, StoreError> {
    let mut stat = |file: &str| {
        name.clear();
        let _ = write!(name, "{hash}/{file}");
        match rustix::fs::statat(dir, name.as_str(), AtFlags::empty()) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_size > 0 => Ok(Some(stat)),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno).on(Op::Stat, model.prompts().join(name.as_str())),
        }
    };
    let Some(json) = stat(PROMPT_JSON)? else { return Ok(None) };
    if stat(NPZ)?.is_none() && stat(STACKED)?.is_none() {
        return Ok(None);
    }
    Ok(Some(JsonState { modified: (json.st_mtime, json.st_mtime_nsec as i64), size: json.st_size as u64 }))
}

fn open(model: &ModelLayout) -> Result<Option<OwnedFd>, StoreError> {
    let path = model.prompts();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, &path, flags, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno).on(Op::List, path),
    }
}

/// The names in the directory of prompts that can be hashes.
fn list(dir: &OwnedFd, model: &ModelLayout) -> Result<Vec<PromptHash>, StoreError> {
    let path = model.prompts();
    let mut hashes = Vec::new();
    for entry in Dir::read_from(dir).on(Op::List, &path)? {
        let entry = entry.on(Op::List, &path)?;
        let name = entry.file_name().to_str().ok().map(str::to_owned);
        hashes.extend(name.and_then(|name| PromptHash::try_from(name).ok()));
    }
    Ok(hashes)
}
