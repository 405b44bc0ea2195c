//! Mistral: Llama with grouped queries by default and a sliding window in every layer.

use serde_json::{Map, Value};

use super::{
    config::{ActivationName, Keys, SpecError, hf_config},
    rope::{RopeKeys, rotary},
};
use crate::model::{
    spec::{Family, LayerSpec, ModelSpec, Norm, NormKind, Positions},
    weights::{Affine, Layout, Mlp, Qkv, Residual, WeightTable, linear, norm},
};

hf_config! {
    /// transformers' `MistralConfig`.
    struct Config {
        vocab_size: usize = 32000,
        hidden_size: usize = 4096,
        intermediate_size: usize = 14336,
        num_hidden_layers: usize = 32,
        num_attention_heads: usize = 32,
        num_key_value_heads: Option<usize> = Some(8),
        head_dim: Option<usize>,
        hidden_act: ActivationName = ActivationName::known("silu"),
        max_position_embeddings: usize = 131_072,
        rms_norm_eps: f64 = 1e-6,
        /// None where it is null.
        sliding_window: Option<usize> = Some(4096),
        rope_parameters: Option<Map<String, Value>>,
        rope_scaling: Option<Map<String, Value>>,
        rope_theta: f64 = 10_000.0,
    }
    only { attention_bias: false, mlp_bias: false }
    unused { attention_dropout, pretraining_tp }
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
            partial: None,
            original_context: None,
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
        family: Family::Mistral,
        architecture: keys.architecture("MistralForCausalLM"),
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
        qkv: Qkv::Separate {
            q: linear("layers.{i}.self_attn.q_proj", false),
            k: linear("layers.{i}.self_attn.k_proj", false),
            v: linear("layers.{i}.self_attn.v_proj", false),
        },
        qk_norm: None,
        attention_out: linear("layers.{i}.self_attn.o_proj", false),
        mlp: Mlp::Gated {
            gate: linear("layers.{i}.mlp.gate_proj", false),
            up: linear("layers.{i}.mlp.up_proj", false),
            down: linear("layers.{i}.mlp.down_proj", false),
        },
        final_norm: Some(norm("norm", Affine::Weight)),
        unused: &["lm_head.weight", "layers.{i}.self_attn.rotary_emb.inv_freq"],
    }
}
