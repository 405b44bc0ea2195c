//! StableLM: Llama with LayerNorm, rotary positions on part of a head, sequential or parallel blocks.

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
    /// transformers' `StableLmConfig`.
    struct Config {
        vocab_size: usize = 50304,
        hidden_size: usize = 2560,
        intermediate_size: usize = 6912,
        num_hidden_layers: usize = 32,
        num_attention_heads: usize = 32,
        num_key_value_heads: Option<usize> = Some(32),
        hidden_act: ActivationName = ActivationName::known("silu"),
        max_position_embeddings: usize = 4096,
        layer_norm_eps: f64 = 1e-5,
        use_qkv_bias: bool = false,
        /// A norm of its own for every head's query and key.
        qk_layernorm: bool = false,
        use_parallel_residual: bool = false,
        rope_parameters: Option<Map<String, Value>>,
        rope_scaling: Option<Map<String, Value>>,
        rope_theta: f64 = 10_000.0,
        partial_rotary_factor: f64 = 0.25,
    }
    only {}
    unused { attention_dropout, hidden_dropout }
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
        family: Family::StableLm,
        architecture: keys.architecture("StableLmForCausalLM"),
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
        act_fn: config.hidden_act.name.clone(),
        layers: vec![layer; config.num_hidden_layers],
        weights: weights(&config),
    })
}

fn weights(config: &Config) -> WeightTable {
    let qkv_bias = config.use_qkv_bias;
    let first = norm("layers.{i}.input_layernorm", Affine::WeightAndBias);
    WeightTable {
        prefix: "model.",
        token_embedding: "embed_tokens.weight",
        embedding_projection: None,
        position_embedding: None,
        embedding_norm: None,
        layout: Layout::OutIn,
        residual: if config.use_parallel_residual {
            Residual::ParallelOneNorm { norm: first }
        } else {
            Residual::PreNorm {
                attention: first,
                mlp: norm("layers.{i}.post_attention_layernorm", Affine::WeightAndBias),
            }
        },
        qkv: Qkv::Separate {
            q: linear("layers.{i}.self_attn.q_proj", qkv_bias),
            k: linear("layers.{i}.self_attn.k_proj", qkv_bias),
            v: linear("layers.{i}.self_attn.v_proj", qkv_bias),
        },
        qk_norm: config.qk_layernorm.then_some(QkNorm {
            span: QkNormSpan::OwnHead,
            q: norm("layers.{i}.self_attn.q_layernorm.norms.{h}", Affine::Weight),
            k: norm("layers.{i}.self_attn.k_layernorm.norms.{h}", Affine::Weight),
        }),
        attention_out: linear("layers.{i}.self_attn.o_proj", false),
        mlp: Mlp::Gated {
            gate: linear("layers.{i}.mlp.gate_proj", false),
            up: linear("layers.{i}.mlp.up_proj", false),
            down: linear("layers.{i}.mlp.down_proj", false),
        },
        final_norm: Some(norm("norm", Affine::WeightAndBias)),
        unused: &["lm_head.weight", "layers.{i}.self_attn.rotary_emb.inv_freq"],
    }
}
