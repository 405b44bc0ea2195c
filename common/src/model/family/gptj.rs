//! GPT-J: rotary positions on adjacent pairs of part of a head, one norm for attention and MLP in parallel.

use super::{
    config::{ActivationName, Keys, SpecError, hf_config},
    rope::inverse_frequencies,
};
use crate::model::{
    spec::{Family, LayerSpec, ModelSpec, Norm, NormKind, Positions, Rotary, RotaryPairs},
    weights::{Affine, Layout, Mlp, Qkv, Residual, WeightTable, linear, norm},
};

hf_config! {
    /// transformers' `GPTJConfig`.
    struct Config {
        vocab_size: usize = 50400,
        n_positions | max_position_embeddings: usize = 2048,
        n_embd | hidden_size: usize = 4096,
        n_layer | num_hidden_layers: usize = 28,
        n_head | num_attention_heads: usize = 16,
        /// How many leading values of a head are rotated.
        rotary_dim: usize = 64,
        /// Four times the width where it is null.
        n_inner: Option<usize>,
        activation_function: ActivationName = ActivationName::known("gelu_new"),
        layer_norm_epsilon: f64 = 1e-5,
    }
    only { rotary: true, scale_attn_weights: true }
    unused {
        attn_pdrop, embd_pdrop, resid_pdrop, summary_activation, summary_first_dropout,
        summary_proj_to_labels, summary_type, summary_use_proj,
    }
}

pub(super) fn spec(keys: &mut Keys) -> Result<ModelSpec, SpecError> {
    let config = Config::read(keys)?;
    let d_head = keys.divide("n_embd", config.n_embd, config.n_head, "n_head")?;
    keys.divide("rotary_dim", config.rotary_dim, 2, "2")?;
    let layer = LayerSpec {
        score_scale: (d_head as f64).powf(-0.5),
        window: None,
        rotary: Some(Rotary {
            inv_freq: inverse_frequencies(10_000.0, config.rotary_dim),
            long: None,
            attention_scaling: 1.0,
            pairs: RotaryPairs::Adjacent,
        }),
    };
    Ok(ModelSpec {
        family: Family::GptJ,
        architecture: keys.architecture("GPTJForCausalLM"),
        d_model: config.n_embd,
        d_embed: config.n_embd,
        d_mlp: config.n_inner.unwrap_or(4 * config.n_embd),
        d_vocab: config.vocab_size,
        n_ctx: config.n_positions,
        n_heads: config.n_head,
        n_kv_heads: config.n_head,
        d_head,
        embedding_scale: 1.0,
        positions: Positions::Rotary,
        norm: Norm { kind: NormKind::LayerNorm, eps: config.layer_norm_epsilon },
        score_softcap: None,
        activation: config.activation_function.activation,
        act_fn: config.activation_function.name,
        layers: vec![layer; config.n_layer],
        weights: weights(),
    })
}

fn weights() -> WeightTable {
    WeightTable {
        prefix: "transformer.",
        token_embedding: "wte.weight",
        embedding_projection: None,
        position_embedding: None,
        embedding_norm: None,
        layout: Layout::OutIn,
        residual: Residual::ParallelOneNorm { norm: norm("h.{i}.ln_1", Affine::WeightAndBias) },
        qkv: Qkv::Separate {
            q: linear("h.{i}.attn.q_proj", false),
            k: linear("h.{i}.attn.k_proj", false),
            v: linear("h.{i}.attn.v_proj", false),
        },
        qk_norm: None,
        attention_out: linear("h.{i}.attn.out_proj", false),
        mlp: Mlp::Plain { up: linear("h.{i}.mlp.fc_in", true), down: linear("h.{i}.mlp.fc_out", true) },
        final_norm: Some(norm("ln_f", Affine::WeightAndBias)),
        unused: &["lm_head.weight", "lm_head.bias", "h.{i}.attn.bias", "h.{i}.attn.masked_bias"],
    }
}
