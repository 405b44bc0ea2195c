//! Gemma 2: Gemma with norms before and after attention and MLP, capped scores, a window in every other layer.

use serde_json::{Map, Value};

use super::{
    config::{ActivationName, Keys, SpecError, hf_config, sliding_layers},
    rope::{RopeKeys, rotary},
};
use crate::model::{
    spec::{Family, LayerSpec, ModelSpec, Norm, NormKind, Positions},
    weights::{Affine, Layout, Mlp, Qkv, Residual, WeightTable, linear, norm},
};

hf_config! {
    /// transformers' `Gemma2Config`.
    struct Config {
        vocab_size: usize = 256000,
        hidden_size: usize = 2304,
        intermediate_size: usize = 9216,
        num_hidden_layers: usize = 26,
        num_attention_heads: usize = 8,
        num_key_value_heads: usize = 4,
        head_dim: usize = 256,
        hidden_activation: ActivationName = ActivationName::known("gelu_pytorch_tanh"),
        max_position_embeddings: usize = 8192,
        rms_norm_eps: f64 = 1e-6,
        attention_bias: bool = false,
        query_pre_attn_scalar: f64 = 256.0,
        sliding_window | sliding_window_size: usize = 4096,
        /// Every other layer slides where it is null, the first one first.
        layer_types: Option<Vec<String>>,
        attn_logit_softcapping: Option<f64> = Some(50.0),
        rope_parameters: Option<Map<String, Value>>,
        rope_scaling: Option<Map<String, Value>>,
        rope_theta: f64 = 10_000.0,
    }
    only { use_bidirectional_attention: false }
    unused { attention_dropout, cache_implementation, final_logit_softcapping, hidden_act }
}

pub(super) fn spec(keys: &mut Keys) -> Result<ModelSpec, SpecError> {
    let config = Config::read(keys)?;
    let heads = config.num_attention_heads;
    let kv_heads = config.num_key_value_heads;
    keys.divide("num_attention_heads", heads, kv_heads, "num_key_value_heads")?;
    let d_head = config.head_dim;
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
    let usual = |layer| layer % 2 == 0;
    let sliding = sliding_layers(keys, config.layer_types.as_deref(), config.num_hidden_layers, usual)?;
    let layers = sliding.into_iter().map(|sliding| LayerSpec {
        score_scale: config.query_pre_attn_scalar.powf(-0.5),
        window: sliding.then_some(config.sliding_window),
        rotary: Some(rotary.clone()),
    });
    Ok(ModelSpec {
        family: Family::Gemma2,
        architecture: keys.architecture("Gemma2ForCausalLM"),
        d_model: config.hidden_size,
        d_embed: config.hidden_size,
        d_mlp: config.intermediate_size,
        d_vocab: config.vocab_size,
        n_ctx: config.max_position_embeddings,
        n_heads: heads,
        n_kv_heads: kv_heads,
        d_head,
        embedding_scale: (config.hidden_size as f64).sqrt(),
        positions: Positions::Rotary,
        norm: Norm { kind: NormKind::RmsPlusOne, eps: config.rms_norm_eps },
        score_softcap: config.attn_logit_softcapping,
        activation: config.hidden_activation.activation,
        act_fn: config.hidden_activation.name,
        layers: layers.collect(),
        weights: weights(config.attention_bias),
    })
}

fn weights(attention_bias: bool) -> WeightTable {
    WeightTable {
        prefix: "model.",
        token_embedding: "embed_tokens.weight",
        embedding_projection: None,
        position_embedding: None,
        embedding_norm: None,
        layout: Layout::OutIn,
        residual: Residual::Sandwich {
            pre_attention: norm("layers.{i}.input_layernorm", Affine::Weight),
            post_attention: norm("layers.{i}.post_attention_layernorm", Affine::Weight),
            pre_mlp: norm("layers.{i}.pre_feedforward_layernorm", Affine::Weight),
            post_mlp: norm("layers.{i}.post_feedforward_layernorm", Affine::Weight),
        },
        qkv: Qkv::Separate {
            q: linear("layers.{i}.self_attn.q_proj", attention_bias),
            k: linear("layers.{i}.self_attn.k_proj", attention_bias),
            v: linear("layers.{i}.self_attn.v_proj", attention_bias),
        },
        qk_norm: None,
        attention_out: linear("layers.{i}.self_attn.o_proj", attention_bias),
        mlp: Mlp::Gated {
            gate: linear("layers.{i}.mlp.gate_proj", false),
            up: linear("layers.{i}.mlp.up_proj", false),
            down: linear("layers.{i}.mlp.down_proj", false),
        },
        final_norm: Some(norm("norm", Affine::Weight)),
        unused: &["lm_head.weight", "layers.{i}.self_attn.rotary_emb.inv_freq"],
    }
}
