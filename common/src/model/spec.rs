//! What a model is, in numbers and switches: everything its forward pass depends on besides the weights.
//!
//! A [`ModelSpec`] is made by one file of [`family`](super::family) from a checkpoint's config.json and is
//! read by the worker's transformer (all of it) and by model_cfg.json (its facts). It owns no weights and
//! no names of files; which tensor holds what is in [`weights`](super::weights).

use std::fmt;

use super::weights::WeightTable;

/// A decoder-only transformer, fully specified.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Which family's rules made it.
    pub family: Family,
    /// The class named in config.json, or the family's usual one: TransformerLens's `original_architecture`.
    pub architecture: String,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of a token's embedding; where it is not `d_model`, a projection leads from one to the other.
    pub d_embed: usize,
    /// Width of the MLP's hidden layer.
    pub d_mlp: usize,
    /// Rows of the token embedding.
    pub d_vocab: usize,
    /// Longest sequence the model is made for.
    pub n_ctx: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`, each serving a run of consecutive query heads.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub d_head: usize,
    /// What token embeddings are multiplied by.
    pub embedding_scale: f64,
    /// How positions enter.
    pub positions: Positions,
    /// Every norm of the model.
    pub norm: Norm,
    /// `cap * tanh(score / cap)` on scaled scores, before the mask.
    pub score_softcap: Option<f64>,
    /// The MLP's nonlinearity.
    pub activation: Activation,
    /// The nonlinearity's name as TransformerLens writes it.
    pub act_fn: String,
    /// What differs from layer to layer; one entry a layer.
    pub layers: Vec<LayerSpec>,
    /// Which tensors the checkpoint must hold, and how the block is wired.
    pub weights: WeightTable,
}

impl ModelSpec {
    /// How many blocks the model has.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Whether prompts get a BOS token in front unless the user says otherwise.
    pub fn default_prepend_bos(&self) -> bool {
        self.family.default_prepend_bos()
    }

    /// TransformerLens's `positional_embedding_type`.
    pub fn positional_embedding_type(&self) -> &'static str {
        match self.positions {
            Positions::Learned { .. } => "standard",
            Positions::Rotary => "rotary",
            Positions::Alibi => "alibi",
        }
    }

    /// TransformerLens's `normalization_type`, as its default loading (norm weights folded) reports it.
    pub fn normalization_type(&self) -> &'static str {
        match self.norm.kind {
            NormKind::LayerNorm => "LNPre",
            NormKind::Rms | NormKind::RmsPlusOne => "RMSPre",
        }
    }
}

/// How positions enter the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// A learned row per position is added to the embeddings: row `position + offset`.
    Learned {
        /// Rows at the table's start that no position uses.
        offset: usize,
    },
    /// Queries and keys are rotated, as each layer's [`LayerSpec::rotary`] says.
    Rotary,
    /// A bias on the scores that grows with distance, of one slope a head: [`alibi_slopes`].
    Alibi,
}

/// A norm's formula; its weights are per place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Which formula.
    pub kind: NormKind,
    /// Added to the variance or mean square.
    pub eps: f64,
}

/// The formulas of normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Mean removed, divided by the standard deviation, times weight, plus bias where there is one.
    LayerNorm,
    /// Divided by the root mean square, times weight.
    Rms,
    /// Divided by the root mean square, times (1 + weight).
    RmsPlusOne,
}

/// The nonlinearities of MLPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * Phi(x)`, with the exact error function.
    GeluErf,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x * sigmoid(x)`.
    Silu,
}

/// What may differ from layer to layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// What `q . k` is multiplied by.
    pub score_scale: f64,
    /// A query sees a key only if `key > query - window`; none: every earlier key.
    pub window: Option<usize>,
    /// How queries and keys are rotated, where they are.
    pub rotary: Option<Rotary>,
}

/// Rotary position embedding of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Angle per position of each pair; `2 * inv_freq.len()` leading values of a head are rotated.
    /// In f32, computed in the order Hugging Face computes it.
    pub inv_freq: Vec<f32>,
    /// What long prompts use instead.
    pub long: Option<LongRotary>,
    /// What cos and sin are multiplied by.
    pub attention_scaling: f32,
    /// Which values form a pair.
    pub pairs: RotaryPairs,
}

/// Other angles for every position of a prompt that is long (LongRoPE).
#[derive(Clone, Debug, PartialEq)]
pub struct LongRotary {
    /// Prompts of more tokens than this are long.
    pub beyond: usize,
    /// As [`Rotary::inv_freq`], and as many.
    pub inv_freq: Vec<f32>,
}

/// Which two values of a head rotate together, of the first `2 p` that rotate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryPairs {
    /// `i` and `i + p`.
    HalfSplit,
    /// `2 i` and `2 i + 1`.
    Adjacent,
}

/// The ALiBi slope of each head (Press et al. 2022), for head counts that are no power of two as BLOOM does it.
pub fn alibi_slopes(n_heads: usize) -> Vec<f32> {
    let closest = if n_heads == 0 { 1 } else { 1usize << n_heads.ilog2() };
    // BLOOM computes base and powers in f32; the base's exponent is a power of two, so both are near exact.
    let base = |heads: usize| f64::from((2f64.powf(-(2f64.powf(-((heads as f64).log2() - 3.0))))) as f32);
    let whole = (1..=closest).map(|power| base(closest).powi(power as i32) as f32);
    let extra = (n_heads - closest.min(n_heads)).min(closest);
    let between = (0..extra).map(|i| base(2 * closest).powi(1 + 2 * i as i32) as f32);
    whole.chain(between).take(n_heads).collect()
}

/// The families lenspool knows. A family is a set of rules that turns a config.json into a [`ModelSpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// GPT-2, DistilGPT-2.
    Gpt2,
    /// GPT-Neo, TinyStories.
    GptNeo,
    /// GPT-J.
    GptJ,
    /// GPT-NeoX, Pythia.
    GptNeoX,
    /// OPT.
    Opt,
    /// BLOOM.
    Bloom,
    /// Llama 1 to 3, Yi and others of that form.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen 2, Qwen 2.5.
    Qwen2,
    /// Qwen 3.
    Qwen3,
    /// Gemma 1.
    Gemma,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, text only.
    Gemma3,
    /// Phi-1, Phi-1.5, Phi-2.
    Phi,
    /// Phi-3, Phi-4.
    Phi3,
    /// OLMo 2.
    Olmo2,
    /// StableLM.
    StableLm,
}

