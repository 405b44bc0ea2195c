//! Arrays read back from npz files, to measure an encoder on what a run really writes.

use std::io::Read;
use std::path::{Path, PathBuf};

use common::capture::Dtype;
use common::npz::{Entry, Method, NpyError, NpyHeader, NpzError, NpzReader};
use half::f16;

use super::pattern::PatternView;

/// The patterns of one layer.
#[derive(Clone, Debug)]
pub struct Sample {
    /// As the file stores them.
    pub dtype: Dtype,
    n_heads: usize,
    n: usize,
    values: Vec<f32>,
}

/// A file that gives no samples.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// The file is no archive.
    #[error(transparent)]
    Npz(#[from] NpzError),
    /// An entry cannot be uncompressed, or not to what the directory and its header say.
    #[error("{}: {name} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The entry.
        name: String,
    },
    /// An entry is no array of a kind lenspool writes.
    #[error("{}: {name}: {source}", path.display())]
    Npy {
        /// The file.
        path: PathBuf,
        /// The entry.
        name: String,
        /// What it is instead.
        source: NpyError,
    },
    /// An array is not of a pattern's shape.
    #[error("{}: {name} has shape {shape:?}, not (1, n_heads, n, n)", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The entry.
        name: String,
        /// The array's.
        shape: Vec<usize>,
    },
}

impl Sample {
    /// An array of shape `(n_heads, n, n)`.
    ///
    /// # Panics
    /// If `values` has another length.
    pub fn new(dtype: Dtype, n_heads: usize, n: usize, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), n_heads * n * n, "shape ({n_heads}, {n}, {n})");
        Sample { dtype, n_heads, n, values }
    }

    /// The patterns of every layer in the file, which lenspool or pattern_lens may have written.
    pub fn load(path: &Path) -> Result<Vec<Sample>, SampleError> {
        let mut archive = NpzReader::open(path)?;
        let mut samples = Vec::new();
        for info in archive.entries().to_vec() {
            let entry = archive.read_stored(&info)?;
            let located = || (path.to_owned(), entry.name.clone());
            let bytes = uncompress(&entry).ok_or_else(|| {
                let (path, name) = located();
                SampleError::Damaged { path, name }
            })?;
            let (header, at) = NpyHeader::parse(&bytes).map_err(|source| {
                let (path, name) = located();
                SampleError::Npy { path, name, source }
            })?;
            if header.values_len() != Some((bytes.len() - at) as u64) {
                let (path, name) = located();
                return Err(SampleError::Damaged { path, name });
            }
            // One layer, or several stacked.
            let (n_heads, n) = match header.shape[..] {
                [1, n_heads, n, keys] | [1, _, n_heads, n, keys] if n == keys && n_heads * n > 0 => {
                    (n_heads, n)
                }
                _ => {
                    let ((path, name), shape) = (located(), header.shape);
                    return Err(SampleError::Shape { path, name, shape });
                }
            };
            let layer = n_heads * n * n * header.dtype.bytes();
            let layers = bytes[at..].chunks_exact(layer);
            samples.extend(
                layers.map(|layer| Sample::new(header.dtype, n_heads, n, floats(layer, header.dtype))),
            );
        }
        Ok(samples)
    }

    /// For an encoder.
    pub fn view(&self) -> PatternView<'_> {
        PatternView::new(&self.values, self.n_heads, self.n)
    }
}

fn uncompress(entry: &Entry) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match entry.method {
        Method::Stored => bytes.extend_from_slice(&entry.payload),
        Method::Deflate => {
            let mut decoder = flate2::bufread::DeflateDecoder::new(entry.payload.as_slice());
            decoder.read_to_end(&mut bytes).ok()?;
        }
        Method::Other(_) => return None,
    }
    let whole = bytes.len() as u64 == entry.uncompressed_len && crc32fast::hash(&bytes) == entry.crc32;
    whole.then_some(bytes)
}

fn floats(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    match dtype {
        Dtype::Float32 => bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect(),
        Dtype::Float16 => {
            bytes.as_chunks().0.iter().map(|&value| f16::from_le_bytes(value).to_f32()).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use common::npz::{STACKED_ENTRY_NAME, layer_entry_name, write_npz};

    use super::super::{Compression, Encoder, ZlibLevel};
    use super::*;

    /// A sample twice, in one array of two layers.
    fn stacked(sample: &Sample, dtype: Dtype) -> Entry {
        let layer = Encoder::new(Compression::Store, dtype).encode("", sample.view()).payload;
        let (_, values) = NpyHeader::parse(&layer).unwrap();
        let mut payload =
            NpyHeader { dtype, shape: vec![1, 2, sample.n_heads, sample.n, sample.n] }.to_bytes();
        payload.extend(layer[values..].repeat(2));
        Entry {
            name: STACKED_ENTRY_NAME.to_owned(),
            method: Method::Stored,
            crc32: crc32fast::hash(&payload),
            uncompressed_len: payload.len() as u64,
            payload,
        }
    }

    #[test]
    fn what_was_written_is_loaded() {
        let values: Vec<f32> = (0..3 * 5 * 5).map(|i| i as f32 / 64.0).collect();
        let sample = Sample::new(Dtype::Float32, 3, 5, values);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("activations.npz");
        for compression in [Compression::Causal, Compression::Zlib(ZlibLevel::NUMPY), Compression::Store] {
            for dtype in [Dtype::Float32, Dtype::Float16] {
                let mut encoder = Encoder::new(compression, dtype);
                let entries = [encoder.encode(&layer_entry_name(0), sample.view()), stacked(&sample, dtype)];
                write_npz(&entries, &mut std::fs::File::create(&path).unwrap()).unwrap();
                let loaded = Sample::load(&path).unwrap();
                assert_eq!(loaded.len(), 3);
                assert!(loaded.iter().all(|loaded| loaded.dtype == dtype && loaded.values == sample.values));
            }
        }
    }

    #[test]
    fn errors_name_file_and_entry() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("activations.npz");
        let mut entry = Encoder::new(Compression::Causal, Dtype::Float32)
            .encode("blocks.0.attn.hook_pattern.npy", PatternView::new(&[1.0], 1, 1));
        entry.crc32 ^= 1;
        write_npz(&[entry], &mut std::fs::File::create(&path).unwrap()).unwrap();
        let error = Sample::load(&path).unwrap_err().to_string();
        assert!(error.contains("activations.npz") && error.contains("blocks.0.attn"), "{error}");
        // More values are promised than there are, and more than there can be.
        for heads in [2, usize::MAX] {
            let payload = NpyHeader { dtype: Dtype::Float32, shape: vec![1, heads, 2, 2] }.to_bytes();
            let payload = [payload, vec![0; 16]].concat();
            let entry = Entry {
                name: layer_entry_name(0),
                method: Method::Stored,
                crc32: crc32fast::hash(&payload),
                uncompressed_len: payload.len() as u64,
                payload,
            };
            write_npz(&[entry], &mut std::fs::File::create(&path).unwrap()).unwrap();
            assert!(matches!(Sample::load(&path), Err(SampleError::Damaged { .. })), "{heads}");
        }
    }
}
