//! One prompt's file of arrays: a whole zip archive, each entry inflated and checked against its CRC; or a stacked
//! array as it is.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use common::{
    capture::{ArrayLayout, Dtype},
    npz::{Entry, EntryInfo, Method, NpyHeader, NpzError, NpzReader, layer_of_entry},
};
use flate2::read::DeflateDecoder;

use super::array::{Shape, check};

/// What a file of arrays must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Layers of the model, where that is known.
    pub n_layers: Option<usize>,
    /// Heads of a layer, where that is known.
    pub n_heads: Option<usize>,
    /// Layers that must be there.
    pub layers: Vec<usize>,
    /// The number type asked for; a wider one does as well.
    pub dtype: Option<Dtype>,
}

impl Expected {
    fn dtype_fits(&self, header: &NpyHeader) -> Result<(), String> {
        match self.dtype {
            Some(wanted) if header.dtype.bytes() < wanted.bytes() => {
                Err(format!("its numbers are {:?}, not {wanted:?}", header.dtype))
            }
            _ => Ok(()),
        }
    }
}

/// Reads a whole file of arrays. The errors are what is wrong with it.
pub fn check_file(
    path: &Path,
    layout: ArrayLayout,
    expected: &Expected,
    n_tokens: Option<usize>,
) -> Result<(), String> {
    match layout {
        ArrayLayout::PerLayer => check_npz(path, expected, n_tokens),
        ArrayLayout::Stacked => check_stacked(path, expected, n_tokens),
    }
}

fn check_stacked(path: &Path, expected: &Expected, n_tokens: Option<usize>) -> Result<(), String> {
    let mut file = BufReader::new(File::open(path).map_err(|error| unreadable(&error))?);
    let shape = Shape { outer: vec![Some(1), expected.n_layers, expected.n_heads], n_tokens };
    let header = check(&mut file, &shape)?;
    expected.dtype_fits(&header)
}

fn check_npz(path: &Path, expected: &Expected, n_tokens: Option<usize>) -> Result<(), String> {
    let mut npz = NpzReader::open(path).map_err(|error| told(&error))?;
    let entries = npz.entries().to_vec();
    let mut seen = Vec::new();
    let mut n = None;
    for info in &entries {
        let entry = npz.read_stored(info).map_err(|error| format!("{}: {}", info.name, told(&error)))?;
        let layer = layer_of_entry(&info.name);
        let header = check_entry(info, &entry, layer.is_some(), expected, n_tokens)
            .map_err(|what| format!("{}: {what}", info.name))?;
        let (Some(layer), Some(header)) = (layer, header) else { continue };
        let asked = expected.layers.contains(&layer);
        if asked {
            expected.dtype_fits(&header).map_err(|what| format!("{}: {what}", info.name))?;
        }
        if expected.n_layers.is_some_and(|n_layers| layer >= n_layers) {
            return Err(format!(
                "it holds layer {layer} of a model with {} layers",
                expected.n_layers.unwrap_or(0)
            ));
        }
        if seen.contains(&layer) {
            return Err(format!("it holds layer {layer} twice"));
        }
        if *n.get_or_insert(header.shape.last().copied()) != header.shape.last().copied() {
            return Err(format!("{}: its layers are of different lengths", info.name));
        }
        seen.push(layer);
    }
    let missing: Vec<_> =
        expected.layers.iter().filter(|layer| !seen.contains(layer)).map(usize::to_string).collect();
    if !missing.is_empty() {
        return Err(format!("it lacks layers {}", missing.join(", ")));
    }
    if seen.is_empty() { Err("it holds no layer".to_owned()) } else { Ok(()) }
}

/// Inflates one entry to its end. Of an entry that is no layer's, only that it is whole is looked at.
fn check_entry(
    info: &EntryInfo,
    entry: &Entry,
    is_layer: bool,
    expected: &Expected,
    n_tokens: Option<usize>,
) -> Result<Option<NpyHeader>, String> {
    let stored = &entry.payload[..];
    let inflated: Box<dyn Read> = match info.method {
        Method::Stored => Box::new(stored),
        Method::Deflate => Box::new(DeflateDecoder::new(stored)),
        Method::Other(number) => {
            return Err(format!("it is compressed by method {number}, which is not lenspool's"));
        }
    };
    // A damaged stream may inflate to more than memory or time allow.
    let mut input =
        Summed { input: inflated.take(info.uncompressed_len + 1), crc: crc32fast::Hasher::new(), len: 0 };
    let checked = if is_layer {
        let shape = Shape { outer: vec![Some(1), expected.n_heads], n_tokens };
        check(&mut input, &shape).map(Some)
    } else {
        Ok(None)
    };
    // What a wrong CRC explains better is told as that.
    match io::copy(&mut input, &mut io::sink()) {
        Err(error) => return Err(format!("it does not decompress: {error}")),
        Ok(_) if input.len != info.uncompressed_len => {
            return Err(format!("it is {} bytes long, not {}", input.len, info.uncompressed_len));
        }
        Ok(_) if input.crc.finalize() != info.crc32 => return Err("its CRC is wrong".to_owned()),
        Ok(_) => {}
    }
    checked
}

/// Sums up what is read.
struct Summed<R> {
    input: R,
    crc: crc32fast::Hasher,
    len: u64,
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buf)?;
        self.crc.update(&buf[..read]);
        self.len += read as u64;
        Ok(read)
    }
}