impl Family {
    /// Every family, in the order users are told of them.
    pub const ALL: [Family; 17] = [
        Family::Gpt2,
        Family::GptNeo,
        Family::GptJ,
        Family::GptNeoX,
        Family::Opt,
        Family::Bloom,
        Family::Llama,
        Family::Mistral,
        Family::Qwen2,
        Family::Qwen3,
        Family::Gemma,
        Family::Gemma2,
        Family::Gemma3,
        Family::Phi,
        Family::Phi3,
        Family::Olmo2,
        Family::StableLm,
    ];

    /// `model_type` in config.json.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Gpt2 => "gpt2",
            Family::GptNeo => "gpt_neo",
            Family::GptJ => "gptj",
            Family::GptNeoX => "gpt_neox",
            Family::Opt => "opt",
            Family::Bloom => "bloom",
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Gemma => "gemma",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3_text",
            Family::Phi => "phi",
            Family::Phi3 => "phi3",
            Family::Olmo2 => "olmo2",
            Family::StableLm => "stablelm",
        }
    }

    /// The family as people call it.
    pub fn title(self) -> &'static str {
        match self {
            Family::Gpt2 => "GPT-2",
            Family::GptNeo => "GPT-Neo",
            Family::GptJ => "GPT-J",
            Family::GptNeoX => "GPT-NeoX",
            Family::Opt => "OPT",
            Family::Bloom => "BLOOM",
            Family::Llama => "Llama",
            Family::Mistral => "Mistral",
            Family::Qwen2 => "Qwen 2",
            Family::Qwen3 => "Qwen 3",
            Family::Gemma => "Gemma",
            Family::Gemma2 => "Gemma 2",
            Family::Gemma3 => "Gemma 3",
            Family::Phi => "Phi",
            Family::Phi3 => "Phi-3",
            Family::Olmo2 => "OLMo 2",
            Family::StableLm => "StableLM",
        }
    }

    /// TransformerLens 2.15, which pattern_lens is locked to, prepends BOS everywhere but for BLOOM and Qwen.
    pub fn default_prepend_bos(self) -> bool {
        match self {
            Family::Bloom | Family::Qwen2 | Family::Qwen3 => false,
            Family::Gpt2
            | Family::GptNeo
            | Family::GptJ
            | Family::GptNeoX
            | Family::Opt
            | Family::Llama
            | Family::Mistral
            | Family::Gemma
            | Family::Gemma2
            | Family::Gemma3
            | Family::Phi
            | Family::Phi3
            | Family::Olmo2
            | Family::StableLm => true,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alibi_slopes_of_a_power_of_two_are_geometric() {
        let expected: Vec<f32> = (1..=8).map(|i| 2f32.powi(-i)).collect();
        assert_eq!(alibi_slopes(8), expected);
    }

    #[test]
    fn alibi_slopes_of_other_counts_continue_with_every_second_of_the_doubled_count() {
        let slopes = alibi_slopes(6);
        assert_eq!(slopes[..4], alibi_slopes(4));
        assert_eq!(slopes[4..], [2f32.powf(-1.0), 2f32.powf(-3.0)]);
    }
}
