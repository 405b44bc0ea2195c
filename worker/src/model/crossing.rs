//! Whether the causal halves of patterns reach the host sooner than whole patterns do: what the engine on a GPU takes for
//! granted.
//!
//! The halves are half the bytes, and a kernel puts them together first. Which is faster depends on the card and what
//! it is connected by.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::{device::DeviceChoice, ops::causal_halves, readback::fetch};
use crate::engine::{EngineError, Layout};

/// Readings of each kind, the first of which, with whatever it compiles and allocates, does not count.
const READINGS: usize = 6;

/// How long one layer's patterns of a batch take from the device to the host, the fastest of several readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// The causal halves, put together on the device: as the engine reads them.
    pub halves: Duration,
    /// Whole patterns.
    pub squares: Duration,
}

impl Crossing {
    /// Measures with `prompts` of `n` tokens each; none where the device's memory is the host's.
    pub fn measure(
        device: DeviceChoice,
        prompts: usize,
        n_heads: usize,
        n: usize,
    ) -> Option<Result<Crossing, EngineError>> {
        let device = match device.resolve() {
            DeviceChoice::Auto | DeviceChoice::Cpu => return None,
            other => other.open(),
        };
        let device = device.map_err(|error| EngineError::Device(error.to_string()));
        Some(device.and_then(|device| measure(&device, prompts, n_heads, n)))
    }
}

fn measure(device: &Device, prompts: usize, n_heads: usize, n: usize) -> Result<Crossing, EngineError> {
    let pattern = Tensor::<4>::ones([prompts, n_heads, n, n], device);
    let each = Layout::Causal.len(n_heads, n);
    let places = (0..prompts).flat_map(|prompt| [n as i64, (prompt * each) as i64]).collect();
    let places = TensorData::new::<i64, _>(places, [2 * prompts]);
    let places = Tensor::<1, Int>::from_data(places, device);
    let halves = || fetch(causal_halves(pattern.clone(), places.clone(), prompts * each), "this device");
    let squares = || fetch(pattern.clone(), "this device");
    Ok(Crossing {
        halves: fastest(device, prompts * each, halves)?,
        squares: fastest(device, prompts * Layout::Square.len(n_heads, n), squares)?,
    })
}

/// The fastest of several times that `read` takes to give `len` values.
fn fastest(
    device: &Device,
    len: usize,
    read: impl Fn() -> Result<TensorData, EngineError>,
) -> Result<Duration, EngineError> {
    let mut best = Duration::MAX;
    for reading in 0..READINGS {
        // What was launched before is not to be waited for.
        let _ = device.sync();
        let begin = Instant::now();
        let data = read()?;
        let took = begin.elapsed();
        if data.num_elements() != len {
            let found = data.num_elements();
            return Err(EngineError::Bug(format!("{found} values were read, and {len} are there")));
        }
        if reading > 0 {
            best = best.min(took);
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::device;

    #[test]
    fn both_ways_give_all_values() {
        let crossing = measure(&device(), 2, 3, 17).unwrap();
        assert!(crossing.halves > Duration::ZERO && crossing.squares > Duration::ZERO, "{crossing:?}");
        assert_eq!(Crossing::measure(DeviceChoice::Cpu, 2, 3, 17), None);
    }
}
