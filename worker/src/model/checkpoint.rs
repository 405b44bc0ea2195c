//! A checkpoint's files: one model.safetensors, or shards with an index, mapped into memory.
//!
//! Owns finding the files and reading f32 values out of them; which tensors are wanted is
//! [`common::model::weights`]'s business. Files are mapped, not read: a table of which a few rows are
//! used costs those rows, and several workers on a node share the pages.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use common::model::weights::Header;
use half::{bf16, f16, slice::HalfFloatSliceExt};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::LoadError;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An open checkpoint.
pub(super) struct Checkpoint {
    shards: Vec<Mmap>,
    tensors: HashMap<String, Stored>,
}

/// Where a tensor lies.
struct Stored {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// The number types weights may be stored in.
#[derive(Clone, Copy, Debug)]
enum Kind {
    F32,
    F16,
    Bf16,
}

/// A tensor's values as they are stored.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    bytes: &'a [u8],
    kind: Kind,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Checkpoint {
    /// Opens the files in `dir` and reads their headers.
    pub(super) fn open(dir: &Path) -> Result<Self, LoadError> {
        let mut checkpoint = Checkpoint { shards: Vec::new(), tensors: HashMap::new() };
        let index_path = dir.join(INDEX);
        if dir.join(SINGLE).is_file() {
            checkpoint.add_shard(&dir.join(SINGLE))?;
        } else if index_path.is_file() {
            let index = read_index(&index_path)?;
            // Sorted, so that errors do not depend on a hash map's order.
            for name in index.weight_map.values().collect::<BTreeSet<_>>() {
                if Path::new(name).file_name() != Some(name.as_ref()) {
                    let reason = format!("it names the shard {name:?}, which is no plain file name");
                    return Err(LoadError::BadFile { path: index_path, reason });
                }
                checkpoint.add_shard(&dir.join(name))?;
            }
            let absent = |name: &&String| !checkpoint.tensors.contains_key(*name);
            if let Some(name) = index.weight_map.keys().filter(absent).min() {
                let reason =
                    format!("it places {name} in {}, which does not hold it", index.weight_map[name]);
                return Err(LoadError::BadFile { path: index_path, reason });
            }
        } else {
            return Err(no_weights(dir));
        }
        Ok(checkpoint)
    }

    fn add_shard(&mut self, path: &Path) -> Result<(), LoadError> {
        let bad = |reason: String| LoadError::BadFile { path: path.to_owned(), reason };
        let unreadable =
            |error: std::io::Error| LoadError::Read { path: path.to_owned(), reason: error.to_string() };
        let file = fs_err::File::open(path).map_err(unreadable)?;
        // SAFETY: the map is read-only. A file that another process truncates while it is mapped would
        // fault; model files are written once and never changed in place.
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| bad(error.to_string()))?;
        let shard = self.shards.len();
        for (name, info) in metadata.tensors() {
            // A safetensors file is the header's length in eight bytes, the header, the data.
            let at = 8 + header;
            let (start, end) = (at + info.data_offsets.0, at + info.data_offsets.1);
            if end > map.len() {
                return Err(bad(format!("{name} lies past the end of the file; it is cut off")));
            }
            let stored = Stored { shard, dtype: info.dtype, shape: info.shape.clone(), start, end };
            if self.tensors.insert(name.clone(), stored).is_some() {
                return Err(bad(format!("{name} is in another shard, too")));
            }
        }
        self.shards.push(map);
        Ok(())
    }

    /// Every tensor's name and shape.
    pub(super) fn header(&self) -> Header {
        self.tensors.iter().map(|(name, stored)| (name.clone(), stored.shape.clone())).collect()
    }

    /// The values of a tensor of the header.
    pub(super) fn values(&self, name: &str) -> Result<Values<'_>, LoadError> {
        let stored = self.tensors.get(name).ok_or_else(|| LoadError::Dtype {
            tensor: name.to_owned(),
            found: "not in the checkpoint".to_owned(),
        })?;
        let kind = match stored.dtype {
            Dtype::F32 => Kind::F32,
            Dtype::F16 => Kind::F16,
            Dtype::BF16 => Kind::Bf16,
            other => {
                return Err(LoadError::Dtype { tensor: name.to_owned(), found: format!("{other:?}") });
            }
        };
        Ok(Values { bytes: &self.shards[stored.shard][stored.start..stored.end], kind })
    }
}

impl Values<'_> {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match self.kind {
            Kind::F32 => self.bytes.len() / 4,
            Kind::F16 | Kind::Bf16 => self.bytes.len() / 2,
        }
    }

    /// Copies the values from `start` on into `out`, as f32.
    pub(super) fn read(&self, start: usize, out: &mut [f32]) {
        let len = out.len();
        let bytes = |width: usize| &self.bytes[start * width..(start + len) * width];
        match self.kind {
            Kind::F32 => {
                for (value, bytes) in out.iter_mut().zip(bytes(4).chunks_exact(4)) {
                    *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
            }
            Kind::F16 => {
                // Blocks on the stack: the bytes may be unaligned, and the conversion is fast on slices.
                let mut block = [f16::ZERO; 64];
                for (out, bytes) in out.chunks_mut(64).zip(bytes(2).chunks(128)) {
                    for (half, bytes) in block.iter_mut().zip(bytes.chunks_exact(2)) {
                        *half = f16::from_le_bytes([bytes[0], bytes[1]]);
                    }
                    block[..out.len()].convert_to_f32_slice(out);
                }
            }
            Kind::Bf16 => {
                for (value, bytes) in out.iter_mut().zip(bytes(2).chunks_exact(2)) {
                    *value = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                }
            }
        }
    }
}

fn read_index(path: &Path) -> Result<Index, LoadError> {
    let text = fs_err::read_to_string(path)
        .map_err(|error| LoadError::Read { path: path.to_owned(), reason: error.to_string() })?;
    serde_json::from_str(&text)
        .map_err(|error| LoadError::BadFile { path: path.to_owned(), reason: error.to_string() })
}

/// What to say of a directory without safetensors.
fn no_weights(dir: &Path) -> LoadError {
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    match pickled.iter().map(|name| dir.join(name)).find(|path| path.exists()) {
        Some(path) => LoadError::Pickled { path },
        None => LoadError::NoWeights { dir: PathBuf::from(dir) },
    }
}
