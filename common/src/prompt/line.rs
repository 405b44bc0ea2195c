//! One line of a prompt file, read: pure, so that lines can be read on all cores.

use sha2::{Digest, Sha256};

use super::{
    Json, Prompt, PromptHash, Record,
    load::{BadLine, LengthRules},
    python_json::parse_record,
};

/// SHA-256 of a text, cut to 128 bits: tells two texts apart that carry the same hash.
pub(super) type TextDigest = [u8; 16];

/// A prompt as the spool takes it.
#[derive(Debug)]
pub(super) struct ReadyPrompt {
    pub(super) hash: PromptHash,
    pub(super) digest: TextDigest,
    /// The record, as [`Record::to_compact_utf8`] writes it.
    pub(super) record: String,
}

/// What a good line gave.
#[derive(Debug, Default)]
pub(super) struct GoodLine {
    pub(super) prompts: Vec<ReadyPrompt>,
    /// Whether the text was longer than allowed and was cut.
    pub(super) split: bool,
    /// Whole texts, or pieces of one, that were shorter than allowed.
    pub(super) too_short: usize,
    /// Whether "meta" was something else than an object and was wrapped in one.
    pub(super) meta_wrapped: bool,
}

/// What became of a line.
#[derive(Debug)]
pub(super) enum Line {
    Blank,
    Bad(BadLine),
    Good(GoodLine),
}

/// What `--raw-prompts` asks for.
#[derive(Clone, Debug)]
pub(super) struct RawRules {
    pub(super) lengths: LengthRules,
    pub(super) source_fname: String,
}

/// How compressed files begin, which people give by mistake.
const COMPRESSED: [(&[u8], &str); 4] =
    [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz")];

/// Reads line `number` (from 1) of a file. Without `raw`, the line is one prompt as it is.
pub(super) fn read(line: &[u8], number: usize, raw: Option<&RawRules>) -> Line {
    // Editors on Windows put a byte order mark in front of a file.
    let line = if number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
    if line.iter().all(u8::is_ascii_whitespace) {
        return Line::Blank;
    }
    match read_prompts(line, number, raw) {
        Ok(good) => Line::Good(good),
        Err((column, message)) => Line::Bad(BadLine { line: number, column, message }),
    }
}

fn read_prompts(line: &[u8], number: usize, raw: Option<&RawRules>) -> Result<GoodLine, (usize, String)> {
    let line = std::str::from_utf8(line).map_err(|error| {
        if let Some((_, kind)) = COMPRESSED.iter().find(|(magic, _)| number == 1 && line.starts_with(magic)) {
            return (1, format!("the file is compressed with {kind}; unpack it first"));
        }
        let valid = &line[..error.valid_up_to()];
        let column = String::from_utf8_lossy(valid).chars().count() + 1;
        let byte = line[error.valid_up_to()];
        (column, format!("byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"))
    })?;
    let mut parsed = parse_record(line).map_err(|error| (error.column, error.message))?;
    let meta_wrapped = !matches!(parsed.record.get("meta"), None | Some(Json::Null | Json::Object(_)));
    if let Some(raw) = raw {
        // Before from_record adds the hash: upstream's order of keys. "meta" stays in front of both.
        if parsed.record.get("meta").is_none() {
            parsed.record.insert("meta", Json::Object(Record::new()));
        }
        parsed.record.insert("source_fname", raw.source_fname.as_str());
    }
    let prompt = Prompt::from_record(std::mem::take(&mut parsed.record));
    let prompt = prompt.map_err(|error| {
        let column = parse_record(line).map_or(1, |parsed| parsed.column_of(error.key(), line));
        (column, error.to_string())
    })?;
    let mut good = GoodLine { meta_wrapped, ..GoodLine::default() };
    match raw {
        None => good.prompts.push(ready(prompt)),
        Some(raw) => cut(prompt, raw.lengths, &mut good),
    }
    Ok(good)
}

/// Drops what is too short and splits what is too long, in code points, as upstream does.
fn cut(prompt: Prompt, rules: LengthRules, good: &mut GoodLine) {
    let length = prompt.text().chars().count();
    if length < rules.min_chars {
        good.too_short = 1;
        return;
    }
    if length <= rules.max_chars {
        good.prompts.push(ready(prompt));
        return;
    }
    good.split = true;
    let mut template = prompt.record().clone();
    // They describe the whole text, not a piece of it.
    template.remove("tokens");
    template.remove("n_tokens");
    for piece in pieces(prompt.text(), rules.max_chars) {
        if piece.chars().count() < rules.min_chars {
            good.too_short += 1;
            continue;
        }
        let mut record = template.clone();
        record.insert("text", piece);
        record.insert("hash", PromptHash::of(piece).as_str());
        good.prompts.push(ready(Prompt::from_record(record).expect("a piece of a prompt is one")));
    }
}

/// `text` in consecutive pieces of `max` code points, the last one as long as what is left.
fn pieces(text: &str, max: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.char_indices().nth(max).map_or(rest.len(), |(at, _)| at);
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

fn ready(prompt: Prompt) -> ReadyPrompt {
    let digest = Sha256::digest(prompt.text().as_bytes());
    let digest = *digest.first_chunk().expect("SHA-256 has 32 bytes");
    let record = prompt.record().to_compact_utf8();
    ReadyPrompt { hash: prompt.into_parts().1, digest, record }
}
