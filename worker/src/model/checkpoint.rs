//! A checkpoint's files: safetensors or, in old repositories, PyTorch's pickles; one file, or shards with an index.
//!
//! Owns finding the files and the values in them; which tensors are wanted is [`common::model::weights`]'s business.
//! safetensors are mapped, not read: a table of which a few rows are used costs those rows, and several workers on a
//! node share the pages. Pickles are parsed by a reader that runs nothing; each of their tensors is read whole.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use common::model::weights::Header;
use memmap2::Mmap;
use pytorch_reader::PytorchReader;
use safetensors::SafeTensors;
use serde::Deserialize;

use super::{
    LoadError,
    values::{Kind, Stored, Values},
};

/// Whole checkpoints in one file, and the indexes of sharded ones, in the order they are looked for.
const FORMATS: [(&str, &str, AddFile); 2] = [
    ("model.safetensors", "model.safetensors.index.json", Checkpoint::add_safetensors),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", Checkpoint::add_pickle),
];

type AddFile = fn(&mut Checkpoint, &Path) -> Result<(), LoadError>;

/// An open checkpoint.
#[derive(Default)]
pub(super) struct Checkpoint {
    tensors: HashMap<String, Tensor>,
    /// The last tensor read from a pickle: parts of one are often wanted in a row.
    last: Mutex<Option<(String, Values)>>,
}

/// A tensor's header and where its values are.
struct Tensor {
    shape: Vec<usize>,
    /// Or the name of a type that no weight may have.
    kind: Result<Kind, String>,
    source: Source,
}

