//! Gemma 1: embeddings scaled by the root of the width, RMSNorm by (1 + weight), tanh GELU, gated.

use serde_json::{Map, Value};

use super::{
    config::{ActivationName, Keys, SpecError, hf_config},
    rope::{RopeKeys, rotary},
};
use crate::model::{
    spec::{Activation, Family, LayerSpec, ModelSpec, Norm, NormKind, Positions},
    weights::{Affine, Layout, Mlp, Qkv, Residual, WeightTable, linear, norm},
};

hf_config! {
    /// transformers' `GemmaConfig`.
    struct Config {
        vocab_size: usize = 256000,
        hidden_size: usize = 3072,
        intermediate_size: usize = 24576,
        num_hidden_layers: usize = 28,
        num_attention_heads: usize = 16,
        num_key_value_heads: usize = 16,
        head_dim: usize = 256,
        /// The first releases say "gelu" and mean its tanh form.
        hidden_act: ActivationName = ActivationName::known("gelu_pytorch_tanh"),
        /// What came after `hidden_act` and is read by no version any more.
        hidden_activation: Option<ActivationName>,
        max_position_embeddings: usize = 8192,
        rms_norm_eps: f64 = 1e-6,
        attention_bias: bool = false,
        rope_parameters: Option<Map<String, Value>>,
        rope_scaling: Option<Map<String, Value>>,
        rope_theta: f64 = 10_000.0,
    }
    only { use_bidirectional_attention: false }
    unused { attention_dropout }
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
    let layer = LayerSpec { score_scale: (d_head as f64).powf(-0.5), window: None, rotary: Some(rotary) };
    let activation = match config.hidden_act.activation {
        Activation::GeluErf => Activation::GeluTanh,
        other => other,
    };
    if let Some(other) = config.hidden_activation.filter(|other| other.activation != activation) {
        let supported = format!("null, or the same as `hidden_act` ({})", config.hidden_act.name);
        return Err(keys.unsupported("hidden_activation", &Value::from(other.name), &supported));
    }
    Ok(ModelSpec {
        family: Family::Gemma,
        architecture: keys.architecture("GemmaForCausalLM"),
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
        activation,
        act_fn: if activation == Activation::GeluTanh {
            "gelu_new".to_owned()
        } else {
            config.hidden_act.name
        },
        layers: vec![layer; config.num_hidden_layers],
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
        residual: Residual::PreNorm {
            attention: norm("layers.{i}.input_layernorm", Affine::Weight),
            mlp: norm("layers.{i}.post_attention_layernorm", Affine::Weight),
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
