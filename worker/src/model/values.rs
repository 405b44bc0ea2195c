//! A tensor's values as a checkpoint stores them, read as f32.

use std::{ops::Range, sync::Arc};

use half::{bf16, f16, slice::HalfFloatSliceExt};
use memmap2::Mmap;

/// The number types weights may be stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F16,
    Bf16,
}

/// A tensor's values.
#[derive(Clone)]
pub(super) struct Values {
    pub(super) bytes: Stored,
    pub(super) kind: Kind,
}

/// Where they are.
#[derive(Clone)]
pub(super) enum Stored {
    /// In a mapped file.
    Mapped(Arc<Mmap>, Range<usize>),
    /// In memory.
    Read(Arc<Vec<u8>>),
}

impl Values {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match self.kind {
            Kind::F32 => self.bytes().len() / 4,
            Kind::F16 | Kind::Bf16 => self.bytes().len() / 2,
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Stored::Mapped(map, range) => &map[range.clone()],
            Stored::Read(bytes) => bytes,
        }
    }

    /// Copies the values from `start` on into `out`, as f32.
    pub(super) fn read(&self, start: usize, out: &mut [f32]) {
        let len = out.len();
        let bytes = |width: usize| &self.bytes()[start * width..(start + len) * width];
        match self.kind {
            Kind::F32 => {
                for (value, bytes) in out.iter_mut().zip(bytes(4).as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Kind::F16 => {
                // Blocks on the stack: the bytes may be unaligned, and the conversion is fast on slices.
                let mut block = [f16::ZERO; 64];
                for (out, bytes) in out.chunks_mut(64).zip(bytes(2).chunks(128)) {
                    for (half, bytes) in block.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *half = f16::from_le_bytes(*bytes);
                    }
                    block[..out.len()].convert_to_f32_slice(out);
                }
            }
            Kind::Bf16 => {
                for (value, bytes) in out.iter_mut().zip(bytes(2).as_chunks::<2>().0) {
                    *value = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_from_any_place() {
        let numbers: Vec<f32> = (0..200).map(|i| i as f32 / 8.0 - 3.0).collect();
        let f32s: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let f16s: Vec<u8> = numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        let bf16s: Vec<u8> = numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        for (kind, bytes) in [(Kind::F32, f32s), (Kind::F16, f16s), (Kind::Bf16, bf16s)] {
            let values = Values { bytes: Stored::Read(Arc::new(bytes)), kind };
            assert_eq!(values.len(), 200);
            let mut out = [0.0; 131];
            values.read(7, &mut out);
            assert_eq!(out, numbers[7..138], "{kind:?}");
        }
    }
}
