//! Which tensors a checkpoint must hold, by name and shape, and which part of which one each weight is.
//!
//! A family states its names as a [`WeightTable`]: data, not code. [`Plan::new`] holds the table against
//! the names and shapes found in the checkpoint's headers; a tensor that is missing, left over or of
//! another shape is an error that names it. Nothing here reads a tensor's values.

mod plan;

pub use self::plan::{Features, Header, LayerPlan, LinearPlan, NormPlan, Plan, WeightsError};

/// A family's tensor names, as templates in which `{i}` stands for the layer.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightTable {
    /// What a name may begin with; checkpoints of the bare base model leave it out.
    pub prefix: &'static str,
    /// `[d_vocab, d_embed]`.
    pub token_embedding: &'static str,
    /// From `d_embed` to `d_model`, where they differ.
    pub embedding_projection: Option<LinearNames>,
    /// `[n_ctx + offset, d_model]`.
    pub position_embedding: Option<&'static str>,
    /// Applied to the embeddings before the first block.
    pub embedding_norm: Option<NormNames>,
    /// How linear weights lie.
    pub layout: Layout,
    /// How the block is wired, with the names of its norms.
    pub residual: Residual<NormNames>,
    /// Queries, keys and values.
    pub qkv: Qkv,
    /// Norms on queries and keys before they are rotated.
    pub qk_norm: Option<QkNorm<NormNames>>,
    /// From the heads back to the residual stream.
    pub attention_out: LinearNames,
    /// The MLP.
    pub mlp: Mlp<LinearNames>,
    /// After the last block: must be there, is never loaded, since no pattern depends on it.
    pub final_norm: Option<NormNames>,
    /// Other names that may be there and that no pattern depends on: unembedding, mask buffers.
    pub unused: &'static [&'static str],
}

/// How a linear layer's weight lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[in, out]`, GPT-2's Conv1D.
    InOut,
    /// `[out, in]`, PyTorch's Linear.
    OutIn,
}

/// A linear layer: `{stem}.weight` and, where it has one, `{stem}.bias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearNames {
    /// The name without `.weight`.
    pub stem: &'static str,
    /// Whether there is a `.bias`.
    pub bias: bool,
}

/// A linear layer's names.
pub const fn linear(stem: &'static str, bias: bool) -> LinearNames {
    LinearNames { stem, bias }
}

/// A norm: `{stem}.weight` and `{stem}.bias`, as far as it has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormNames {
    /// The name without `.weight`.
    pub stem: &'static str,
    /// Which of the two there are.
    pub affine: Affine,
}

/// A norm's names.
pub const fn norm(stem: &'static str, affine: Affine) -> NormNames {
    NormNames { stem, affine }
}

/// What a norm does after normalizing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affine {
    /// Nothing.
    None,
    /// Multiplies with its weight.
    Weight,
    /// Multiplies with its weight and adds its bias.
    WeightAndBias,
}

/// How attention, MLP and norms are wired around the residual stream `x`.
/// `N` is what is known of each norm: its names, its place in the file, its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual<N> {
    /// `x += attn(attention(x)); x += mlp(mlp(x))`.
    PreNorm {
        /// Before attention.
        attention: N,
        /// Before the MLP.
        mlp: N,
    },
    /// `x += attn(norm(x)) + mlp(norm(x))`.
    ParallelOneNorm {
        /// Before both.
        norm: N,
    },
    /// `x += attn(attention(x)) + mlp(mlp(x))`.
    ParallelTwoNorms {
        /// Before attention.
        attention: N,
        /// Before the MLP.
        mlp: N,
    },
    /// `x = attention(x); x += attn(x); x = mlp(x); x += mlp(x)`: the stream goes on from the norms.
    StreamNorm {
        /// Before attention.
        attention: N,
        /// Before the MLP.
        mlp: N,
    },
    /// `x = attention(x + attn(x)); x = mlp(x + mlp(x))`, the first transformers' way.
    PostNorm {
        /// After attention is added.
        attention: N,
        /// After the MLP is added.
        mlp: N,
    },
    /// `x += attention(attn(x)); x += mlp(mlp(x))`.
    OutputNorm {
        /// On attention's output.
        attention: N,
        /// On the MLP's output.
        mlp: N,
    },
    /// `x += post_attention(attn(pre_attention(x))); x += post_mlp(mlp(pre_mlp(x)))`.
    Sandwich {
        /// Before attention.
        pre_attention: N,
        /// On attention's output.
        post_attention: N,
        /// Before the MLP.
        pre_mlp: N,
        /// On the MLP's output.
        post_mlp: N,
    },
}

