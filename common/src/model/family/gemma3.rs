//! Gemma 3, text only: Gemma 2 with a norm on each head's query and key instead of capped scores, five sliding
//! layers to a global one, and a rotary base for either kind.

use serde_json::{Map, Value};

use super::{
    config::{ActivationName, Keys, SpecError, hf_config, sliding_layers},
    rope::{RopeKeys, rotary},
};
use crate::model::{
    spec::{Family, LayerSpec, ModelSpec, Norm, NormKind, Positions},
    weights::{Affine, Layout, Mlp, QkNorm, QkNormSpan, Qkv, Residual, WeightTable, linear, norm},
};

hf_config! {
    /// transformers' `Gemma3TextConfig`.
    struct Config {
        vocab_size: usize = 262208,
        hidden_size: usize = 2304,
        intermediate_size: usize = 9216,
        num_hidden_layers: usize = 26,
        num_attention_heads: usize = 8,
        num_key_value_heads: usize = 4,
        head_dim: usize = 256,
        hidden_activation: ActivationName = ActivationName::known("gelu_pytorch_tanh"),
        max_position_embeddings: usize = 131_072,
        rms_norm_eps: f64 = 1e-6,
        attention_bias: bool = false,
        query_pre_attn_scalar: f64 = 256.0,
        sliding_window: usize = 4096,
        layer_types: Option<Vec<String>>,
        /// Where `layer_types` is null, the last of so many layers is global.
        sliding_window_pattern: usize = 6,
        /// By layer type.
        rope_parameters: Option<Map<String, Value>>,
        /// Of global layers.
        rope_scaling: Option<Map<String, Value>>,
        /// Of global layers.
        rope_theta: f64 = 1_000_000.0,
        /// Of sliding layers.
        rope_local_base_freq: f64 = 10_000.0,
    }
    only { use_bidirectional_attention: false, attn_logit_softcapping: null }
    unused { _sliding_window_pattern, attention_dropout, cache_implementation, final_logit_softcapping, hidden_act }
}

pub(super) fn spec(keys: &mut Keys) -> Result<ModelSpec, SpecError> {
    let config = Config::read(keys)?;
    let heads = config.num_attention_heads;
    let kv_heads = config.num_key_value_heads;
    keys.divide("num_attention_heads", heads, kv_heads, "num_key_value_heads")?;
    let d_head = config.head_dim;
    let usual = |layer| (layer + 1) % config.sliding_window_pattern.max(1) != 0;
    let sliding = sliding_layers(keys, config.layer_types.as_deref(), config.num_hidden_layers, usual)?;
    if let Some((key, value)) = config.rope_parameters.iter().flatten().find(|(key, value)| {
        !["full_attention", "sliding_attention"].contains(&key.as_str())
            || !(value.is_object() || value.is_null())
    }) {
        let supported = "one object for full_attention and one for sliding_attention";
        return Err(keys.unsupported(&format!("rope_parameters.{key}"), value, supported));
    }
    let rope = |kind: &str, scaling: Option<&Map<String, Value>>, theta: f64| {
        let parameters = config.rope_parameters.as_ref().and_then(|kinds| kinds.get(kind));
        rotary(
            keys,
            &RopeKeys {
                parameters: parameters.and_then(Value::as_object),
                scaling,
                theta,
                partial: None,
                original_context: None,
                context: config.max_position_embeddings,
                d_head,
            },
        )
    };
    let global = rope("full_attention", config.rope_scaling.as_ref(), config.rope_theta)?;
    let local = rope("sliding_attention", None, config.rope_local_base_freq)?;
    let layers = sliding.into_iter().map(|sliding| LayerSpec {
        score_scale: config.query_pre_attn_scalar.powf(-0.5),
        window: sliding.then_some(config.sliding_window),
        rotary: Some(if sliding { local.clone() } else { global.clone() }),
    });
    Ok(ModelSpec {
        family: Family::Gemma3,
        architecture: keys.architecture("Gemma3ForCausalLM"),
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
        score_softcap: None,
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
        qk_norm: Some(QkNorm {
            span: QkNormSpan::Head,
            q: norm("layers.{i}.self_attn.q_norm", Affine::Weight),
            k: norm("layers.{i}.self_attn.k_norm", Affine::Weight),
        }),
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
