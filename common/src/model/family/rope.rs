//! Rotary frequencies from a configuration, in transformers 5's layout (`rope_parameters`) and the flat one
//! before it (`rope_theta`, `rope_scaling`). Every family with rotary positions reads them here.

use serde_json::{Map, Value};

use super::{
    config::{Keys, SpecError},
    value::FromValue,
};
use crate::model::spec::{Rotary, RotaryPairs};

/// The rope keys of a configuration, as the family's config struct read them.
pub(super) struct RopeKeys<'a> {
    /// `rope_parameters`, or one layer type's part of it.
    pub(super) parameters: Option<&'a Map<String, Value>>,
    /// The older `rope_scaling`; where both are there, Hugging Face reads this one.
    pub(super) scaling: Option<&'a Map<String, Value>>,
    /// The base where `parameters` names none.
    pub(super) theta: f64,
    /// The rotated share of a head where `parameters` names none; none: the family always rotates all of it.
    pub(super) partial: Option<f64>,
    /// The length before stretching where `parameters` names none.
    pub(super) original_context: usize,
}

/// How the frequencies are made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rope {
    theta: f64,
    partial: f64,
    kind: RopeKind,
}

/// The rope types that are supported.
#[derive(Clone, Debug, PartialEq)]
enum RopeKind {
    Default,
    Linear { factor: f64 },
    Llama3 { factor: f64, low: f64, high: f64, original: f64 },
}

const SUPPORTED: &str = "default, linear, llama3";

impl Rope {
    /// Reads the keys; an unknown one inside `rope_parameters` is an error as any other is.
    pub(super) fn read(keys: &Keys, rope: &RopeKeys<'_>) -> Result<Self, SpecError> {
        let flat = rope.scaling.filter(|map| !map.is_empty());
        let place = if flat.is_some() { "rope_scaling" } else { "rope_parameters" };
        let mut map = flat.or(rope.parameters).cloned().unwrap_or_default();
        let number = |map: &mut Map<String, Value>, key: &str, default: Option<f64>| {
            let found = map.remove(key).unwrap_or(Value::Null);
            let value = if found.is_null() { default } else { f64::from_value(&found) };
            value.ok_or_else(|| keys.unsupported(&format!("{place}.{key}"), &found, f64::EXPECTED))
        };
        let theta = number(&mut map, "rope_theta", Some(rope.theta))?;
        let partial = match rope.partial {
            Some(share) => number(&mut map, "partial_rotary_factor", Some(share))?,
            None => 1.0,
        };
        let name = map.remove("type");
        let name = map.remove("rope_type").or(name).unwrap_or_else(|| Value::from("default"));
        let kind = match name.as_str() {
            Some("default") => RopeKind::Default,
            Some("linear") => RopeKind::Linear { factor: number(&mut map, "factor", None)? },
            Some("llama3") => RopeKind::Llama3 {
                factor: number(&mut map, "factor", None)?,
                low: number(&mut map, "low_freq_factor", None)?,
                high: number(&mut map, "high_freq_factor", None)?,
                original: number(
                    &mut map,
                    "original_max_position_embeddings",
                    Some(rope.original_context as f64),
                )?,
            },
            _ => return Err(keys.unsupported(&format!("{place}.rope_type"), &name, SUPPORTED)),
        };
        match map.iter().next() {
            None => Ok(Rope { theta, partial, kind }),
            Some((key, value)) => {
                let supported = format!("leaving it out for rope type {name}");
                Err(keys.unsupported(&format!("{place}.{key}"), value, &supported))
            }
        }
    }

    /// The rotation of a head of width `d_head`.
    pub(super) fn rotary(&self, d_head: usize, pairs: RotaryPairs) -> Rotary {
        let dims = (d_head as f64 * self.partial) as usize;
        let mut inv_freq = inverse_frequencies(self.theta, dims);
        match self.kind {
            RopeKind::Default => {}
            RopeKind::Linear { factor } => inv_freq.iter_mut().for_each(|freq| *freq /= factor as f32),
            RopeKind::Llama3 { factor, low, high, original } => {
                for freq in &mut inv_freq {
                    *freq = llama3(*freq, factor as f32, low as f32, high as f32, original);
                }
            }
        }
        Rotary { inv_freq, attention_scaling: 1.0, pairs }
    }
}

/// `1 / base^(2 i / dims)`, each step rounded to f32 as PyTorch does; an odd `dims` rounds up to whole pairs.
pub(super) fn inverse_frequencies(base: f64, dims: usize) -> Vec<f32> {
    (0..dims)
        .step_by(2)
        .map(|i| {
            let exponent = i as f32 / dims as f32;
            1.0 / (f64::from(base as f32).powf(f64::from(exponent)) as f32)
        })
        .collect()
}

/// Llama 3.1's stretching: short waves kept, long ones divided by `factor`, those between blended.
fn llama3(freq: f32, factor: f32, low: f32, high: f32, original: f64) -> f32 {
    let long = (original / f64::from(low)) as f32;
    let short = (original / f64::from(high)) as f32;
    let wave = (2.0 * std::f64::consts::PI) as f32 / freq;
    if wave < short {
        freq
    } else if wave > long {
        freq / factor
    } else {
        let smooth = (original as f32 / wave - low) / (high - low);
        (1.0 - smooth) * freq / factor + smooth * freq
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_are_powers_of_the_base() {
        assert_eq!(inverse_frequencies(10_000.0, 4), [1.0, 0.01]);
    }

    #[test]
    fn an_odd_width_rounds_up_to_whole_pairs() {
        assert_eq!(inverse_frequencies(10_000.0, 3).len(), 2);
    }
}
