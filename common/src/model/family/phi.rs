//! Phi-1, Phi-1.5, Phi-2: one norm for attention and MLP in parallel, everything biased, rotary positions on part of a head.

use serde_json::{Map, Value};

use super::{
    config::{ActivationName, Keys, SpecError, hf_config},
    rope::{RopeKeys, rotary},
};
use crate::model::{
    spec::{Family, LayerSpec, ModelSpec, Norm, NormKind, Positions},
    weights::{Affine, Layout, Mlp, QkNorm, QkNormSpan, Qkv, Residual, WeightTable, linear, norm},
};

hf_config! {
    /// transformers' `PhiConfig`.
    struct Config {
        vocab_size: usize = 51200,
        hidden_size: usize = 2048,
        intermediate_size: usize = 8192,
        num_hidden_layers: usize = 24,
        num_attention_heads: usize = 32,
        num_key_value_heads: Option<usize>,
        hidden_act: ActivationName = ActivationName::known("gelu_new"),
        max_position_embeddings: usize = 2048,
        layer_norm_eps: f64 = 1e-5,
        /// A norm on each head's query and key.
        qk_layernorm: bool = false,
        rope_parameters: Option<Map<String, Value>>,
        rope_scaling: Option<Map<String, Value>>,
        rope_theta: f64 = 10_000.0,
        partial_rotary_factor: f64 = 0.5,
    }
    only {}
    unused { attention_dropout, embd_pdrop, resid_pdrop }
}

pub(super) fn spec(keys: &mut Keys) -> Result<ModelSpec, SpecError> {
    let config = Config::read(keys)?;
    let heads = config.num_attention_heads;
    let kv_heads = config.num_key_value_heads.unwrap_or(heads);
    keys.divide("num_attention_heads", heads, kv_heads, "num_key_value_heads")?;
    let d_head = keys.divide("hidden_size", config.hidden_size, heads, "num_attention_heads")?;
    let rotary = rotary(
        keys,
        &RopeKeys {
            parameters: config.rope_parameters.as_ref(),
            scaling: config.rope_scaling.as_ref(),
            theta: config.rope_theta,
            partial: Some(config.partial_rotary_factor),
            original_context: None,
            context: config.max_position_embeddings,
            d_head,
        },
    )?;
    let layer = LayerSpec { score_scale: (d_head as f64).powf(-0.5), window: None, rotary: Some(rotary) };
    Ok(ModelSpec {
        family: Family::Phi,
        architecture: keys.architecture("PhiForCausalLM"),
        d_model: config.hidden_size,
        d_embed: config.hidden_size,
        d_mlp: config.intermediate_size,
        d_vocab: config.vocab_size,
        n_ctx: config.max_position_embeddings,
        n_heads: heads,
        n_kv_heads: kv_heads,
        d_head,
        embedding_scale: 1.0,
        positions: Positions::Rotary,
        norm: Norm { kind: NormKind::LayerNorm, eps: config.layer_norm_eps },
        score_softcap: None,
        activation: config.hidden_act.activation,
        act_fn: config.hidden_act.name,
        layers: vec![layer; config.num_hidden_layers],
        weights: weights(config.qk_layernorm),
    })
}

fn weights(qk_layernorm: bool) -> WeightTable {
    WeightTable {
        prefix: "model.",
        token_embedding: "embed_tokens.weight",
        embedding_projection: None,
        position_embedding: None,
        embedding_norm: None,
        layout: Layout::OutIn,
        residual: Residual::ParallelOneNorm {
            norm: norm("layers.{i}.input_layernorm", Affine::WeightAndBias),
        },
        qkv: Qkv::Separate {
            q: linear("layers.{i}.self_attn.q_proj", true),
            k: linear("layers.{i}.self_attn.k_proj", true),
            v: linear("layers.{i}.self_attn.v_proj", true),
        },
        qk_norm: qk_layernorm.then_some(QkNorm {
            span: QkNormSpan::Head,
            q: norm("layers.{i}.self_attn.q_layernorm", Affine::WeightAndBias),
            k: norm("layers.{i}.self_attn.k_layernorm", Affine::WeightAndBias),
        }),
        attention_out: linear("layers.{i}.self_attn.dense", true),
        mlp: Mlp::Plain { up: linear("layers.{i}.mlp.fc1", true), down: linear("layers.{i}.mlp.fc2", true) },
        final_norm: Some(norm("final_layernorm", Affine::WeightAndBias)),
        unused: &["lm_head.weight", "lm_head.bias"],
    }
}