enum Source {
    Mapped(Stored),
    Pickled(pytorch_reader::Tensor),
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Checkpoint {
    /// Opens the files in `dir` and reads their headers.
    pub(super) fn open(dir: &Path) -> Result<Self, LoadError> {
        let mut checkpoint = Checkpoint::default();
        for (single, index, add) in FORMATS {
            let (single, index) = (dir.join(single), dir.join(index));
            if single.is_file() {
                add(&mut checkpoint, &single)?;
                return Ok(checkpoint);
            }
            if index.is_file() {
                checkpoint.add_shards(&index, add)?;
                return Ok(checkpoint);
            }
        }
        Err(LoadError::NoWeights { dir: PathBuf::from(dir) })
    }

    fn add_shards(&mut self, index_path: &Path, add: AddFile) -> Result<(), LoadError> {
        let bad = |reason| LoadError::BadFile { path: index_path.to_owned(), reason };
        let text = fs_err::read_to_string(index_path).map_err(|error| unreadable(index_path, &error))?;
        let index: Index = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        // Sorted, so that errors do not depend on a hash map's order.
        for name in index.weight_map.values().collect::<BTreeSet<_>>() {
            if Path::new(name).file_name() != Some(name.as_ref()) {
                return Err(bad(format!("it names the shard {name:?}, which is no plain file name")));
            }
            add(self, &index_path.with_file_name(name))?;
        }
        match index.weight_map.keys().filter(|name| !self.tensors.contains_key(*name)).min() {
            None => Ok(()),
            Some(name) => {
                Err(bad(format!("it places {name} in {}, which does not hold it", index.weight_map[name])))
            }
        }
    }

    fn add_safetensors(&mut self, path: &Path) -> Result<(), LoadError> {
        let bad = |reason: String| LoadError::BadFile { path: path.to_owned(), reason };
        let file = fs_err::File::open(path).map_err(|error| unreadable(path, &error))?;
        // SAFETY: the map is read-only. A file that another process truncates while it is mapped would
        // fault; model files are written once and never changed in place.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| unreadable(path, &error))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| bad(error.to_string()))?;
        let map = Arc::new(map);
        for (name, info) in metadata.tensors() {
            // A safetensors file is the header's length in eight bytes, the header, the data.
            let at = 8 + header;
            let range = at + info.data_offsets.0..at + info.data_offsets.1;
            if range.end > map.len() {
                return Err(bad(format!("{name} lies past the end of the file; it is cut off")));
            }
            let kind = match info.dtype {
                safetensors::Dtype::F32 => Ok(Kind::F32),
                safetensors::Dtype::F16 => Ok(Kind::F16),
                safetensors::Dtype::BF16 => Ok(Kind::Bf16),
                other => Err(format!("{other:?}")),
            };
            let source = Source::Mapped(Stored::Mapped(Arc::clone(&map), range));
            self.add(path, name, Tensor { shape: info.shape.clone(), kind, source })?;
        }
        Ok(())
    }

    fn add_pickle(&mut self, path: &Path) -> Result<(), LoadError> {
        let reader = PytorchReader::new(path)
            .map_err(|error| LoadError::BadFile { path: path.to_owned(), reason: error.to_string() })?;
        for (name, tensor) in reader.into_tensors() {
            let kind = match tensor.dtype() {
                pytorch_reader::DType::F32 => Ok(Kind::F32),
                pytorch_reader::DType::F16 => Ok(Kind::F16),
                pytorch_reader::DType::BF16 => Ok(Kind::Bf16),
                other => Err(format!("{other:?}")),
            };
            let shape = tensor.shape().to_vec();
            self.add(path, name, Tensor { shape, kind, source: Source::Pickled(tensor) })?;
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, name: String, tensor: Tensor) -> Result<(), LoadError> {
        if self.tensors.contains_key(&name) {
            let reason = format!("{name} is in another shard, too");
            return Err(LoadError::BadFile { path: path.to_owned(), reason });
        }
        self.tensors.insert(name, tensor);
        Ok(())
    }

    /// Every tensor's name and shape.
    pub(super) fn header(&self) -> Header {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect()
    }

    /// The values of a tensor of the header.
    pub(super) fn values(&self, name: &str) -> Result<Values, LoadError> {
        let refused = |found: &str| LoadError::Dtype { tensor: name.to_owned(), found: found.to_owned() };
        let tensor = self.tensors.get(name).ok_or_else(|| refused("nothing, as it is not there"))?;
        let kind = tensor.kind.clone().map_err(|found| refused(&found))?;
        let pickled = match &tensor.source {
            Source::Mapped(bytes) => return Ok(Values { bytes: bytes.clone(), kind }),
            Source::Pickled(pickled) => pickled,
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, values)) = last.as_ref().filter(|(known, _)| known == name) {
            return Ok(values.clone());
        }
        let bytes = pickled
            .read()
            .map_err(|error| LoadError::Tensor { tensor: name.to_owned(), reason: error.to_string() })?;
        let values = Values { bytes: Stored::Read(Arc::new(bytes)), kind };
        *last = Some((name.to_owned(), values.clone()));
        Ok(values)
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> LoadError {
    LoadError::Read { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use safetensors::{Dtype, tensor::TensorView};

    use super::*;

    /// One tensor `w` of two bytes a value.
    fn write(path: &Path, name: &str, dtype: Dtype) {
        let view = TensorView::new(dtype, vec![2], &[0; 4]).expect("fits");
        safetensors::serialize_to_file([(name, view)], None, path).expect("written");
    }

    fn refused(dir: &Path) -> String {
        Checkpoint::open(dir)
            .err()
            .expect("must be refused")
            .to_string()
            .replace(&dir.display().to_string(), "DIR")
    }

    #[test]
    fn a_directory_without_a_whole_checkpoint_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().expect("a directory");
        let dir = folder.path();
        let index =
            |text: &str| std::fs::write(dir.join("model.safetensors.index.json"), text).expect("written");
        assert_eq!(
            refused(dir),
            "no weights in DIR: no model.safetensors, no pytorch_model.bin and no index of shards; give a directory \
             that holds a whole checkpoint"
        );
        index(r#"{"weight_map": {"w": "../elsewhere.safetensors"}}"#);
        assert_eq!(
            refused(dir),
            "DIR/model.safetensors.index.json is damaged: it names the shard \"../elsewhere.safetensors\", which is \
             no plain file name; fetch it again"
        );
        index(r#"{"weight_map": {"w": "a.safetensors"}}"#);
        assert!(refused(dir).starts_with("cannot read DIR/a.safetensors: "), "{}", refused(dir));
        write(&dir.join("a.safetensors"), "v", Dtype::F16);
        assert_eq!(
            refused(dir),
            "DIR/model.safetensors.index.json is damaged: it places w in a.safetensors, which does not hold it; fetch \
             it again"
        );
        write(&dir.join("b.safetensors"), "v", Dtype::F16);
        index(r#"{"weight_map": {"v": "a.safetensors", "w": "b.safetensors"}}"#);
        assert_eq!(refused(dir), "DIR/b.safetensors is damaged: v is in another shard, too; fetch it again");
    }

    #[test]
    fn a_file_that_was_cut_off_is_named() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("model.safetensors");
        write(&path, "w", Dtype::F16);
        let whole = std::fs::read(&path).expect("read");
        for len in [0, 5, whole.len() - 1] {
            std::fs::write(&path, &whole[..len]).expect("written");
            let error = refused(folder.path());
            assert!(
                error.starts_with("DIR/model.safetensors is damaged: ") || error.contains("map"),
                "{error}"
            );
        }
        let pickle = folder.path().join("pytorch_model.bin");
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&pickle, b"not a pickle").expect("written");
        let error = refused(folder.path());
        assert!(error.starts_with("DIR/pytorch_model.bin is damaged: "), "{error}");
    }

    #[test]
    fn a_number_type_that_no_weight_may_have_is_named_when_it_is_wanted() {
        let folder = tempfile::tempdir().expect("a directory");
        write(&folder.path().join("model.safetensors"), "w", Dtype::I16);
        let checkpoint = Checkpoint::open(folder.path()).expect("whole");
        assert_eq!(
            checkpoint.values("w").err().expect("refused").to_string(),
            "tensor w is stored as I16; supported are F32, F16 and BF16, so no quantized weights"
        );
    }
}
