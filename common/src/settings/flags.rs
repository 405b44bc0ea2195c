//! The flags a user gave, as the last layer of the settings.
//!
//! Knows nothing of clap: a binary's argument struct names its fields as the settings do, makes them
//! optional, derives Serialize, and is handed over whole.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// Settings given as flags, by key (`run.batch_size`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flags(pub BTreeMap<String, Value>);

impl Flags {
    /// No flags.
    pub fn new() -> Flags {
        Flags::default()
    }

    /// Adds what was given of a section's flags. What was not given is `None`, `false` or empty and is left
    /// out, so that the layers below decide.
    ///
    /// # Panics
    ///
    /// If `given` is not a struct of plain values: the binary is wrong then, and its first test tells.
    pub fn section(mut self, section: &str, given: &impl Serialize) -> Flags {
        let fields = match serde_json::to_value(given) {
            Ok(Value::Object(fields)) => fields,
            other => panic!("the flags of {section} are not a struct of plain values: {other:?}"),
        };
        for (key, value) in fields {
            let not_given = match &value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(values) => values.is_empty(),
                _ => false,
            };
            if !not_given {
                self.0.insert(format!("{section}.{key}"), value);
            }
        }
        self
    }
}

/// How a user spells the flag of a key.
pub(super) fn spelling(key: &str) -> String {
    format!("--{}", key.rsplit('.').next().unwrap_or(key).replace('_', "-"))
}
