//! What one activations.npz holds, read from its central directory: a small read at its end.
//!
//! Only needed where files of one model may differ in their layers or number types. Also hands out
//! entries as they lie in the file, so that a rewrite keeps layers it was not asked for without
//! compressing them again.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use zip::{CompressionMethod, ZipArchive, result::ZipError};

use super::error::{Context, Op, StoreError};
use crate::capture::Dtype;

/// An entry of an npz that stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptEntry {
    /// Its layer.
    pub layer: usize,
    /// Its name in the zip, `.npy` included.
    pub name: String,
    /// CRC-32 of the uncompressed bytes.
    pub crc32: u32,
    /// Length of the uncompressed bytes.
    pub uncompressed: u64,
    /// Whether `data` is a raw deflate stream (or else stored bytes).
    pub deflated: bool,
    /// The bytes as they lie in the file.
    pub data: Vec<u8>,
}

/// The name of a layer's entry.
pub fn entry_name(layer: usize) -> String {
    format!("blocks.{layer}.attn.hook_pattern.npy")
}

/// The layer an entry is of, or none where it is no attention pattern.
pub fn entry_layer(name: &str) -> Option<usize> {
    let layer = name.strip_prefix("blocks.")?.strip_suffix(".attn.hook_pattern.npy")?;
    let layer: usize = layer.parse().ok()?;
    // "+1" and "01" parse, but are no names numpy readers know.
    (entry_name(layer) == name).then_some(layer)
}

/// Whether the npz at `path` holds all of `layers`, in `dtype` or a wider type. With `dtype` none, the
/// number type is not looked at. A file that is no readable zip (torn by another program) holds nothing.
pub(crate) fn holds(path: &Path, layers: &[usize], dtype: Option<Dtype>) -> Result<bool, StoreError> {
    let Some(mut archive) = open(path)? else { return Ok(false) };
    if !layers.iter().all(|&layer| archive.index_for_name(&entry_name(layer)).is_some()) {
        return Ok(false);
    }
    let Some(wanted) = dtype else { return Ok(true) };
    for &layer in layers {
        let Ok(mut entry) = archive.by_name(&entry_name(layer)) else { return Ok(false) };
        // The fixed part of an npy header and the dictionary's beginning, where numpy writes 'descr'.
        let mut head = [0; 96];
        if entry.read_exact(&mut head).is_err() {
            return Ok(false);
        }
        if npy_dtype(&head).is_none_or(|found| found.bytes() < wanted.bytes()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the npy file at `path` is of `dtype` or a wider type.
pub(crate) fn array_is(path: &Path, wanted: Dtype) -> Result<bool, StoreError> {
    let mut head = [0; 96];
    match File::open(path).and_then(|mut file| file.read_exact(&mut head)) {
        Ok(()) => Ok(npy_dtype(&head).is_some_and(|found| found.bytes() >= wanted.bytes())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {
            Ok(false)
        }
        Err(error) => Err(error).on(Op::Read, path),
    }
}

/// The entries of the npz at `path` that a rewrite with the layers in `rewritten` must keep, ascending
/// by layer. Empty where there is no file, or none that can be read.
pub fn entries_to_keep(path: &Path, rewritten: &[usize]) -> Result<Vec<KeptEntry>, StoreError> {
    let Some(mut archive) = open(path)? else { return Ok(Vec::new()) };
    let mut kept = Vec::new();
    for index in 0..archive.len() {
        let Ok(mut entry) = archive.by_index_raw(index) else { continue };
        let Some(layer) = entry.name().ok().and_then(|name| entry_layer(&name)) else { continue };
        let deflated = match entry.compression() {
            CompressionMethod::Stored => false,
            CompressionMethod::Deflated => true,
            _ => continue,
        };
        if rewritten.contains(&layer) {
            continue;
        }
        let mut data = Vec::with_capacity(usize::try_from(entry.compressed_size()).unwrap_or(0).min(1 << 30));
        // A file cut short keeps no entry that is not whole.
        if entry.read_to_end(&mut data).on(Op::Read, path)? as u64 != entry.compressed_size() {
            continue;
        }
        kept.push(KeptEntry {
            layer,
            name: entry_name(layer),
            crc32: entry.crc32(),
            uncompressed: entry.size(),
            deflated,
            data,
        });
    }
    kept.sort_by_key(|entry| entry.layer);
    kept.dedup_by_key(|entry| entry.layer);
    Ok(kept)
}

/// The zip at `path`; none where there is no file or no zip.
fn open(path: &Path) -> Result<Option<ZipArchive<io::BufReader<File>>>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error).on(Op::Read, path),
    };
    match ZipArchive::new(io::BufReader::with_capacity(4096, file)) {
        Ok(archive) => Ok(Some(archive)),
        Err(ZipError::Io(error)) if error.raw_os_error().is_some() => Err(error).on(Op::Read, path),
        Err(_) => Ok(None),
    }
}

/// The number type an npy header names; none for one that lenspool does not write.
fn npy_dtype(head: &[u8]) -> Option<Dtype> {
    if !head.starts_with(b"\x93NUMPY") {
        return None;
    }
    let text = String::from_utf8_lossy(head);
    let descr = text.split_once("'descr':")?.1.trim_start();
    if descr.starts_with("'<f4'") {
        Some(Dtype::Float32)
    } else if descr.starts_with("'<f2'") {
        Some(Dtype::Float16)
    } else {
        None
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use zip::write::SimpleFileOptions;

    use super::*;

    /// The bytes of an npy file of shape (1, 1, n, n).
    pub(crate) fn npy(dtype: Dtype, n: usize) -> Vec<u8> {
        let descr = if dtype == Dtype::Float16 { "<f2" } else { "<f4" };
        let mut dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (1, 1, {n}, {n}), }}");
        dict.extend(std::iter::repeat_n(' ', 117 - dict.len()));
        dict.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        bytes.extend(dict.into_bytes());
        bytes.extend(std::iter::repeat_n(0x3c, dtype.bytes() * n * n));
        bytes
    }

    /// The bytes of an npz with these layers.
    pub(crate) fn npz(layers: &[usize], dtype: Dtype) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        for &layer in layers {
            let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
            zip.start_file(entry_name(layer), options).unwrap();
            zip.write_all(&npy(dtype, 3 + layer)).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn only_canonical_names_are_layers() {
        assert_eq!(entry_layer("blocks.11.attn.hook_pattern.npy"), Some(11));
        for name in [
            "blocks.-.attn.hook_pattern.npy",
            "blocks.+1.attn.hook_pattern.npy",
            "blocks.01.attn.hook_pattern.npy",
            "x",
        ] {
            assert_eq!(entry_layer(name), None, "{name}");
        }
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
        assert_eq!(kept.iter().map(|entry| entry.layer).collect::<Vec<_>>(), [0, 5]);
        let mut archive = ZipArchive::new(File::open(file.path()).unwrap()).unwrap();
        for entry in kept {
            let raw = archive.by_name(&entry.name).unwrap();
            assert_eq!((raw.crc32(), raw.size()), (entry.crc32, entry.uncompressed));
            assert_eq!(raw.compressed_size(), entry.data.len() as u64);
            assert!(entry.deflated);
        }
    }
}
