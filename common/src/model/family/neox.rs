//! GPT-NeoX, Pythia: rotary positions on part of a head, parallel or sequential residual, fused QKV
//! ordered head by head, exact GELU.

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
    /// transformers' `GPTNeoXConfig`.
    struct Config {
        vocab_size: usize = 50432,
        hidden_size: usize = 6144,
        num_hidden_layers: usize = 44,
        num_attention_heads: usize = 64,
        intermediate_size: usize = 24576,
        hidden_act: ActivationName = ActivationName::known("gelu"),
        max_position_embeddings: usize = 2048,
        layer_norm_eps: f64 = 1e-5,
        use_parallel_residual: bool = true,
        attention_bias: bool = true,
        rope_parameters: Option<Map<String, Value>>,
        rope_scaling: Option<Map<String, Value>>,
        rotary_emb_base: f64 = 10_000.0,
        rotary_pct: f64 = 0.25,
        /// A copy of `rotary_emb_base` that some versions of transformers wrote.
        rope_theta: Option<f64>,
        /// A copy of `rotary_pct`, likewise.
        partial_rotary_factor: Option<f64>,
    }
    only {}
    unused { attention_dropout, attention_probs_dropout_prob, hidden_dropout, hidden_dropout_prob }
}

pub(super) fn spec(keys: &mut Keys) -> Result<ModelSpec, SpecError> {
    let config = Config::read(keys)?;
    for (key, copy, original) in [
        ("rope_theta", config.rope_theta, config.rotary_emb_base),
        ("partial_rotary_factor", config.partial_rotary_factor, config.rotary_pct),
    ] {
        if let Some(copy) = copy.filter(|copy| *copy != original) {
            return Err(keys.unsupported(
                key,
                &Value::from(copy),
                &format!("{original}, as NeoX's own key says"),
            ));
        }
    }
    let d_head =
        keys.divide("hidden_size", config.hidden_size, config.num_attention_heads, "num_attention_heads")?;
    let rotary = rotary(
        keys,
        &RopeKeys {
            parameters: config.rope_parameters.as_ref(),
            scaling: config.rope_scaling.as_ref(),
            theta: config.rotary_emb_base,
            partial: Some(config.rotary_pct),
            original_context: None,
            context: config.max_position_embeddings,
            d_head,
        },
    )?;
    let layer = LayerSpec { score_scale: (d_head as f64).powf(-0.5), window: None, rotary: Some(rotary) };
    Ok(ModelSpec {
        family: Family::GptNeoX,
        architecture: keys.architecture("GPTNeoXForCausalLM"),
        d_model: config.hidden_size,
        d_embed: config.hidden_size,
        d_mlp: config.intermediate_size,
        d_vocab: config.vocab_size,
        n_ctx: config.max_position_embeddings,
        n_heads: config.num_attention_heads,
        n_kv_heads: config.num_attention_heads,
        d_head,
        embedding_scale: 1.0,
        positions: Positions::Rotary,
        norm: Norm { kind: NormKind::LayerNorm, eps: config.layer_norm_eps },
        score_softcap: None,
        activation: config.hidden_act.activation,
        act_fn: config.hidden_act.name,
        layers: vec![layer; config.num_hidden_layers],
        weights: weights(config.use_parallel_residual, config.attention_bias),
    })
}

fn weights(parallel: bool, attention_bias: bool) -> WeightTable {
    let attention = norm("layers.{i}.input_layernorm", Affine::WeightAndBias);
    let mlp = norm("layers.{i}.post_attention_layernorm", Affine::WeightAndBias);
    WeightTable {
        prefix: "gpt_neox.",
        token_embedding: "embed_in.weight",
        embedding_projection: None,
        position_embedding: None,
        embedding_norm: None,
        layout: Layout::OutIn,
        residual: if parallel {
            Residual::ParallelTwoNorms { attention, mlp }
        } else {
            Residual::PreNorm { attention, mlp }
        },
        qkv: Qkv::Fused {
            names: linear("layers.{i}.attention.query_key_value", attention_bias),
            order: FusedOrder::PerHead,
        },
        qk_norm: None,
        attention_out: linear("layers.{i}.attention.dense", attention_bias),
        mlp: Mlp::Plain {
            up: linear("layers.{i}.mlp.dense_h_to_4h", true),
            down: linear("layers.{i}.mlp.dense_4h_to_h", true),
        },
        final_norm: Some(norm("final_layer_norm", Affine::WeightAndBias)),
        unused: &[
            "embed_out.weight",
            "layers.{i}.attention.bias",
            "layers.{i}.attention.masked_bias",
            "layers.{i}.attention.rotary_emb.inv_freq",
        ],
    }
}
