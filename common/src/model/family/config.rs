//! Reading a config.json key by key: every key is either read, known to change no pattern, or an error.
//!
//! Knows no family. Each family's file declares its keys with [`hf_config`]; what the values mean is
//! decided there.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub(super) use super::value::ActivationName;
use super::value::FromValue;
use crate::model::spec::Family;

/// Why no [`ModelSpec`](super::super::spec::ModelSpec) can be made of a config.json.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The file cannot be read.
    #[error("cannot read the model configuration {path}: {reason}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The file is no JSON object.
    #[error("{path} is not a model configuration: {reason}")]
    NotAnObject {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// No family answers to its `model_type`.
    #[error("{path}: `model_type` is {found}, which is not supported; supported are {supported}")]
    UnknownFamily {
        /// The file.
        path: PathBuf,
        /// The value found.
        found: String,
        /// The families' `model_type`s.
        supported: String,
    },
    /// A key the family must have is absent.
    #[error("{path}: `{key}` is missing; {family} needs it")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The family reading the file.
        family: Family,
    },
    /// A key that the family does not know.
    #[error(
        "{path}: unknown key `{key}` = {found}; it may change what the model computes, so it is not ignored. \
         {family} reads none of that name; remove the key if it has no effect"
    )]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// The family reading the file.
        family: Family,
    },
    /// A known key with a value that is not supported.
    #[error("{path}: `{key}` is {found}, which is not supported for {family}; supported: {supported}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The value found.
        found: String,
        /// What would do.
        supported: String,
        /// The family reading the file.
        family: Family,
    },
}

