//! Qwen 2 and 2.5: Llama with biases on queries, keys and values, and a window in the upper layers if asked.

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
    /// transformers' `Qwen2Config`.
    struct Config {
        vocab_size: usize = 151936,
        hidden_size: usize = 4096,
        intermediate_size: usize = 22016,
        num_hidden_layers: usize = 32,
        num_attention_heads: usize = 32,
        num_key_value_heads: Option<usize> = Some(32),
        head_dim: Option<usize>,
        hidden_act: ActivationName = ActivationName::known("silu"),
        max_position_embeddings: usize = 32768,
        rms_norm_eps: f64 = 1e-6,
        use_sliding_window: bool = false,
        sliding_window: Option<usize> = Some(4096),
        /// With a window, the first layer that has it.
        max_window_layers: usize = 28,
        layer_types: Option<Vec<String>>,
        rope_parameters: Option<Map<String, Value>>,
        rope_scaling: Option<Map<String, Value>>,
        rope_theta: f64 = 10_000.0,
    }
    only { use_mrope: false, mlp_bias: false }
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
    let window = config.sliding_window.filter(|_| config.use_sliding_window);
    let usual = |layer| window.is_some() && layer >= config.max_window_layers;
    let sliding = sliding_layers(keys, config.layer_types.as_deref(), config.num_hidden_layers, usual)?;
    if sliding.contains(&true) && window.is_none() {
        let found = Value::from(config.sliding_window);
        return Err(keys.unsupported(
            "sliding_window",
            &found,
            "a number, as `layer_types` has sliding layers",
        ));
    }
    let layers = sliding.into_iter().map(|sliding| LayerSpec {
        score_scale: (d_head as f64).powf(-0.5),
        window: window.filter(|_| sliding),
        rotary: Some(rotary.clone()),
    });
    Ok(ModelSpec {
        family: Family::Qwen2,
        architecture: keys.architecture("Qwen2ForCausalLM"),
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
        layers: layers.collect(),
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
            q: linear("layers.{i}.self_attn.q_proj", true),
            k: linear("layers.{i}.self_attn.k_proj", true),
            v: linear("layers.{i}.self_attn.v_proj", true),
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
