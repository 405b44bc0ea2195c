//! Rotary frequencies from a configuration, in transformers 5's layout (`rope_parameters`) and the flat one
//! before it (`rope_theta`, `rope_scaling`). Every family with rotary positions reads them here.
//!
//! Formulas and the order of operations are those of transformers' `modeling_rope_utils.py`: frequencies are f32
//! and each step is rounded where PyTorch rounds it.

use std::f64::consts::PI;

use serde_json::{Map, Value};

use super::{
    config::{Keys, SpecError},
    value::FromValue,
};
use crate::model::spec::{LongRotary, Rotary, RotaryPairs};

/// The rope keys of a configuration, as the family's config struct read them, and what they are about.
pub(super) struct RopeKeys<'a> {
    /// `rope_parameters`, or one layer type's part of it.
    pub(super) parameters: Option<&'a Map<String, Value>>,
    /// The older `rope_scaling`; where both are there, Hugging Face reads this one.
    pub(super) scaling: Option<&'a Map<String, Value>>,
    /// The base where `parameters` names none.
    pub(super) theta: f64,
    /// The rotated share of a head where `parameters` names none; none: the family always rotates all of it.
    pub(super) partial: Option<f64>,
    /// The length before stretching, where the family has a key of its own for it.
    pub(super) original_context: Option<usize>,
    /// `max_position_embeddings`.
    pub(super) context: usize,
    /// Width of a head.
    pub(super) d_head: usize,
}

const SUPPORTED: &str = "default, linear, dynamic, yarn, longrope, llama3";

/// The rotation the keys describe, of half-split pairs; an unknown key among them is an error as any other is.
pub(super) fn rotary(keys: &Keys, rope: &RopeKeys<'_>) -> Result<Rotary, SpecError> {
    let flat = rope.scaling.filter(|map| !map.is_empty());
    let mut fields = Fields {
        keys,
        place: if flat.is_some() { "rope_scaling" } else { "rope_parameters" },
        map: flat.or(rope.parameters).cloned().unwrap_or_default(),
    };
    let theta = fields.or("rope_theta", rope.theta)?;
    let share = match rope.partial {
        Some(share) => fields.or("partial_rotary_factor", share)?,
        None => 1.0,
    };
    let dims = (rope.d_head as f64 * share) as usize;
    let name = fields.name();
    let own = rope.original_context.map(|context| context as f64);
    let mut plain = Rotary {
        inv_freq: inverse_frequencies(theta, dims),
        long: None,
        attention_scaling: 1.0,
        pairs: RotaryPairs::HalfSplit,
    };
    let rotary = match name.as_str() {
        // What dynamic scaling changes, it changes past the model's context, where no prompt goes.
        Some("default" | "dynamic") => {
            fields.ignore("factor");
            plain
        }
        Some("linear") => {
            let factor = fields.number("factor")? as f32;
            plain.inv_freq.iter_mut().for_each(|freq| *freq /= factor);
            plain
        }
        Some("llama3") => {
            let (factor, low) = (fields.number("factor")?, fields.number("low_freq_factor")?);
            let high = fields.number("high_freq_factor")?;
            let given = fields.or("original_max_position_embeddings", rope.context as f64)?;
            let original = own.unwrap_or(given);
            plain.inv_freq.iter_mut().for_each(|freq| *freq = llama3(*freq, factor, low, high, original));
            plain
        }
        Some("yarn") => {
            let given = fields.or("original_max_position_embeddings", rope.context as f64)?;
            let original = own.unwrap_or(given);
            let factor = fields.or("factor", rope.context as f64 / original)?;
            Rotary {
                attention_scaling: yarn_scaling(&mut fields, factor)?,
                inv_freq: yarn(&mut fields, theta, dims, factor, original)?,
                ..plain
            }
        }
        // "su" is Phi-3's first name for it.
        Some("longrope" | "su") => {
            let given = fields.or("original_max_position_embeddings", rope.context as f64)?;
            let original = own.unwrap_or(given);
            let factor = fields.or("factor", rope.context as f64 / original)?;
            let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
            Rotary {
                attention_scaling: fields.or("attention_factor", usual)? as f32,
                long: Some(LongRotary {
                    beyond: original as usize,
                    inv_freq: stretched(theta, dims, &fields.list("long_factor", dims.div_ceil(2))?),
                }),
                inv_freq: stretched(theta, dims, &fields.list("short_factor", dims.div_ceil(2))?),
                ..plain
            }
        }
        _ => return Err(fields.unsupported("rope_type", &name, SUPPORTED)),
    };
    match fields.map.iter().next() {
        None => Ok(rotary),
        Some((key, value)) => {
            Err(fields.unsupported(key, value, &format!("leaving it out for rope type {name}")))
        }
    }
}

