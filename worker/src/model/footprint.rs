//! How much device memory a batch needs, and whether a device has it: so that a batch is sized before it is tried.
//!
//! An estimate from shapes alone. It errs on the large side; where it does not, the device says so and the batch is
//! split (see [`crate::serve`]).

use std::fmt;

use bytesize::ByteSize;
use common::model::spec::ModelSpec;

use super::{batch::bucket, device::DeviceError, readback::LAYERS_AHEAD};
use crate::engine::{EngineError, Layout};

/// Of the memory that is free once the weights are placed, how much batches may be planned for: pools round up and
/// keep pieces.
const USABLE: f64 = 0.7;
/// Where a prompt's halves begin is a 32-bit number on the device.
const MOST_VALUES: usize = i32::MAX as usize;
/// cubecl's pools on CUDA take no buffer of more than this part of a card's memory.
const LARGEST_PART: u64 = 4;

/// A device's memory as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// What the device is called.
    pub(super) name: String,
    /// Bytes in all.
    pub(super) total: u64,
    /// Bytes nobody uses.
    pub(super) free: u64,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Room { name, total, free } = self;
        write!(f, "{name}, {}, of which {} are free", ByteSize(*total), ByteSize(*free))
    }
}

impl Room {
    /// Refuses weights of so many bytes where they are certain not to fit, before they are read.
    pub(super) fn takes(&self, weights: u64) -> Result<(), DeviceError> {
        match weights > self.free {
            true => Err(DeviceError::NoRoom(format!("its weights take {} ({self})", ByteSize(weights)))),
            false => Ok(()),
        }
    }
}

/// What a model's batches take of a device's memory.
#[derive(Clone, Debug)]
pub(super) struct Footprint {
    /// With the weights in it.
    room: Option<Room>,
    n_ctx: usize,
    n_heads: usize,
    /// Values that are there at once for each row of a pass, at most.
    row_values: usize,
}

impl Footprint {
    /// For batches of `spec`; no room: nothing is known of the device.
    pub(super) fn new(spec: &ModelSpec, room: Option<Room>) -> Self {
        let qkv = (spec.n_heads + 2 * spec.n_kv_heads) * spec.d_head;
        // The stream, its normalized copy and the block's output beside the wider of: queries, keys and values with
        // their rotated and transposed copies; the MLP's hidden layer, gated, with what comes of it.
        let row_values = 4 * spec.d_model + (4 * qkv).max(4 * spec.d_mlp);
        Footprint { room, n_ctx: spec.n_ctx, n_heads: spec.n_heads, row_values }
    }

    /// Tokens a prompt of `n` is padded to.
    pub(super) fn padded(&self, n: usize) -> usize {
        bucket(n, self.n_ctx)
    }

    /// Bytes a pass of `prompts` prompts of up to `longest` tokens is thought to need.
    pub(super) fn bytes(&self, prompts: usize, longest: usize) -> u64 {
        let seq = self.padded(longest);
        let patterns = self.patterns(prompts, longest);
        // Products and pattern whole, and the halves of the layers being made, waiting and being read.
        let halves = (LAYERS_AHEAD + 2) * patterns / 2;
        let values = prompts * seq * self.row_values + 2 * patterns + halves;
        (values * size_of::<f32>()) as u64
    }

    /// Values of one layer's padded patterns.
    fn patterns(&self, prompts: usize, longest: usize) -> usize {
        let seq = self.padded(longest);
        prompts * self.n_heads * seq * seq
    }

    /// Whether such a pass is thought to fit.
    pub(super) fn fits(&self, prompts: usize, longest: usize) -> bool {
        let free = self.room.as_ref().map_or(u64::MAX, |room| (room.free as f64 * USABLE) as u64);
        self.check(prompts, longest).is_ok() && self.bytes(prompts, longest) <= free
    }

    /// What is certain not to run here.
    pub(super) fn check(&self, prompts: usize, longest: usize) -> Result<(), EngineError> {
        let halves = prompts * Layout::Causal.len(self.n_heads, longest);
        if halves > MOST_VALUES {
            return Err(EngineError::Input(format!(
                "{halves} values in one layer's patterns, and {MOST_VALUES} can be read back at once"
            )));
        }
        let whole = (self.patterns(prompts, longest) * size_of::<f32>()) as u64;
        match &self.room {
            Some(room) if whole > room.total / LARGEST_PART => Err(EngineError::OutOfMemory(format!(
                "one layer's patterns take {}, and a buffer at most a quarter of the card's memory ({})",
                ByteSize(whole),
                self.card()
            ))),
            _ => Ok(()),
        }
    }

    /// What to say of the device in an error.
    pub(super) fn card(&self) -> String {
        match &self.room {
            None => "this device".to_owned(),
            Some(Room { name, total, free }) => {
                let (total, free) = (ByteSize(*total), ByteSize(*free));
                format!("{name}, {total}, of which {free} were free with the weights in place")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use common::model::family::read_spec;

    use super::*;
    use crate::model::tests::fixture;

    fn footprint(free: u64) -> Footprint {
        let config = fixture("gpt2-tiny").join("config.json");
        let room = Room { name: "a card".to_owned(), total: 1 << 34, free };
        Footprint::new(&read_spec(&config).expect("a fixture"), Some(room))
    }

    #[test]
    fn more_and_longer_prompts_need_more_and_padding_counts() {
        let footprint = footprint(u64::MAX);
        assert!(footprint.bytes(2, 32) > footprint.bytes(1, 32));
        assert!(footprint.bytes(1, 64) > 2 * footprint.bytes(1, 32) - footprint.bytes(1, 1));
        assert_eq!(footprint.bytes(3, 33), footprint.bytes(3, 64));
    }

    #[test]
    fn what_does_not_fit_the_free_memory_is_known_before() {
        let needed = footprint(0).bytes(4, 64);
        let free = (needed as f64 / USABLE) as u64 + 2;
        assert!(footprint(free).fits(4, 64));
        assert!(!footprint(free).fits(5, 64));
        assert!(!footprint(u64::MAX).fits(1 << 30, 64), "positions are 32-bit numbers");
        assert!(matches!(footprint(u64::MAX).check(1 << 30, 64), Err(EngineError::Input(_))));
        let large = footprint(u64::MAX).check(1 << 17, 64).unwrap_err().to_string();
        assert!(large.contains("a quarter of the card's memory (a card, 16.0 GiB"), "{large}");
    }

    #[test]
    fn the_card_is_described_for_errors() {
        let told = "a card, 16.0 GiB, of which 8.0 GiB were free with the weights in place";
        assert_eq!(footprint(1 << 33).card(), told);
    }
}
