//! The encoder: one pattern in, one npz entry out.

use common::capture::Dtype;
use common::npz::{Entry, Method, NpyHeader};

use super::blocks::Blocks;
use super::compression::{Compression, ZlibLevel};
use super::general::General;
use super::kernel::Kernel;
use super::pattern::PatternView;
use super::values;

/// Arrays of at most this many bytes are also tried with zlib, which may find more in them; they take little time
/// either way.
const SMALL: usize = 16 << 10;

/// Payload buffers kept for later.
const MOST_SPARE: usize = 16;

/// Encodes patterns; owns the buffers that one array after the other needs. One for each thread.
#[derive(Debug)]
pub struct Encoder {
    compression: Compression,
    dtype: Dtype,
    blocks: Blocks,
    words: Vec<u32>,
    halves: Vec<u16>,
    spare: Vec<Vec<u8>>,
    /// One for each level that was needed.
    generals: Vec<General>,
}

/// Compressed bytes with what a zip says about them.
struct Stream {
    payload: Vec<u8>,
    crc: crc32fast::Hasher,
    uncompressed_len: u64,
}

impl Encoder {
    /// An encoder that compresses and rounds as told.
    pub fn new(compression: Compression, dtype: Dtype) -> Self {
        Self::with_kernel(compression, dtype, Kernel::detect())
    }

    pub(super) fn with_kernel(compression: Compression, dtype: Dtype, kernel: Kernel) -> Self {
        Encoder {
            compression,
            dtype,
            blocks: Blocks::new(kernel),
            words: Vec::new(),
            halves: Vec::new(),
            spare: Vec::new(),
            generals: Vec::new(),
        }
    }

    /// The number type its entries have.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// One layer as an array of its own, of shape `(1, n_heads, n, n)`.
    pub fn encode(&mut self, name: &str, pattern: PatternView<'_>) -> Entry {
        let shape = vec![1, pattern.n_heads(), pattern.n(), pattern.n()];
        let header = NpyHeader { dtype: self.dtype, shape }.to_bytes();
        let mut stream = self.stream(&header, &pattern, self.compression);
        let small = pattern.len() * self.dtype.bytes() <= SMALL;
        if small && self.compression == Compression::Causal {
            for level in ZlibLevel::SMALL {
                let mut other = self.stream(&header, &pattern, Compression::Zlib(level));
                if other.payload.len() < stream.payload.len() {
                    std::mem::swap(&mut stream, &mut other);
                }
                self.keep(other.payload);
            }
        }
        Entry {
            name: name.to_owned(),
            method: self.method(),
            crc32: stream.crc.finalize(),
            uncompressed_len: stream.uncompressed_len,
            payload: stream.payload,
        }
    }

    /// Takes back an entry that has been written: its buffer serves a later one, and the system need
    /// not hand out fresh pages for it.
    pub fn recycle(&mut self, entry: Entry) {
        self.keep(entry.payload);
    }

    fn keep(&mut self, payload: Vec<u8>) {
        if self.spare.len() < MOST_SPARE {
            self.spare.push(payload);
        }
    }

    fn method(&self) -> Method {
        match self.compression {
            Compression::Store => Method::Stored,
            Compression::Causal | Compression::Zlib(_) => Method::Deflate,
        }
    }

    fn stream(&mut self, header: &[u8], pattern: &PatternView<'_>, compression: Compression) -> Stream {
        let mut payload = self.spare.pop().unwrap_or_default();
        payload.clear();
        let mut crc = crc32fast::Hasher::new();
        crc.update(header);
        let payload = match compression {
            Compression::Causal => {
                let (blocks, n) = (&mut self.blocks, pattern.n());
                blocks.begin(payload, header);
                match self.dtype {
                    Dtype::Float32 => values::float32(pattern, &mut self.words, |chunk, segments| {
                        blocks.write(chunk, n, segments, &mut crc);
                    }),
                    Dtype::Float16 => values::float16(pattern, &mut self.halves, |chunk, segments| {
                        blocks.write(chunk, n, segments, &mut crc);
                    }),
                }
                blocks.end()
            }
            Compression::Zlib(level) => {
                let before = self.generals.iter().position(|general| general.level() == level);
                let mut general =
                    before.map_or_else(|| General::new(level), |at| self.generals.swap_remove(at));
                general.begin(payload);
                general.write(header);
                self.each_bytes(pattern, |bytes| {
                    crc.update(bytes);
                    general.write(bytes);
                });
                let payload = general.end(true);
                self.generals.push(general);
                payload
            }
            Compression::Store => {
                payload.reserve(header.len() + pattern.len() * self.dtype.bytes());
                payload.extend_from_slice(header);
                self.each_bytes(pattern, |bytes| {
                    crc.update(bytes);
                    payload.extend_from_slice(bytes);
                });
                payload
            }
        };
        let uncompressed_len = (header.len() + pattern.len() * self.dtype.bytes()) as u64;
        Stream { payload, crc, uncompressed_len }
    }

    fn each_bytes(&mut self, pattern: &PatternView<'_>, mut take: impl FnMut(&[u8])) {
        match self.dtype {
            Dtype::Float32 => {
                values::float32(pattern, &mut self.words, |chunk, _| take(chunk.new_bytes()));
            }
            Dtype::Float16 => {
                values::float16(pattern, &mut self.halves, |chunk, _| take(chunk.new_bytes()));
            }
        }
    }
}
