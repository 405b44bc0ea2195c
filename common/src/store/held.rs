//! What one activations.npz holds, read from its central directory: a small read at its end.
//!
//! Only needed where files of one model may differ in their layers or number types. Also hands out
//! entries as they lie in the file, so that a rewrite keeps layers it was not asked for without
//! compressing them again.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use flate2::read::DeflateDecoder;

use super::error::{Context, Op, StoreError};
use crate::{
    capture::Dtype,
    npz::{self, Entry, EntryInfo, Method, NpzError, NpzReader},
};

/// An npy header of an array with a few axes is not longer.
const NPY_HEADER: u64 = 256;

/// Whether the npz at `path` holds all of `layers`, in `dtype` or a wider type. With `dtype` none, the
/// number type is not looked at. A file that is no readable npz (torn by another program) holds nothing.
pub(crate) fn holds(path: &Path, layers: &[usize], dtype: Option<Dtype>) -> Result<bool, StoreError> {
    let Some(npz) = open(path)? else { return Ok(false) };
    let mut file = None;
    for &layer in layers {
        let name = npz::layer_entry_name(layer);
        let Some(info) = npz.entries().iter().find(|info| info.name == name) else { return Ok(false) };
        let Some(wanted) = dtype else { continue };
        let file = match &mut file {
            Some(file) => file,
            none => none.insert(File::open(path).on(Op::Read, path)?),
        };
        if !is_at_least(wanted, &entry_head(file, info).on(Op::Read, path)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the npy file at `path` is of `dtype` or a wider type.
pub(crate) fn array_is(path: &Path, wanted: Dtype) -> Result<bool, StoreError> {
    let mut head = Vec::new();
    match File::open(path).and_then(|file| file.take(NPY_HEADER).read_to_end(&mut head)) {
        Ok(_) => Ok(is_at_least(wanted, &head)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).on(Op::Read, path),
    }
}

/// The entries of the npz at `path` that a rewrite with the layers in `rewritten` must keep, with their
/// layers, ascending. Empty where there is no file, or none that can be read.
pub fn entries_to_keep(path: &Path, rewritten: &[usize]) -> Result<Vec<(usize, Entry)>, StoreError> {
    let Some(mut npz) = open(path)? else { return Ok(Vec::new()) };
    let mut kept = Vec::new();
    for info in npz.entries().to_vec() {
        let Some(layer) = npz::layer_of_entry(&info.name) else { continue };
        if rewritten.contains(&layer) || matches!(info.method, Method::Other(_)) {
            continue;
        }
        match npz.read_stored(&info) {
            Ok(entry) => kept.push((layer, entry)),
            // A file cut short keeps no entry that is not whole.
            Err(NpzError::Broken { .. }) => {}
            Err(NpzError::Io { path, source }) => return Err(StoreError::new(Op::Read, path, source)),
        }
    }
    kept.sort_by_key(|(layer, _)| *layer);
    kept.dedup_by_key(|(layer, _)| *layer);
    Ok(kept)
}

/// The npz at `path`; none where there is no file or no whole one.
fn open(path: &Path) -> Result<Option<NpzReader>, StoreError> {
    match NpzReader::open(path) {
        Ok(npz) => Ok(Some(npz)),
        Err(NpzError::Broken { .. }) => Ok(None),
        Err(NpzError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(NpzError::Io { path, source }) => Err(StoreError::new(Op::Read, path, source)),
    }
}

/// The first bytes of an entry's array, as far as they can be read.
fn entry_head(file: &mut File, info: &EntryInfo) -> io::Result<Vec<u8>> {
    // A zip's local header: 30 bytes that end with the lengths of the name and of the extra field.
    file.seek(SeekFrom::Start(info.header_offset))?;
    let mut local = Vec::new();
    file.take(30).read_to_end(&mut local)?;
    let Some(&[name_low, name_high, extra_low, extra_high]) = local.get(26..30) else {
        return Ok(Vec::new());
    };
    let name = u16::from_le_bytes([name_low, name_high]);
    let extra = u16::from_le_bytes([extra_low, extra_high]);
    file.seek_relative(i64::from(name) + i64::from(extra))?;
    let mut head = Vec::new();
    let stored = file.take(info.compressed_len.min(4096));
    // What does not inflate is no array: an empty head says so.
    let _ = match info.method {
        Method::Stored => stored.take(NPY_HEADER).read_to_end(&mut head),
        Method::Deflate => DeflateDecoder::new(stored).take(NPY_HEADER).read_to_end(&mut head),
        Method::Other(_) => Ok(0),
    };
    Ok(head)
}

fn is_at_least(wanted: Dtype, head: &[u8]) -> bool {
    npz::NpyHeader::parse(head).is_ok_and(|(header, _)| header.dtype.bytes() >= wanted.bytes())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::npz::{NpyHeader, layer_entry_name, write_npz};

    /// The bytes of an npy file of shape (1, 1, n, n).
    pub(crate) fn npy(dtype: Dtype, n: usize) -> Vec<u8> {
        let mut bytes = NpyHeader { dtype, shape: vec![1, 1, n, n] }.to_bytes();
        bytes.extend(std::iter::repeat_n(0x3c, dtype.bytes() * n * n));
        bytes
    }

    fn entry(layer: usize, dtype: Dtype) -> Entry {
        let array = npy(dtype, 3 + layer);
        let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        deflate.write_all(&array).unwrap();
        Entry {
            name: layer_entry_name(layer),
            method: Method::Deflate,
            crc32: crc32fast::hash(&array),
            uncompressed_len: array.len() as u64,
            payload: deflate.finish().unwrap(),
        }
    }

    /// The bytes of an npz with these layers.
    pub(crate) fn npz(layers: &[usize], dtype: Dtype) -> Vec<u8> {
        let entries: Vec<_> = layers.iter().map(|&layer| entry(layer, dtype)).collect();
        let mut bytes = Vec::new();
        write_npz(&entries, &mut bytes).unwrap();
        bytes
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_file_holds_the_layers_in_its_directory() {
        let file = file(&npz(&[0, 3, 5], Dtype::Float32));
        for (layers, held) in
            [(&[0, 3][..], true), (&[5], true), (&[], true), (&[0, 1], false), (&[6], false)]
        {
            assert_eq!(holds(file.path(), layers, None).unwrap(), held, "{layers:?}");
        }
    }

    #[test]
    fn half_precision_does_not_stand_for_single_but_single_does_for_half() {
        let (half, single) = (file(&npz(&[0], Dtype::Float16)), file(&npz(&[0], Dtype::Float32)));
        assert!(!holds(half.path(), &[0], Some(Dtype::Float32)).unwrap());
        assert!(holds(half.path(), &[0], Some(Dtype::Float16)).unwrap());
        assert!(holds(single.path(), &[0], Some(Dtype::Float32)).unwrap());
        assert!(holds(single.path(), &[0], Some(Dtype::Float16)).unwrap());
    }

    #[test]
    fn a_torn_or_missing_file_holds_nothing_and_is_no_error() {
        let whole = npz(&[0, 1], Dtype::Float32);
        for cut in [0, 1, 40, whole.len() / 2, whole.len() - 1] {
            let torn = file(&whole[..cut]);
            assert!(!holds(torn.path(), &[0], None).unwrap(), "cut at {cut}");
            assert_eq!(entries_to_keep(torn.path(), &[]).unwrap(), []);
        }
        assert!(!holds(Path::new("/nowhere/at/all"), &[0], None).unwrap());
    }

    #[test]
    fn kept_entries_are_those_not_rewritten_bit_for_bit_and_in_order() {
        let file = file(&npz(&[5, 0, 3], Dtype::Float32));
        let kept = entries_to_keep(file.path(), &[3]).unwrap();
        assert_eq!(kept, [0, 5].map(|layer| (layer, entry(layer, Dtype::Float32))));
    }
}
