//! Deflate for whatever comes: zlib's algorithm at a level of choice.

use flate2::{Compress, FlushCompress, Status};

use super::compression::ZlibLevel;

/// A raw deflate stream being written. Its state is large: one serves one stream after the other.
#[derive(Debug)]
pub(crate) struct General {
    compress: Compress,
    level: ZlibLevel,
    out: Vec<u8>,
}

impl General {
    /// For streams at this level.
    pub(crate) fn new(level: ZlibLevel) -> Self {
        let compress = Compress::new(flate2::Compression::new(level.get().into()), false);
        General { compress, level, out: Vec::new() }
    }

    /// Its level.
    pub(crate) fn level(&self) -> ZlibLevel {
        self.level
    }

    /// Begins a stream; it continues `out`, which must end between blocks.
    pub(crate) fn begin(&mut self, out: Vec<u8>) {
        self.compress.reset();
        self.out = out;
    }

    /// Lets matches reach into `before`, the last bytes of the stream so far; before anything is written.
    pub(crate) fn look_back(&mut self, before: &[u8]) {
        self.compress.set_dictionary(before).expect("a raw stream takes a dictionary at its start");
    }

    /// Compresses more bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.run(bytes, FlushCompress::None);
    }

    /// Ends between bytes and blocks: with the stream's last block or, for a piece of a stream, an empty one.
    pub(crate) fn end(&mut self, last: bool) -> Vec<u8> {
        self.run(&[], if last { FlushCompress::Finish } else { FlushCompress::Sync });
        std::mem::take(&mut self.out)
    }

    fn run(&mut self, bytes: &[u8], flush: FlushCompress) {
        let start = self.compress.total_in();
        loop {
            self.out.reserve(32 << 10);
            let done = (self.compress.total_in() - start) as usize;
            let status = self.compress.compress_vec(&bytes[done..], &mut self.out, flush);
            let status = status.expect("deflate takes any bytes while it is given room");
            let all_in = (self.compress.total_in() - start) as usize == bytes.len();
            let room_left = self.out.len() < self.out.capacity();
            match status {
                Status::StreamEnd => return,
                _ if all_in && room_left && !matches!(flush, FlushCompress::Finish) => return,
                _ => {}
            }
        }
    }
}