/// Keys that change no attention pattern, whatever the family: bookkeeping, generation and training settings.
const UNUSED_EVERYWHERE: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "_num_labels",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// Keys that would change the pattern unless they have this value, whatever the family.
fn fixed_everywhere() -> [(&'static str, Value); 5] {
    [
        ("quantization_config", Value::Null),
        ("is_encoder_decoder", Value::Bool(false)),
        ("add_cross_attention", Value::Bool(false)),
        ("pruned_heads", Value::Object(Map::new())),
        ("per_layer_config", Value::Null),
    ]
}

/// The keys of one config.json, and which of them have been accounted for.
pub(super) struct Keys {
    path: PathBuf,
    family: Family,
    unread: Map<String, Value>,
    architecture: Option<String>,
}

impl Keys {
    pub(super) fn new(path: &Path, family: Family, object: Map<String, Value>) -> Self {
        let architecture = object.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
        let architecture = architecture.map(str::to_owned);
        Keys { path: path.to_owned(), family, unread: object, architecture }
    }

    /// The class named in the file, if it names one.
    pub(super) fn architecture(&self, usual: &str) -> String {
        self.architecture.clone().unwrap_or_else(|| usual.to_owned())
    }

    /// The value of `key` or of one of its other names; `default` where it is absent. Null is a value
    /// like any other: Hugging Face takes it for "none", not for the default.
    pub(super) fn take<T: FromValue>(
        &mut self,
        key: &str,
        aliases: &[&str],
        default: Option<T>,
    ) -> Result<T, SpecError> {
        let mut found = self.unread.remove(key);
        for alias in aliases {
            let other = self.unread.remove(*alias);
            if let (Some(other), Some(found)) = (&other, &found)
                && other != found
            {
                return Err(self.unsupported(
                    alias,
                    other,
                    &format!("{found}, which its other name `{key}` says"),
                ));
            }
            found = found.or(other);
        }
        match found {
            None => default.or_else(T::absent).ok_or_else(|| SpecError::Missing {
                path: self.path.clone(),
                key: key.to_owned(),
                family: self.family,
            }),
            Some(value) => T::from_value(&value).ok_or_else(|| self.unsupported(key, &value, T::EXPECTED)),
        }
    }

    /// Refuses any value of `key` but `only`; absent and null will do.
    pub(super) fn only(&mut self, key: &str, only: &Value) -> Result<(), SpecError> {
        match self.unread.remove(key) {
            Some(value) if !value.is_null() && value != *only => {
                let supported = if only.is_null() { "leaving it out".to_owned() } else { format!("{only}") };
                Err(self.unsupported(key, &value, &supported))
            }
            _ => Ok(()),
        }
    }

    /// Every key must be accounted for by now, or be known to be unused.
    pub(super) fn finish(&mut self, unused: &[&str]) -> Result<(), SpecError> {
        for (key, only) in fixed_everywhere() {
            self.only(key, &only)?;
        }
        self.unread.retain(|key, _| !unused.contains(&key.as_str()));
        self.unread.retain(|key, _| UNUSED_EVERYWHERE.binary_search(&key.as_str()).is_err());
        match self.unread.iter().next() {
            None => Ok(()),
            Some((key, value)) => Err(SpecError::UnknownKey {
                path: self.path.clone(),
                key: key.clone(),
                found: shown(value),
                family: self.family,
            }),
        }
    }

    /// The error for a value that the family cannot do.
    pub(super) fn unsupported(&self, key: &str, found: &Value, supported: &str) -> SpecError {
        SpecError::Unsupported {
            path: self.path.clone(),
            key: key.to_owned(),
            found: shown(found),
            supported: supported.to_owned(),
            family: self.family,
        }
    }

    /// `numerator / denominator`, which must leave nothing: `key` is what is divided.
    pub(super) fn divide(
        &self,
        key: &str,
        numerator: usize,
        denominator: usize,
        by: &str,
    ) -> Result<usize, SpecError> {
        if denominator == 0 || !numerator.is_multiple_of(denominator) {
            let supported = format!("a multiple of `{by}` ({denominator})");
            return Err(self.unsupported(key, &Value::from(numerator), &supported));
        }
        Ok(numerator / denominator)
    }
}

/// A value as an error shows it: long ones are cut.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Which layers slide: as `layer_types` says, or where it is absent as is `usual` for the layer's index.
pub(super) fn sliding_layers(
    keys: &Keys,
    layer_types: Option<&[String]>,
    n_layers: usize,
    usual: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, SpecError> {
    let Some(types) = layer_types else { return Ok((0..n_layers).map(usual).collect()) };
    if types.len() != n_layers {
        let supported = format!("as many as `num_hidden_layers` ({n_layers})");
        return Err(keys.unsupported("layer_types", &Value::from(types.to_vec()), &supported));
    }
    types
        .iter()
        .map(|kind| match kind.as_str() {
            "sliding_attention" => Ok(true),
            "full_attention" => Ok(false),
            _ => {
                let supported = "sliding_attention, full_attention";
                Err(keys.unsupported("layer_types", &Value::from(kind.as_str()), supported))
            }
        })
        .collect()
}

/// Declares a family's HF configuration: the keys it reads (`key | other_name: type = HF's default`), the
/// keys of which only one value is supported, and the keys that change no pattern.
macro_rules! hf_config {
    (
        $(#[$doc:meta])*
        struct $name:ident {
            $($(#[$field_doc:meta])* $field:ident $(| $alias:ident)*: $type:ty $(= $default:expr)?),* $(,)?
        }
        only { $($only:ident: $value:tt),* $(,)? }
        unused { $($unused:ident),* $(,)? }
    ) => {
        $(#[$doc])*
        #[derive(Debug)]
        struct $name { $($(#[$field_doc])* $field: $type),* }

        impl $name {
            fn read(keys: &mut $crate::model::family::config::Keys)
                -> Result<Self, $crate::model::family::config::SpecError>
            {
                let config = $name {
                    $($field: keys.take(
                        stringify!($field),
                        &[$(stringify!($alias)),*],
                        hf_config!(@default $($default)?),
                    )?),*
                };
                $(keys.only(stringify!($only), &serde_json::json!($value))?;)*
                keys.finish(&[$(stringify!($unused)),*])?;
                Ok(config)
            }
        }
    };
    (@default) => { None };
    (@default $default:expr) => { Some($default) };
}
pub(super) use hf_config;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_unused_keys_is_sorted_for_binary_search() {
        assert!(UNUSED_EVERYWHERE.is_sorted());
    }
}
