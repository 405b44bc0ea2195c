//! Which files of a directory make up a model, and whether they are whole.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::error::LocateError;

/// A way to store weights.
pub(super) struct Format {
    /// All of them in one file.
    pub(super) single: &'static str,
    /// The list of several.
    pub(super) index: &'static str,
    /// How the names of those end.
    shards: &'static str,
    check: fn(&Path) -> Result<(), LocateError>,
}

/// In the order they are looked for, as transformers does. Old repositories have pickles alone; nothing in them is run
/// when they are read.
pub(super) const FORMATS: [Format; 2] = [
    Format {
        single: "model.safetensors",
        index: "model.safetensors.index.json",
        shards: ".safetensors",
        check: check_safetensors,
    },
    Format {
        single: "pytorch_model.bin",
        index: "pytorch_model.bin.index.json",
        shards: ".bin",
        check: check_pickle,
    },
];
/// What weights are called where there are none.
pub(super) const NO_WEIGHTS: &str = "model.safetensors (nor pytorch_model.bin)";
/// Besides the tokenizer itself; any of them may be absent.
pub(super) const TOKENIZER_EXTRAS: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

/// What a directory holds of a tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerFiles {
    /// `tokenizer.json`.
    Json(PathBuf),
    /// A byte-level BPE of before `tokenizer.json`.
    Bpe {
        /// `vocab.json`
        vocab: PathBuf,
        /// `merges.txt`
        merges: PathBuf,
    },
}

impl TokenizerFiles {
    /// The tokenizer in `dir`, where there is one.
    pub(super) fn find(dir: &Path) -> Option<TokenizerFiles> {
        let [json, vocab, merges] = ["tokenizer.json", "vocab.json", "merges.txt"].map(|name| dir.join(name));
        if json.is_file() {
            Some(TokenizerFiles::Json(json))
        } else if vocab.is_file() && merges.is_file() {
            Some(TokenizerFiles::Bpe { vocab, merges })
        } else {
            None
        }
    }
}

/// The weights a directory holds.
#[derive(Debug)]
pub(super) enum Weights {
    /// All there, in the order of their names.
    Files(Vec<PathBuf>),
    /// The index names these, which are not there.
    ShardsMissing(Vec<String>),
    /// None at all.
    None,
}

/// Which weights `dir` holds. One file is preferred to shards.
pub(super) fn weights_in(dir: &Path) -> Result<Weights, LocateError> {
    for format in &FORMATS {
        let (single, index) = (dir.join(format.single), dir.join(format.index));
        if single.is_file() {
            return Ok(Weights::Files(vec![single]));
        }
        if index.is_file() {
            let shards = shards_in(&index, format)?;
            let (there, missing): (Vec<_>, Vec<_>) =
                shards.into_iter().partition(|name| dir.join(name).is_file());
            return Ok(if missing.is_empty() {
                Weights::Files(there.iter().map(|name| dir.join(name)).collect())
            } else {
                Weights::ShardsMissing(missing)
            });
        }
    }
    Ok(Weights::None)
}

/// The shards that an index names.
pub(super) fn shards_in(index: &Path, format: &Format) -> Result<BTreeSet<String>, LocateError> {
    let damaged = |problem: String| LocateError::Damaged { path: index.to_owned(), problem };
    let map = read_json(index)?;
    let weights = map.get("weight_map").and_then(Value::as_object);
    let weights = weights.ok_or_else(|| damaged("has no object \"weight_map\"".to_owned()))?;
    let mut shards = BTreeSet::new();
    for (tensor, shard) in weights {
        let name = shard.as_str().unwrap_or_default();
        if name.contains(['/', '\\']) || name.starts_with('.') || !name.ends_with(format.shards) {
            return Err(damaged(format!(
                "says {tensor:?} is in {shard}, which is no {} file beside it",
                format.shards
            )));
        }
        shards.insert(name.to_owned());
    }
    if shards.is_empty() {
        return Err(damaged("names no tensors".to_owned()));
    }
    Ok(shards)
}

/// Reads a JSON object.
pub(super) fn read_json(path: &Path) -> Result<Map<String, Value>, LocateError> {
    let text = std::fs::read(path).map_err(io_error(path))?;
    serde_json::from_slice(&text).map_err(|error| LocateError::Damaged {
        path: path.to_owned(),
        problem: format!("is not a JSON object ({error})"),
    })
}

