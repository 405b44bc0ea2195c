//! BLOOM: ALiBi, a norm on the embeddings, fused QKV ordered head by head, tanh GELU.

use super::config::{Keys, SpecError, hf_config};
use crate::model::{
    spec::{Activation, Family, LayerSpec, ModelSpec, Norm, NormKind, Positions},
    weights::{Affine, FusedOrder, Layout, Mlp, Qkv, Residual, WeightTable, linear, norm},
};

hf_config! {
    /// transformers' `BloomConfig`.
    struct Config {
        vocab_size: usize = 250880,
        hidden_size | n_embed: usize = 64,
        n_layer | num_hidden_layers: usize = 2,
        n_head | num_attention_heads: usize = 8,
        layer_norm_epsilon: f64 = 1e-5,
        apply_residual_connection_post_layernorm: bool = false,
    }
    only { n_inner: null }
    unused {
        attention_dropout, attention_softmax_in_fp32, bias_dropout_fusion, hidden_dropout,
        masked_softmax_fusion, offset_alibi, pretraining_tp, seq_length, skip_bias_add, skip_bias_add_qkv,
        slow_but_exact,
    }
}

pub(super) fn spec(keys: &mut Keys) -> Result<ModelSpec, SpecError> {
    let config = Config::read(keys)?;
    let d_head = keys.divide("hidden_size", config.hidden_size, config.n_head, "n_head")?;
    let layer = LayerSpec { score_scale: (d_head as f64).powf(-0.5), window: None, rotary: None };
    Ok(ModelSpec {
        family: Family::Bloom,
        architecture: keys.architecture("BloomForCausalLM"),
        d_model: config.hidden_size,
        d_embed: config.hidden_size,
        d_mlp: 4 * config.hidden_size,
        d_vocab: config.vocab_size,
        // ALiBi knows no longest length; this is the one the models were trained with.
        n_ctx: 2048,
        n_heads: config.n_head,
        n_kv_heads: config.n_head,
        d_head,
        embedding_scale: 1.0,
        positions: Positions::Alibi,
        norm: Norm { kind: NormKind::LayerNorm, eps: config.layer_norm_epsilon },
        score_softcap: None,
        activation: Activation::GeluTanh,
        act_fn: "gelu_fast".to_owned(),
        layers: vec![layer; config.n_layer],
        weights: weights(config.apply_residual_connection_post_layernorm),
    })
}

fn weights(stream_norm: bool) -> WeightTable {
    let attention = norm("h.{i}.input_layernorm", Affine::WeightAndBias);
    let mlp = norm("h.{i}.post_attention_layernorm", Affine::WeightAndBias);
    WeightTable {
        prefix: "transformer.",
        token_embedding: "word_embeddings.weight",
        embedding_projection: None,
        position_embedding: None,
        embedding_norm: Some(norm("word_embeddings_layernorm", Affine::WeightAndBias)),
        layout: Layout::OutIn,
        residual: if stream_norm {
            Residual::StreamNorm { attention, mlp }
        } else {
            Residual::PreNorm { attention, mlp }
        },
        qkv: Qkv::Fused {
            names: linear("h.{i}.self_attention.query_key_value", true),
            order: FusedOrder::PerHead,
        },
        qk_norm: None,
        attention_out: linear("h.{i}.self_attention.dense", true),
        mlp: Mlp::Plain {
            up: linear("h.{i}.mlp.dense_h_to_4h", true),
            down: linear("h.{i}.mlp.dense_4h_to_h", true),
        },
        final_norm: Some(norm("ln_f", Affine::WeightAndBias)),
        unused: &["lm_head.weight"],
    }
}
