//! Files of more than 4 GiB: what only zip64 can say is read by numpy as it was meant.
//!
//! The large array is zeros, which need neither memory nor, in a file with holes, disk.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::PathBuf,
    process::Command,
};

use common::{
    capture::Dtype,
    npz::{Entry, Method, NpyHeader, layer_entry_name, write_npz},
};
use tests::repository;

/// Writes whole blocks of zeros as holes.
struct Sparse(File);

const BLOCK: usize = 4096;

impl Write for Sparse {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        static ZEROS: [u8; BLOCK] = [0; BLOCK];
        let blocks = bytes.chunks_exact(BLOCK).take_while(|&block| block == ZEROS).count();
        if blocks > 0 {
            self.0.seek(SeekFrom::Current((blocks * BLOCK) as i64))?;
            return Ok(blocks * BLOCK);
        }
        self.0.write(&bytes[..bytes.len().min(BLOCK)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn stored(layer: usize, shape: [usize; 4], values: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Entry {
    let header = NpyHeader { dtype: Dtype::Float32, shape: shape.to_vec() }.to_bytes();
    let payload = values(header);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&payload);
    Entry {
        name: layer_entry_name(layer),
        method: Method::Stored,
        crc32: crc.finalize(),
        uncompressed_len: payload.len() as u64,
        payload,
    }
}

#[test]
#[ignore = "passes 4 GiB through memory several times, some twenty seconds: run with --ignored"]
fn numpy_reads_a_file_of_more_than_4_gib() {
    let n = 33_000; // 4.36e9 bytes in one head
    let large = stored(0, [1, 1, n, n], |header| {
        let mut payload = vec![0; header.len() + 4 * n * n];
        payload[..header.len()].copy_from_slice(&header);
        payload
    });
    let small = stored(1, [1, 1, 2, 2], |mut bytes| {
        [1.0f32, 0.0, 0.25, 0.75].iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        bytes
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("activations.npz");
    let length = write_npz(&[large, small], &mut Sparse(File::create(&path).unwrap())).unwrap();
    assert!(length > 1 << 32);

    let python = std::env::var_os("LENSPOOL_TEST_PYTHON").map(PathBuf::from);
    let python = python.unwrap_or_else(|| repository().join("target/readback-venv/bin/python"));
    assert!(python.exists(), "{} is missing: tests/run makes it", python.display());
    let told =
        Command::new(python).arg(repository().join("tests/python/zip64.py")).arg(&path).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
}
