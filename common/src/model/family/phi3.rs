//! Phi-3, Phi-4: Llama with fused QKV, fused gate and up, a sliding window if asked.

use serde_json::{Map, Value};

use super::{
    config::{ActivationName, Keys, SpecError, hf_config},
    rope::{RopeKeys, rotary},
};
use crate::model::{
    spec::{Family, LayerSpec, ModelSpec, Norm, NormKind, Positions},
    weights::{Affine, FusedOrder, Layout, Mlp, Qkv, Residual, WeightTable, linear, norm},
};

hf_config! {
    /// transformers' `Phi3Config`.
    struct Config {
        vocab_size: usize = 32064,
        hidden_size: usize = 3072,
        intermediate_size: usize = 8192,
        num_hidden_layers: usize = 32,
        num_attention_heads: usize = 32,
        num_key_value_heads: Option<usize>,
        head_dim: Option<usize>,
        hidden_act: ActivationName = ActivationName::known("silu"),
        max_position_embeddings: usize = 4096,
        /// The length before stretching.
        original_max_position_embeddings: usize = 4096,
        rms_norm_eps: f64 = 1e-5,
        /// None where it is null.
        sliding_window: Option<usize>,
        rope_parameters: Option<Map<String, Value>>,
        rope_scaling: Option<Map<String, Value>>,
        rope_theta: f64 = 10_000.0,
        partial_rotary_factor: f64 = 1.0,
    }
    only { attention_bias: false, mlp_bias: false }
    unused {
        attention_dropout, embd_pdrop, full_attn_mod, interpolate_factor, lm_head_bias, resid_pdrop,
    }
}

pub(super) fn spec(keys: &mut Keys) -> Result<ModelSpec, SpecError> {
    let config = Config::read(keys)?;
    let heads = config.num_attention_heads;
    let kv_heads = config.num_key_value_heads.unwrap_or(heads);
    keys.divide("num_attention_heads", heads, kv_heads, "num_key_value_heads")?;
    let d_head = match config.head_dim {
        Some(width) => width,
        None => keys.divide("hidden_size", config.hidden_size, heads, "num_attention_heads")?,
    };
    let rotary = rotary(
        keys,
        &RopeKeys {
            parameters: config.rope_parameters.as_ref(),
            scaling: config.rope_scaling.as_ref(),
            theta: config.rope_theta,
            partial: Some(config.partial_rotary_factor),
            original_context: Some(config.original_max_position_embeddings),
            context: config.max_position_embeddings,
            d_head,
        },
    )?;
    let layer = LayerSpec {
        score_scale: (d_head as f64).powf(-0.5),
        window: config.sliding_window,
        rotary: Some(rotary),
    };
    Ok(ModelSpec {
        family: Family::Phi3,
        architecture: keys.architecture("Phi3ForCausalLM"),
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
        norm: Norm { kind: NormKind::Rms, eps: config.rms_norm_eps },
        score_softcap: None,
        activation: config.hidden_act.activation,
        act_fn: config.hidden_act.name,
        layers: vec![layer; config.num_hidden_layers],
        weights: weights(),
    })
}

fn weights() -> WeightTable {
    WeightTable {
        prefix: "model.",
        token_embedding: "embed_tokens.weight",
        embedding_projection: None,
        position_embedding: None,
        embedding_norm: None,
        layout: Layout::OutIn,
        residual: Residual::PreNorm {
            attention: norm("layers.{i}.input_layernorm", Affine::Weight),
            mlp: norm("layers.{i}.post_attention_layernorm", Affine::Weight),
        },
        qkv: Qkv::Fused {
            names: linear("layers.{i}.self_attn.qkv_proj", false),
            order: FusedOrder::Contiguous,
        },
        qk_norm: None,
        attention_out: linear("layers.{i}.self_attn.o_proj", false),
        mlp: Mlp::GatedFused {
            gate_up: linear("layers.{i}.mlp.gate_up_proj", false),
            down: linear("layers.{i}.mlp.down_proj", false),
        },
        final_norm: Some(norm("norm", Affine::Weight)),
        unused: &["lm_head.weight"],
    }
}