/// Checks that a file of weights is whole, as far as a look at its ends tells: a download that was cut off is not.
pub(super) fn check_weights_file(path: &Path) -> Result<(), LocateError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    FORMATS.iter().filter(|format| name.ends_with(format.shards)).try_for_each(|format| (format.check)(path))
}

/// Checks that a pickle, where it is in a zip archive as since PyTorch 1.6, has that archive's end.
fn check_pickle(path: &Path) -> Result<(), LocateError> {
    /// The longest end of a zip archive: its comment may have 64 KiB.
    const END: u64 = 22 + (64 << 10);
    let mut file = File::open(path).map_err(io_error(path))?;
    let length = file.metadata().map_err(io_error(path))?.len();
    let (mut begin, mut end) = (Vec::new(), Vec::new());
    (&file).take(4).read_to_end(&mut begin).map_err(io_error(path))?;
    file.seek(SeekFrom::Start(length.saturating_sub(END))).map_err(io_error(path))?;
    file.read_to_end(&mut end).map_err(io_error(path))?;
    if begin == *b"PK\x03\x04" && !end.windows(4).any(|bytes| bytes == b"PK\x05\x06") {
        let problem = "is a zip archive without its end, so it was cut off".to_owned();
        return Err(LocateError::Damaged { path: path.to_owned(), problem });
    }
    Ok(())
}

/// Checks that a safetensors file is as long as its header says.
fn check_safetensors(path: &Path) -> Result<(), LocateError> {
    let mut file = File::open(path).map_err(io_error(path))?;
    let length = file.metadata().map_err(io_error(path))?.len();
    let damaged = |problem: String| LocateError::Damaged { path: path.to_owned(), problem };
    let header = read_header(&mut file, length).map_err(io_error(path))?;
    let header =
        header.ok_or_else(|| damaged("is not a safetensors file, or the start of one".to_owned()))?;
    let tensors: Map<String, Value> = serde_json::from_slice(&header)
        .map_err(|error| damaged(format!("has a header that is not a JSON object ({error})")))?;
    let end = |tensor: &Value| tensor.get("data_offsets")?.get(1)?.as_u64();
    let data = tensors.values().filter_map(end).max().unwrap_or(0);
    let expected = 8 + header.len() as u64 + data;
    if length != expected {
        return Err(damaged(format!("is {length} bytes long where its header says {expected}")));
    }
    Ok(())
}

/// The JSON header of a safetensors file of `length` bytes; none if it cannot be one.
fn read_header(file: &mut File, length: u64) -> io::Result<Option<Vec<u8>>> {
    /// The format's own limit.
    const LONGEST: u64 = 100_000_000;
    let mut size = [0; 8];
    if length < 8 {
        return Ok(None);
    }
    file.read_exact(&mut size)?;
    let size = u64::from_le_bytes(size);
    if size > LONGEST || size > length - 8 {
        return Ok(None);
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header)?;
    Ok(Some(header))
}

/// A local directory's stand-in for a commit: "sha256:" and the digest over config.json and, of every
/// weight file, its name, length, safetensors header and last 64 KiB. Cheap on any size of model; it
/// tells checkpoints of a training run apart, and would miss an edit in the middle of a file.
pub(super) fn fingerprint(dir: &Path) -> Result<String, LocateError> {
    const TAIL: u64 = 64 << 10;
    let mut digest = Sha256::new();
    let config = dir.join("config.json");
    digest.update(std::fs::read(&config).map_err(io_error(&config))?);
    let Weights::Files(files) = weights_in(dir)? else {
        return Ok(format!("sha256:{}", hex(&digest.finalize())));
    };
    for path in files {
        let mut file = File::open(&path).map_err(io_error(&path))?;
        let length = file.metadata().map_err(io_error(&path))?.len();
        let mut tail = Vec::new();
        let header = read_header(&mut file, length).map_err(io_error(&path))?.unwrap_or_default();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).map_err(io_error(&path))?;
        file.take(TAIL).read_to_end(&mut tail).map_err(io_error(&path))?;
        digest.update([0]);
        digest.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        digest.update([0]);
        digest.update(length.to_le_bytes());
        digest.update(Sha256::digest(&header));
        digest.update(Sha256::digest(&tail));
    }
    Ok(format!("sha256:{}", hex(&digest.finalize())))
}

/// The SHA-256 of a whole file, in hexadecimal.
pub(super) fn sha256(path: &Path) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&buffer[..n]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names the file an IO error is about.
pub(super) fn io_error(path: &Path) -> impl Fn(io::Error) -> LocateError + '_ {
    move |source| LocateError::Io { path: path.to_owned(), source }
}
