//! GPT-2: learned positions, pre-norm, fused QKV stored `[in, out]`, tanh GELU.

use super::config::{ActivationName, Keys, SpecError, hf_config};
use crate::model::{
    spec::{Family, LayerSpec, ModelSpec, Norm, NormKind, Positions},
    weights::{Affine, FusedOrder, Layout, Mlp, Qkv, Residual, WeightTable, linear, norm},
};

hf_config! {
    /// transformers' `GPT2Config`.
    struct Config {
        vocab_size: usize = 50257,
        n_positions | max_position_embeddings: usize = 1024,
        n_embd | hidden_size: usize = 768,
        n_layer | num_hidden_layers: usize = 12,
        n_head | num_attention_heads: usize = 12,
        /// Four times the width where it is absent.
        n_inner: Option<usize>,
        activation_function: ActivationName = ActivationName::known("gelu_new"),
        layer_norm_epsilon: f64 = 1e-5,
        scale_attn_weights: bool = true,
        /// Divides the scores of layer `i` by `i + 1`.
        scale_attn_by_inverse_layer_idx: bool = false,
    }
    only {}
    unused {
        attn_pdrop, embd_pdrop, n_ctx, n_special, output_past, predict_special_tokens,
        reorder_and_upcast_attn, resid_pdrop, summary_activation, summary_first_dropout,
        summary_proj_to_labels, summary_type, summary_use_proj,
    }
}

pub(super) fn spec(keys: &mut Keys) -> Result<ModelSpec, SpecError> {
    let config = Config::read(keys)?;
    let d_head = keys.divide("n_embd", config.n_embd, config.n_head, "n_head")?;
    let scale = if config.scale_attn_weights { (d_head as f64).powf(-0.5) } else { 1.0 };
    let layer = |index: usize| LayerSpec {
        score_scale: if config.scale_attn_by_inverse_layer_idx { scale / (index + 1) as f64 } else { scale },
        window: None,
        rotary: None,
    };
    Ok(ModelSpec {
        family: Family::Gpt2,
        architecture: keys.architecture("GPT2LMHeadModel"),
        d_model: config.n_embd,
        d_embed: config.n_embd,
        d_mlp: config.n_inner.unwrap_or(4 * config.n_embd),
        d_vocab: config.vocab_size,
        n_ctx: config.n_positions,
        n_heads: config.n_head,
        n_kv_heads: config.n_head,
        d_head,
        embedding_scale: 1.0,
        positions: Positions::Learned { offset: 0 },
        norm: Norm { kind: NormKind::LayerNorm, eps: config.layer_norm_epsilon },
        score_softcap: None,
        activation: config.activation_function.activation,
        act_fn: config.activation_function.name,
        layers: (0..config.n_layer).map(layer).collect(),
        weights: weights(),
    })
}

fn weights() -> WeightTable {
    WeightTable {
        prefix: "transformer.",
        token_embedding: "wte.weight",
        embedding_projection: None,
        position_embedding: Some("wpe.weight"),
        embedding_norm: None,
        layout: Layout::InOut,
        residual: Residual::PreNorm {
            attention: norm("h.{i}.ln_1", Affine::WeightAndBias),
            mlp: norm("h.{i}.ln_2", Affine::WeightAndBias),
        },
        qkv: Qkv::Fused { names: linear("h.{i}.attn.c_attn", true), order: FusedOrder::Contiguous },
        qk_norm: None,
        attention_out: linear("h.{i}.attn.c_proj", true),
        mlp: Mlp::Plain { up: linear("h.{i}.mlp.c_fc", true), down: linear("h.{i}.mlp.c_proj", true) },
        final_norm: Some(norm("ln_f", Affine::WeightAndBias)),
        unused: &["lm_head.weight", "h.{i}.attn.bias", "h.{i}.attn.masked_bias"],
    }
}
