//! GPT-Neo, TinyStories: learned positions, scores without scaling, local layers that see a window.

use serde_json::Value;

use super::config::{ActivationName, Keys, SpecError, hf_config};
use crate::model::{
    spec::{Family, LayerSpec, ModelSpec, Norm, NormKind, Positions},
    weights::{Affine, Layout, Mlp, Qkv, Residual, WeightTable, linear, norm},
};

hf_config! {
    /// transformers' `GPTNeoConfig`.
    struct Config {
        vocab_size: usize = 50257,
        max_position_embeddings: usize = 2048,
        hidden_size: usize = 2048,
        num_layers | num_hidden_layers: usize = 24,
        num_heads | num_attention_heads: usize = 16,
        /// Four times the width where it is null.
        intermediate_size: Option<usize>,
        window_size: usize = 256,
        activation_function: ActivationName = ActivationName::known("gelu_new"),
        layer_norm_epsilon: f64 = 1e-5,
        /// `[[[kind, ...], times], ...]`.
        attention_types: Option<Vec<Value>>,
        /// The same written out, a kind a layer; where both are there, Hugging Face reads this one.
        attention_layers: Option<Vec<String>>,
    }
    only {}
    unused {
        attention_dropout, embed_dropout, resid_dropout, summary_activation, summary_first_dropout,
        summary_proj_to_labels, summary_type, summary_use_proj,
    }
}

pub(super) fn spec(keys: &mut Keys) -> Result<ModelSpec, SpecError> {
    let config = Config::read(keys)?;
    let d_head = keys.divide("hidden_size", config.hidden_size, config.num_heads, "num_heads")?;
    let layer = |window| LayerSpec { score_scale: 1.0, window, rotary: None };
    let mut layers = Vec::with_capacity(config.num_layers);
    for kind in kinds(keys, &config)? {
        layers.push(match kind.as_str() {
            "global" => layer(None),
            "local" => layer(Some(config.window_size)),
            _ => return Err(keys.unsupported("attention_types", &Value::from(kind), "global, local")),
        });
    }
    if layers.len() != config.num_layers {
        let supported = format!("as many kinds as `num_layers` ({})", config.num_layers);
        return Err(keys.unsupported("attention_types", &Value::from(layers.len()), &supported));
    }
    Ok(ModelSpec {
        family: Family::GptNeo,
        architecture: keys.architecture("GPTNeoForCausalLM"),
        d_model: config.hidden_size,
        d_embed: config.hidden_size,
        d_mlp: config.intermediate_size.unwrap_or(4 * config.hidden_size),
        d_vocab: config.vocab_size,
        n_ctx: config.max_position_embeddings,
        n_heads: config.num_heads,
        n_kv_heads: config.num_heads,
        d_head,
        embedding_scale: 1.0,
        positions: Positions::Learned { offset: 0 },
        norm: Norm { kind: NormKind::LayerNorm, eps: config.layer_norm_epsilon },
        score_softcap: None,
        activation: config.activation_function.activation,
        act_fn: config.activation_function.name,
        layers,
        weights: weights(),
    })
}

/// Each layer's kind of attention.
fn kinds(keys: &Keys, config: &Config) -> Result<Vec<String>, SpecError> {
    if let Some(kinds) = &config.attention_layers {
        return Ok(kinds.clone());
    }
    let Some(types) = &config.attention_types else {
        return Ok(["global", "local"].repeat(12).into_iter().map(str::to_owned).collect());
    };
    let mut kinds = Vec::new();
    for item in types {
        let names = item.get(0).and_then(Value::as_array);
        let names: Option<Vec<String>> =
            names.and_then(|names| names.iter().map(|name| name.as_str().map(str::to_owned)).collect());
        let times = item.get(1).and_then(Value::as_u64).filter(|times| *times <= config.num_layers as u64);
        let (Some(names), Some(times)) = (names, times) else {
            return Err(keys.unsupported("attention_types", item, "[[\"global\", \"local\"], times]"));
        };
        (0..times).for_each(|_| kinds.extend(names.iter().cloned()));
    }
    Ok(kinds)
}

fn weights() -> WeightTable {
    WeightTable {
        prefix: "transformer.",
        token_embedding: "wte.weight",
        embedding_projection: None,
        position_embedding: Some("wpe.weight"),
        embedding_norm: None,
        layout: Layout::OutIn,
        residual: Residual::PreNorm {
            attention: norm("h.{i}.ln_1", Affine::WeightAndBias),
            mlp: norm("h.{i}.ln_2", Affine::WeightAndBias),
        },
        qkv: Qkv::Separate {
            q: linear("h.{i}.attn.attention.q_proj", false),
            k: linear("h.{i}.attn.attention.k_proj", false),
            v: linear("h.{i}.attn.attention.v_proj", false),
        },
        qk_norm: None,
        attention_out: linear("h.{i}.attn.attention.out_proj", true),
        mlp: Mlp::Plain { up: linear("h.{i}.mlp.c_fc", true), down: linear("h.{i}.mlp.c_proj", true) },
        final_norm: Some(norm("ln_f", Affine::WeightAndBias)),
        unused: &["lm_head.weight", "h.{i}.attn.attention.bias", "h.{i}.attn.attention.masked_bias"],
    }
}
