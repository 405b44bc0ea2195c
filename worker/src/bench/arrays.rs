//! The arrays of npz files, back as the patterns they were made from.

use std::{io::Read, path::PathBuf};

use common::{
    capture::Dtype,
    npz::{Method, NpyHeader, NpzReader},
};
use flate2::read::DeflateDecoder;
use half::f16;

/// One layer of one prompt.
pub(super) struct Array {
    pub(super) name: String,
    pub(super) n_heads: usize,
    pub(super) n: usize,
    pub(super) values: Vec<f32>,
}

impl Array {
    /// Bytes of its values as float32.
    pub(super) fn bytes(&self) -> u64 {
        size_of_val(self.values.as_slice()) as u64
    }
}

/// Reads every attention pattern of `files`.
pub(super) fn read(files: &[PathBuf]) -> Result<Vec<Array>, String> {
    let mut arrays = Vec::new();
    for file in files {
        let say = |error: &dyn std::fmt::Display| format!("reading {}: {error}", file.display());
        let mut npz = NpzReader::open(file).map_err(|error| error.to_string())?;
        for info in npz.entries().to_vec() {
            let entry = npz.read_stored(&info).map_err(|error| error.to_string())?;
            let mut bytes = Vec::new();
            match entry.method {
                Method::Stored => bytes = entry.payload,
                Method::Deflate => {
                    DeflateDecoder::new(&entry.payload[..])
                        .read_to_end(&mut bytes)
                        .map_err(|error| say(&error))?;
                }
                Method::Other(number) => {
                    return Err(say(&format!("{} is compressed by method {number}", info.name)));
                }
            }
            let (header, at) = NpyHeader::parse(&bytes).map_err(|error| say(&error))?;
            let &[1, n_heads, n, columns] = &header.shape[..] else {
                return Err(say(&format!(
                    "{} has shape {:?}, not (1, heads, n, n)",
                    info.name, header.shape
                )));
            };
            let values = values(&bytes[at..], header.dtype);
            if n != columns || values.len() != n_heads * n * n {
                return Err(say(&format!(
                    "{} does not hold what its shape {:?} says",
                    info.name, header.shape
                )));
            }
            arrays.push(Array { name: info.name.clone(), n_heads, n, values });
        }
    }
    if arrays.is_empty() { Err("the files hold no arrays".to_owned()) } else { Ok(arrays) }
}

fn values(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    match dtype {
        Dtype::Float32 => bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect(),
        Dtype::Float16 => {
            bytes.as_chunks().0.iter().map(|chunk| f16::from_le_bytes(*chunk).to_f32()).collect()
        }
    }
}