impl<N> Residual<N> {
    /// The same wiring with every norm replaced by what `f` makes of it.
    pub fn try_map<M, E>(&self, mut f: impl FnMut(&N) -> Result<M, E>) -> Result<Residual<M>, E> {
        Ok(match self {
            Residual::PreNorm { attention, mlp } => {
                Residual::PreNorm { attention: f(attention)?, mlp: f(mlp)? }
            }
            Residual::ParallelOneNorm { norm } => Residual::ParallelOneNorm { norm: f(norm)? },
            Residual::ParallelTwoNorms { attention, mlp } => {
                Residual::ParallelTwoNorms { attention: f(attention)?, mlp: f(mlp)? }
            }
            Residual::StreamNorm { attention, mlp } => {
                Residual::StreamNorm { attention: f(attention)?, mlp: f(mlp)? }
            }
            Residual::PostNorm { attention, mlp } => {
                Residual::PostNorm { attention: f(attention)?, mlp: f(mlp)? }
            }
            Residual::OutputNorm { attention, mlp } => {
                Residual::OutputNorm { attention: f(attention)?, mlp: f(mlp)? }
            }
            Residual::Sandwich { pre_attention, post_attention, pre_mlp, post_mlp } => Residual::Sandwich {
                pre_attention: f(pre_attention)?,
                post_attention: f(post_attention)?,
                pre_mlp: f(pre_mlp)?,
                post_mlp: f(post_mlp)?,
            },
        })
    }
}

/// How queries, keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qkv {
    /// Three linear layers.
    Separate {
        /// Queries.
        q: LinearNames,
        /// Keys.
        k: LinearNames,
        /// Values.
        v: LinearNames,
    },
    /// One linear layer.
    Fused {
        /// Its names.
        names: LinearNames,
        /// How its output features are ordered.
        order: FusedOrder,
    },
}

/// The order of a fused QKV projection's output features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FusedOrder {
    /// All queries, then all keys, then all values.
    Contiguous,
    /// Head by head: its query, its key, its value.
    PerHead,
}

/// A norm on queries and one on keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QkNorm<N> {
    /// What is normalized as one, and with which weight.
    pub span: QkNormSpan,
    /// On queries.
    pub q: N,
    /// On keys.
    pub k: N,
}

/// What a query or key norm normalizes as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNormSpan {
    /// Each head, with one weight of `d_head` for all of them.
    Head,
    /// Each head, with a weight of its own: `{h}` in its name stands for the head.
    OwnHead,
    /// All heads together, with a weight as wide.
    Whole,
}

/// The MLP's layers; `L` is what is known of each: its names, its place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlp<L> {
    /// `down(act(up(x)))`.
    Plain {
        /// To the hidden layer.
        up: L,
        /// Back.
        down: L,
    },
    /// `down(act(gate(x)) * up(x))`.
    Gated {
        /// Through the nonlinearity.
        gate: L,
        /// Multiplied with it.
        up: L,
        /// Back.
        down: L,
    },
    /// As `Gated`, with gate and up in one layer, gate first.
    GatedFused {
        /// Gate, then up.
        gate_up: L,
        /// Back.
        down: L,
    },
}