/// What is left of `rope_parameters` or `rope_scaling`.
struct Fields<'a> {
    keys: &'a Keys,
    place: &'static str,
    map: Map<String, Value>,
}

impl Fields<'_> {
    /// A number; `default` where it is absent or null.
    fn or(&mut self, key: &str, default: f64) -> Result<f64, SpecError> {
        match self.map.get(key) {
            None | Some(Value::Null) => {
                self.ignore(key);
                Ok(default)
            }
            Some(_) => self.number(key),
        }
    }

    /// A number that must be there.
    fn number(&mut self, key: &str) -> Result<f64, SpecError> {
        let found = self.map.remove(key).unwrap_or(Value::Null);
        f64::from_value(&found).ok_or_else(|| self.unsupported(key, &found, f64::EXPECTED))
    }

    /// A list of `len` numbers that must be there.
    fn list(&mut self, key: &str, len: usize) -> Result<Vec<f64>, SpecError> {
        let found = self.map.remove(key).unwrap_or(Value::Null);
        let list = Vec::<f64>::from_value(&found).filter(|list| list.len() == len);
        list.ok_or_else(|| self.unsupported(key, &found, &format!("a list of {len} numbers")))
    }

    /// The rope type, by its newer or older key.
    fn name(&mut self) -> Value {
        let older = self.map.remove("type");
        self.map.remove("rope_type").or(older).unwrap_or_else(|| Value::from("default"))
    }

    fn ignore(&mut self, key: &str) {
        self.map.remove(key);
    }

    fn unsupported(&self, key: &str, found: &Value, supported: &str) -> SpecError {
        self.keys.unsupported(&format!("{}.{key}", self.place), found, supported)
    }
}

/// `base^(2 i / dims)`; an odd `dims` rounds up to whole pairs.
fn powers(base: f64, dims: usize) -> impl Iterator<Item = f32> {
    (0..dims).step_by(2).map(move |i| {
        let exponent = i as f32 / dims as f32;
        f64::from(base as f32).powf(f64::from(exponent)) as f32
    })
}

/// `1 / base^(2 i / dims)`.
pub(super) fn inverse_frequencies(base: f64, dims: usize) -> Vec<f32> {
    powers(base, dims).map(|power| 1.0 / power).collect()
}

/// LongRoPE: each wave stretched by a factor of its own.
fn stretched(base: f64, dims: usize, factors: &[f64]) -> Vec<f32> {
    powers(base, dims).zip(factors).map(|(power, factor)| 1.0 / (*factor as f32 * power)).collect()
}

/// Llama 3.1's stretching: short waves kept, long ones divided by `factor`, those between blended.
fn llama3(freq: f32, factor: f64, low: f64, high: f64, original: f64) -> f32 {
    let (long, short) = ((original / low) as f32, (original / high) as f32);
    let wave = (2.0 * PI) as f32 / freq;
    if wave < short {
        freq
    } else if wave > long {
        freq / factor as f32
    } else {
        let smooth = (original as f32 / wave - low as f32) / (high - low) as f32;
        (1.0 - smooth) * freq / factor as f32 + smooth * freq
    }
}

/// YaRN's factor on cos and sin.
fn yarn_scaling(fields: &mut Fields<'_>, factor: f64) -> Result<f32, SpecError> {
    let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let (one, all) = (fields.or("mscale", 0.0)?, fields.or("mscale_all_dim", 0.0)?);
    let usual = if one != 0.0 && all != 0.0 { scale(one) / scale(all) } else { scale(1.0) };
    Ok(fields.or("attention_factor", usual)? as f32)
}

/// YaRN: waves that turn often within the original context kept, those that turn rarely divided by `factor`,
/// a ramp between.
fn yarn(
    fields: &mut Fields<'_>,
    base: f64,
    dims: usize,
    factor: f64,
    original: f64,
) -> Result<Vec<f32>, SpecError> {
    let given = |number: f64, usual: f64| if number == 0.0 { usual } else { number };
    let fast = given(fields.or("beta_fast", 32.0)?, 32.0);
    let slow = given(fields.or("beta_slow", 1.0)?, 1.0);
    let truncate = match fields.map.remove("truncate") {
        None | Some(Value::Bool(true)) => true,
        Some(Value::Bool(false)) => false,
        Some(other) => return Err(fields.unsupported("truncate", &other, bool::EXPECTED)),
    };
    let turning = |turns: f64| dims as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
    let (low, high) = (turning(fast), turning(slow));
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, mut high) = (low.max(0.0), high.min(dims as f64 - 1.0));
    if low == high {
        high += 0.001;
    }
    let blend = |(i, power): (usize, f32)| {
        let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let keep = 1.0 - ramp;
        1.0 / (factor as f32 * power) * (1.0 - keep) + 1.0 / power * keep
    };
    Ok(powers(base, dims).enumerate().map(blend).collect())
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
