//! model_cfg.json: what a data directory says of the model that made it, in TransformerLens's terms.
//!
//! Makes the object and compares two of them; [`crate::store`] writes it. Keys are those of
//! TransformerLens's `HookedTransformerConfig` as its default loading (norms folded) leaves them: so
//! `normalization_type` is `LNPre` or `RMSPre`. Of its settings for training and for parts no pattern
//! depends on there are none here. Ours are added behind: `repo`, `commit`, `prepend_bos`, `bos_token`,
//! `matmul_precision`, `lenspool_version`.

use std::fmt;

use serde_json::{Map, Value, json};

use super::{
    alias,
    locate::LocatedModel,
    reference::ModelName,
    spec::{ModelSpec, RotaryPairs},
    weights::Residual,
};
use crate::{
    capture::Numerics,
    tokenize::{BosFacts, PrependBos},
};

/// What a card is made of.
#[derive(Clone, Copy, Debug)]
pub struct CardFacts<'a> {
    /// Which model, from where.
    pub model: &'a LocatedModel,
    /// What it is.
    pub spec: &'a ModelSpec,
    /// What the tokenizer does about BOS, and what this run does.
    pub bos: &'a BosFacts,
    /// What the user asked for.
    pub prepend_bos: PrependBos,
    /// Where it runs: `cpu`, `cuda`.
    pub device: &'a str,
    /// How exactly it is computed.
    pub numerics: Numerics,
}

impl CardFacts<'_> {
    /// The object of model_cfg.json.
    pub fn card(&self) -> Map<String, Value> {
        let CardFacts { model, spec, bos, prepend_bos, device, numerics } = self;
        let window = spec.layers.iter().find_map(|layer| layer.window);
        let attn_types: Vec<&str> =
            spec.layers.iter().map(|layer| if layer.window.is_some() { "local" } else { "global" }).collect();
        let rotary = spec.layers.iter().find_map(|layer| layer.rotary.as_ref());
        let parallel = matches!(
            spec.weights.residual,
            Residual::ParallelOneNorm { .. } | Residual::ParallelTwoNorms { .. }
        );
        let card = json!({
            "n_layers": spec.n_layers(),
            "d_model": spec.d_model,
            "n_ctx": spec.n_ctx,
            "d_head": spec.d_head,
            "model_name": model.name.as_str(),
            "n_heads": spec.n_heads,
            "d_mlp": spec.d_mlp,
            "act_fn": spec.act_fn,
            "d_vocab": spec.d_vocab,
            "eps": spec.norm.eps,
            "use_local_attn": window.is_some(),
            "original_architecture": spec.architecture,
            "tokenizer_name": tokenizer_name(&model.source),
            "window_size": window,
            "attn_types": window.map(|_| attn_types),
            "normalization_type": spec.normalization_type(),
            "device": device,
            "attention_dir": "causal",
            "positional_embedding_type": spec.positional_embedding_type(),
            "parallel_attn_mlp": parallel,
            "rotary_dim": rotary.map(|rotary| 2 * rotary.inv_freq.len()),
            "rotary_adjacent_pairs": rotary.is_some_and(|rotary| rotary.pairs == RotaryPairs::Adjacent),
            "default_prepend_bos": bos.default_prepend_bos,
            "dtype": numerics.compute_dtype.torch_name(),
            "tokenizer_prepends_bos": bos.tokenizer_prepends_bos,
            // As in TransformerLens: only where there are fewer of them than query heads.
            "n_key_value_heads": (spec.n_kv_heads != spec.n_heads).then_some(spec.n_kv_heads),
            "repo": model.source,
            "commit": model.commit,
            "prepend_bos": prepend_bos,
            "bos_token": bos.token,
            "matmul_precision": numerics.matmul_precision.name(),
            "lenspool_version": env!("CARGO_PKG_VERSION"),
        });
        match card {
            Value::Object(card) => card,
            _ => unreachable!("it is written as an object"),
        }
    }
}

/// The line of models.jsonl for a card: the card with the directory's name.
pub fn index_line(card: &Map<String, Value>, name: &ModelName) -> Map<String, Value> {
    let mut line = card.clone();
    line.insert("sanitized_name".to_owned(), Value::String(name.to_string()));
    line
}

/// TransformerLens's own name of the repo, under which transformers finds the tokenizer.
fn tokenizer_name(source: &str) -> &str {
    let known = alias::find(source).filter(|known| known.repo == source);
    let official = known.and_then(|known| known.alias.filter(|alias| known.former_repos.contains(alias)));
    official.unwrap_or(source)
}

/// A fact on which two cards disagree.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The key.
    pub key: &'static str,
    /// What the card on disk says.
    pub there: Value,
    /// What this run's would say.
    pub here: Value,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} there and {} here", self.key, self.there, self.here)
    }
}

/// The facts that decide a pattern's values and on which the card on disk disagrees with this run's: if
/// there are any, patterns of both in one directory would be mixed. A card that lacks a key, as
/// pattern_lens's own lack `commit`, disagrees with nobody about it.
pub fn differences(there: &Map<String, Value>, here: &Map<String, Value>) -> Vec<Difference> {
    const DECISIVE: [&str; 10] = [
        "commit",
        "original_architecture",
        "n_layers",
        "n_heads",
        "d_model",
        "d_head",
        "d_vocab",
        "default_prepend_bos",
        "dtype",
        "matmul_precision",
    ];
    let differ = |key: &&'static str| {
        let (there, here) = (there.get(*key)?, here.get(*key)?);
        (there != here).then(|| Difference { key, there: there.clone(), here: here.clone() })
    };
    DECISIVE.iter().filter_map(differ).collect()
}

#[cfg(test)]
#[path = "card_tests.rs"]
mod tests;
