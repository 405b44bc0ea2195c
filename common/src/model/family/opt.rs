//! OPT: learned positions two rows into their table, ReLU, norms before or (350m) after, embeddings that
//! may be narrower than the stream.

use super::config::{ActivationName, Keys, SpecError, hf_config};
use crate::model::{
    spec::{Family, LayerSpec, ModelSpec, Norm, NormKind, Positions},
    weights::{Affine, Layout, Mlp, Qkv, Residual, WeightTable, linear, norm},
};

hf_config! {
    /// transformers' `OPTConfig`.
    struct Config {
        vocab_size: usize = 50272,
        hidden_size: usize = 768,
        num_hidden_layers: usize = 12,
        ffn_dim: usize = 3072,
        max_position_embeddings: usize = 2048,
        do_layer_norm_before: bool = true,
        /// Kept for checkpoints saved before transformers 4.20.
        _remove_final_layer_norm: bool = false,
        /// The width of embeddings; `hidden_size` where it is null.
        word_embed_proj_dim: Option<usize>,
        num_attention_heads: usize = 12,
        activation_function: ActivationName = ActivationName::known("relu"),
        /// On every linear layer of a block.
        enable_bias: bool = true,
        /// Whether norms have weights and biases.
        layer_norm_elementwise_affine: bool = true,
    }
    only {}
    unused { activation_dropout, attention_dropout, dropout, init_std, layerdrop, output_projection }
}

pub(super) fn spec(keys: &mut Keys) -> Result<ModelSpec, SpecError> {
    let config = Config::read(keys)?;
    let heads = config.num_attention_heads;
    let d_head = keys.divide("hidden_size", config.hidden_size, heads, "num_attention_heads")?;
    let layer = LayerSpec { score_scale: (d_head as f64).powf(-0.5), window: None, rotary: None };
    Ok(ModelSpec {
        family: Family::Opt,
        architecture: keys.architecture("OPTForCausalLM"),
        d_model: config.hidden_size,
        d_embed: config.word_embed_proj_dim.unwrap_or(config.hidden_size),
        d_mlp: config.ffn_dim,
        d_vocab: config.vocab_size,
        n_ctx: config.max_position_embeddings,
        n_heads: heads,
        n_kv_heads: heads,
        d_head,
        embedding_scale: 1.0,
        positions: Positions::Learned { offset: 2 },
        norm: Norm { kind: NormKind::LayerNorm, eps: 1e-5 },
        score_softcap: None,
        activation: config.activation_function.activation,
        act_fn: config.activation_function.name.clone(),
        layers: vec![layer; config.num_hidden_layers],
        weights: weights(&config),
    })
}

fn weights(config: &Config) -> WeightTable {
    let bias = config.enable_bias;
    let affine = if config.layer_norm_elementwise_affine { Affine::WeightAndBias } else { Affine::None };
    let attention = norm("decoder.layers.{i}.self_attn_layer_norm", affine);
    let mlp = norm("decoder.layers.{i}.final_layer_norm", affine);
    let has_final_norm = config.do_layer_norm_before && !config._remove_final_layer_norm;
    let projected = config.word_embed_proj_dim.is_some_and(|width| width != config.hidden_size);
    WeightTable {
        prefix: "model.",
        token_embedding: "decoder.embed_tokens.weight",
        embedding_projection: projected.then_some(linear("decoder.project_in", false)),
        position_embedding: Some("decoder.embed_positions.weight"),
        embedding_norm: None,
        layout: Layout::OutIn,
        residual: if config.do_layer_norm_before {
            Residual::PreNorm { attention, mlp }
        } else {
            Residual::PostNorm { attention, mlp }
        },
        qkv: Qkv::Separate {
            q: linear("decoder.layers.{i}.self_attn.q_proj", bias),
            k: linear("decoder.layers.{i}.self_attn.k_proj", bias),
            v: linear("decoder.layers.{i}.self_attn.v_proj", bias),
        },
        qk_norm: None,
        attention_out: linear("decoder.layers.{i}.self_attn.out_proj", bias),
        mlp: Mlp::Plain {
            up: linear("decoder.layers.{i}.fc1", bias),
            down: linear("decoder.layers.{i}.fc2", bias),
        },
        final_norm: has_final_norm.then_some(norm("decoder.final_layer_norm", affine)),
        unused: &["lm_head.weight", "decoder.project_out.weight"],
    }
}
