//! `activations.npz`: a zip archive of npy arrays, as `numpy.savez_compressed` means it.
//!
//! Owns the container: array names, the npy header ([`npy`]), writing an archive around finished
//! payloads ([`write_npz`]) and reading an archive's directory without its data ([`NpzReader`]).
//! How a payload is compressed is the worker's business; nothing here looks inside one.

mod npy;
mod reader;
mod record;
mod writer;

pub use npy::{NpyError, NpyHeader};
pub use reader::{EntryInfo, NpzError, NpzReader, read_directory};
pub use writer::{write_all_vectored, write_npz};

/// How an entry's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// As they are.
    Stored,
    /// Raw deflate (RFC 1951).
    Deflate,
    /// Something else, by its number in the zip specification; nothing lenspool writes.
    Other(u16),
}

impl Method {
    fn number(self) -> u16 {
        match self {
            Method::Stored => 0,
            Method::Deflate => 8,
            Method::Other(number) => number,
        }
    }

    fn from_number(number: u16) -> Self {
        match number {
            0 => Method::Stored,
            8 => Method::Deflate,
            other => Method::Other(other),
        }
    }
}

/// One array, ready to be written into an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name in the archive, `.npy` included.
    pub name: String,
    /// How `payload` is stored.
    pub method: Method,
    /// CRC-32 of the uncompressed bytes (npy header and values).
    pub crc32: u32,
    /// Uncompressed bytes.
    pub uncompressed_len: u64,
    /// The stored bytes.
    pub payload: Vec<u8>,
}

/// The entry name of one layer's patterns: `blocks.{layer}.attn.hook_pattern.npy`.
pub fn layer_entry_name(layer: usize) -> String {
    format!("blocks.{layer}.attn.hook_pattern.npy")
}

/// The layer whose patterns an entry of this name holds.
pub fn layer_of_entry(name: &str) -> Option<usize> {
    let number = name.strip_prefix("blocks.")?.strip_suffix(".attn.hook_pattern.npy")?;
    // `usize::from_str` would also take `+1` and `01`.
    number.parse().ok().filter(|layer: &usize| layer.to_string() == number)
}

/// The entry name of all layers' patterns in one array.
pub const STACKED_ENTRY_NAME: &str = "activations-blocks.-.attn.hook_pattern.npy";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_layers() {
        assert_eq!(layer_entry_name(11), "blocks.11.attn.hook_pattern.npy");
        assert_eq!(layer_of_entry(&layer_entry_name(11)), Some(11));
        for name in
            ["blocks.+1.attn.hook_pattern.npy", "blocks..attn.hook_pattern.npy", STACKED_ENTRY_NAME, ""]
        {
            assert_eq!(layer_of_entry(name), None, "{name}");
        }
    }
}