/// What is said of a file the system does not give: it may be whole.
pub const CANNOT_READ: &str = "it cannot be read: ";

fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it is missing".to_owned(),
        _ => format!("{CANNOT_READ}{error}"),
    }
}

/// What is wrong, without the path, which stands before it.
fn told(error: &NpzError) -> String {
    match error {
        NpzError::Io { source, .. } => unreadable(source),
        NpzError::Broken { what, .. } => format!("no whole npz file: {what}"),
    }
}

#[cfg(test)]
pub mod tests {
    use std::{fs, io::Write as _};

    use common::npz::{layer_entry_name, write_npz};

    use super::*;
    use crate::verify::array::tests::npy;

    fn entry(layer: usize, array: &[u8]) -> Entry {
        let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        deflate.write_all(array).unwrap();
        Entry {
            name: layer_entry_name(layer),
            method: Method::Deflate,
            crc32: crc32fast::hash(array),
            uncompressed_len: array.len() as u64,
            payload: deflate.finish().unwrap(),
        }
    }

    /// The bytes of an npz of `n` tokens and two heads.
    pub fn npz(layers: &[usize], dtype: Dtype, n: usize) -> Vec<u8> {
        let entries: Vec<_> = layers.iter().map(|&layer| entry(layer, &npy(dtype, &[1, 2], n))).collect();
        let mut bytes = Vec::new();
        write_npz(&entries, &mut bytes).unwrap();
        bytes
    }

    fn expected() -> Expected {
        Expected { n_layers: Some(2), n_heads: Some(2), layers: vec![0, 1], dtype: Some(Dtype::Float32) }
    }

    fn check_bytes(bytes: &[u8], expected: &Expected) -> Result<(), String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        check_file(file.path(), ArrayLayout::PerLayer, expected, Some(5))
    }

    #[test]
    fn whole_files_are_good() {
        for n in [5, 6] {
            assert_eq!(check_bytes(&npz(&[0, 1], Dtype::Float32, n), &expected()), Ok(()));
        }
        let half = Expected { dtype: Some(Dtype::Float16), layers: vec![1], ..expected() };
        assert_eq!(check_bytes(&npz(&[1], Dtype::Float16, 5), &half), Ok(()));
        assert_eq!(check_bytes(&npz(&[0, 1], Dtype::Float32, 5), &half), Ok(()), "a wider type does");
        let unknown = Expected::default();
        assert_eq!(check_bytes(&npz(&[7], Dtype::Float16, 5), &unknown), Ok(()));

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stacked.npy");
        fs::write(&path, npy(Dtype::Float32, &[1, 2, 2], 5)).unwrap();
        assert_eq!(check_file(&path, ArrayLayout::Stacked, &expected(), Some(5)), Ok(()));
        fs::write(&path, npy(Dtype::Float32, &[1, 3, 2], 5)).unwrap();
        assert!(
            check_file(&path, ArrayLayout::Stacked, &expected(), Some(5)).unwrap_err().contains("its shape")
        );
    }

    #[test]
    fn what_lacks_or_has_too_much_is_told() {
        let half = npz(&[0, 1], Dtype::Float16, 5);
        for (bytes, said) in [
            (npz(&[1], Dtype::Float32, 5), "it lacks layers 0"),
            (npz(&[0, 1, 2], Dtype::Float32, 5), "it holds layer 2 of a model with 2 layers"),
            (npz(&[0, 1, 1], Dtype::Float32, 5), "it holds layer 1 twice"),
            (half, "its numbers are Float16, not Float32"),
            (npz(&[0, 1], Dtype::Float32, 4), "its shape is [1, 2, 4, 4]"),
            (Vec::new(), "no whole npz file"),
        ] {
            let error = check_bytes(&bytes, &expected()).unwrap_err();
            assert!(error.contains(said), "{said}: {error}");
        }
        let gone = check_file(Path::new("/nowhere/x.npz"), ArrayLayout::PerLayer, &expected(), None);
        assert_eq!(gone, Err("it is missing".to_owned()));
    }

    #[test]
    fn layers_of_one_prompt_are_equally_long() {
        let entries =
            [entry(0, &npy(Dtype::Float32, &[1, 2], 5)), entry(1, &npy(Dtype::Float32, &[1, 2], 6))];
        let mut bytes = Vec::new();
        write_npz(&entries, &mut bytes).unwrap();
        assert!(check_bytes(&bytes, &expected()).unwrap_err().contains("different lengths"));
    }

    #[test]
    fn a_flipped_bit_or_a_cut_anywhere_in_the_data_is_found() {
        let good = npz(&[0, 1], Dtype::Float32, 5);
        let npz = tempfile::NamedTempFile::new().unwrap();
        fs::write(npz.path(), &good).unwrap();
        let entries = common::npz::read_directory(npz.path()).unwrap();
        for info in &entries {
            let start = info.header_offset as usize + 30 + info.name.len();
            // The last bits of a deflate stream mean nothing.
            for at in start..start + info.compressed_len as usize - 1 {
                let mut bytes = good.clone();
                bytes[at] ^= 0x10;
                assert!(check_bytes(&bytes, &expected()).is_err(), "byte {at}");
            }
        }
        for cut in [1, good.len() / 2, good.len() - 1] {
            assert!(check_bytes(&good[..cut], &expected()).is_err(), "{cut}");
        }
    }
}
