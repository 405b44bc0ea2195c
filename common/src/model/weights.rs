//! Which tensors a checkpoint must hold, by name and shape, and which part of which one each weight is.
//!
//! A family states its names as a [`WeightTable`]: data, not code. [`Plan::new`] holds the table against
//! the names and shapes found in the checkpoint's headers; a tensor that is missing, left over or of
//! another shape is an error that names it. Nothing here reads a tensor's values.

use std::{collections::BTreeMap, fmt};

use super::spec::{ModelSpec, Positions};

/// The names and shapes in a checkpoint's headers.
pub type Header = BTreeMap<String, Vec<usize>>;

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

/// Where in a checkpoint each weight is. Made by [`Plan::new`], so every name exists with the right shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// `[d_vocab, d_embed]`.
    pub token_embedding: String,
    /// From `d_embed` to `d_model`.
    pub embedding_projection: Option<LinearPlan>,
    /// `[positions + offset, d_model]`.
    pub position_embedding: Option<String>,
    /// On the embeddings.
    pub embedding_norm: Option<NormPlan>,
    /// One entry a layer.
    pub layers: Vec<LayerPlan>,
}

/// Where one layer's weights are.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerPlan {
    /// The wiring and its norms.
    pub residual: Residual<NormPlan>,
    /// `d_model` to `n_heads * d_head`.
    pub q: LinearPlan,
    /// `d_model` to `n_kv_heads * d_head`.
    pub k: LinearPlan,
    /// `d_model` to `n_kv_heads * d_head`.
    pub v: LinearPlan,
    /// Norms on queries and keys.
    pub qk_norm: Option<QkNorm<NormPlan>>,
    /// `n_heads * d_head` to `d_model`.
    pub attention_out: LinearPlan,
    /// Always split: gate is none where the MLP is not gated.
    pub gate: Option<LinearPlan>,
    /// `d_model` to `d_mlp`.
    pub up: LinearPlan,
    /// `d_mlp` to `d_model`.
    pub down: LinearPlan,
}

/// A norm's tensors. It normalizes `count` stretches of `width` values, each on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormPlan {
    /// How much is normalized as one.
    pub width: usize,
    /// How often that is in a row.
    pub count: usize,
    /// Weights of `width`: one for all stretches, one each, or none.
    pub weight: Vec<String>,
    /// Biases, likewise.
    pub bias: Vec<String>,
}

/// A linear layer as a selection of a stored one's output features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearPlan {
    /// The weight's name.
    pub weight: String,
    /// The bias's name.
    pub bias: Option<String>,
    /// How the weight lies.
    pub layout: Layout,
    /// Width of the input.
    pub d_in: usize,
    /// Width of the output.
    pub d_out: usize,
    /// Which of the stored output features it takes.
    pub features: Features,
}

/// Which output features of a stored linear layer are meant: `d_out` of them, in runs of `run`,
/// from `start` on, a run every `stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// The first one.
    pub start: usize,
    /// How many lie side by side.
    pub run: usize,
    /// From one run to the next.
    pub stride: usize,
}

/// The checkpoint's tensors are not those its configuration calls for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightsError {
    /// Names that are not there.
    pub missing: Vec<String>,
    /// Names that nothing reads.
    pub leftover: Vec<String>,
    /// Name, shape found, shape expected.
    pub wrong_shape: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl std::error::Error for WeightsError {}

impl fmt::Display for WeightsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: &[String]| {
            const SHOWN: usize = 6;
            let more = items.len().saturating_sub(SHOWN);
            let shown = items[..items.len() - more].join(", ");
            if more == 0 { shown } else { format!("{shown} and {more} more") }
        };
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!("missing: {}", list(&self.missing)));
        }
        if !self.leftover.is_empty() {
            parts.push(format!("left over (nothing reads them): {}", list(&self.leftover)));
        }
        if !self.wrong_shape.is_empty() {
            let shapes: Vec<String> = self
                .wrong_shape
                .iter()
                .map(|(name, found, expected)| format!("{name} is {found:?}, expected {expected:?}"))
                .collect();
            parts.push(format!("wrong shape: {}", list(&shapes)));
        }
        write!(f, "the tensors are not those config.json calls for; {}", parts.join("; "))
    }
}

impl Plan {
    /// Finds every weight of `spec` among the tensors in `header`. All of them are checked, also those
    /// a run has no use for.
    pub fn new(spec: &ModelSpec, header: &Header) -> Result<Self, WeightsError> {
        let table = &spec.weights;
        let mut finder = Finder::new(table.prefix, header);

        let token_embedding = finder.tensor(table.token_embedding, 0, &[spec.d_vocab, spec.d_embed]);
        let embedding_projection = table
            .embedding_projection
            .map(|names| finder.whole(names, table.layout, 0, [spec.d_embed, spec.d_model]));
        let position_embedding = table.position_embedding.map(|template| {
            let offset = match spec.positions {
                Positions::Learned { offset } => offset,
                Positions::Rotary | Positions::Alibi => 0,
            };
            finder.tensor(template, 0, &[spec.n_ctx + offset, spec.d_model])
        });
        let embedding_norm = table.embedding_norm.map(|names| finder.norm(names, 0, spec.d_model, 1));
        let layers = (0..spec.n_layers()).map(|layer| finder.layer(spec, layer)).collect();
        if let Some(names) = table.final_norm {
            finder.norm(names, 0, spec.d_model, 1);
        }
        for template in table.unused {
            for layer in 0..if template.contains("{i}") { spec.n_layers() } else { 1 } {
                finder.ignore(template, layer);
            }
        }
        finder.finish()?;
        Ok(Plan { token_embedding, embedding_projection, position_embedding, embedding_norm, layers })
    }
}

/// Takes tensors out of a header one by one and remembers what did not fit.
struct Finder<'a> {
    prefix: &'static str,
    header: &'a Header,
    unread: BTreeMap<&'a str, &'a [usize]>,
    error: WeightsError,
}

impl<'a> Finder<'a> {
    fn new(prefix: &'static str, header: &'a Header) -> Self {
        let unread = header.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        Finder { prefix, header, unread, error: WeightsError::default() }
    }

    /// The name as the checkpoint spells it: with the prefix or without.
    fn name(&self, template: &str, layer: usize) -> String {
        let bare = template.replace("{i}", &layer.to_string());
        let prefixed = format!("{}{bare}", self.prefix);
        let bare_only = !self.header.contains_key(&prefixed) && self.header.contains_key(&bare);
        if bare_only { bare } else { prefixed }
    }

    fn tensor(&mut self, template: &str, layer: usize, expected: &[usize]) -> String {
        let name = self.name(template, layer);
        self.unread.remove(name.as_str());
        match self.header.get(&name) {
            None => self.error.missing.push(name.clone()),
            Some(found) if found != expected => {
                self.error.wrong_shape.push((name.clone(), found.clone(), expected.to_vec()));
            }
            Some(_) => {}
        }
        name
    }

    fn ignore(&mut self, template: &str, layer: usize) {
        let bare = template.replace("{i}", &layer.to_string());
        self.unread.remove(format!("{}{bare}", self.prefix).as_str());
        self.unread.remove(bare.as_str());
    }

    /// A norm on `count` stretches of `width`; with `{h}` in its name, each has its own weight.
    fn norm(&mut self, names: NormNames, layer: usize, width: usize, count: usize) -> NormPlan {
        let tensors = if names.stem.contains("{h}") { count } else { 1 };
        let mut all = |kind: &str| {
            let name = |h: usize| format!("{}.{kind}", names.stem.replace("{h}", &h.to_string()));
            (0..tensors).map(|h| self.tensor(&name(h), layer, &[width])).collect()
        };
        let (weight, bias) = match names.affine {
            Affine::None => (Vec::new(), Vec::new()),
            Affine::Weight => (all("weight"), Vec::new()),
            Affine::WeightAndBias => (all("weight"), all("bias")),
        };
        NormPlan { width, count, weight, bias }
    }

    /// A stored linear layer, cut into parts of its output features.
    fn linear<const PARTS: usize>(
        &mut self,
        names: LinearNames,
        layout: Layout,
        layer: usize,
        [d_in, d_out]: [usize; 2],
        parts: [(usize, Features); PARTS],
    ) -> [LinearPlan; PARTS] {
        let shape = match layout {
            Layout::InOut => [d_in, d_out],
            Layout::OutIn => [d_out, d_in],
        };
        let weight = self.tensor(&format!("{}.weight", names.stem), layer, &shape);
        let bias = names.bias.then(|| self.tensor(&format!("{}.bias", names.stem), layer, &[d_out]));
        parts.map(|(d_out, features)| LinearPlan {
            weight: weight.clone(),
            bias: bias.clone(),
            layout,
            d_in,
            d_out,
            features,
        })
    }

    fn whole(&mut self, names: LinearNames, layout: Layout, layer: usize, dims: [usize; 2]) -> LinearPlan {
        let [plan] = self.linear(names, layout, layer, dims, [(dims[1], Features::from(0, dims[1]))]);
        plan
    }

    fn layer(&mut self, spec: &ModelSpec, layer: usize) -> LayerPlan {
        let table = &spec.weights;
        let (d_model, d_mlp, d_head) = (spec.d_model, spec.d_mlp, spec.d_head);
        let (q_out, kv_out) = (spec.n_heads * d_head, spec.n_kv_heads * d_head);
        let Ok(residual) = table
            .residual
            .try_map(|names| Ok::<_, std::convert::Infallible>(self.norm(*names, layer, d_model, 1)));

        let [q, k, v] = match table.qkv {
            Qkv::Separate { q, k, v } => [
                self.whole(q, table.layout, layer, [d_model, q_out]),
                self.whole(k, table.layout, layer, [d_model, kv_out]),
                self.whole(v, table.layout, layer, [d_model, kv_out]),
            ],
            Qkv::Fused { names, order } => {
                let parts = match order {
                    FusedOrder::Contiguous => [
                        (q_out, Features::from(0, q_out)),
                        (kv_out, Features::from(q_out, kv_out)),
                        (kv_out, Features::from(q_out + kv_out, kv_out)),
                    ],
                    FusedOrder::PerHead => [0, 1, 2].map(|part| {
                        (q_out, Features { start: part * d_head, run: d_head, stride: 3 * d_head })
                    }),
                };
                self.linear(names, table.layout, layer, [d_model, q_out + 2 * kv_out], parts)
            }
        };
        let qk_norm = table.qk_norm.map(|norms| {
            let (q_heads, k_heads) = (spec.n_heads, spec.n_kv_heads);
            let (q, k) = match norms.span {
                QkNormSpan::Head | QkNormSpan::OwnHead => ((d_head, q_heads), (d_head, k_heads)),
                QkNormSpan::Whole => ((q_out, 1), (kv_out, 1)),
            };
            QkNorm {
                span: norms.span,
                q: self.norm(norms.q, layer, q.0, q.1),
                k: self.norm(norms.k, layer, k.0, k.1),
            }
        });
        let attention_out = self.whole(table.attention_out, table.layout, layer, [q_out, d_model]);
        let (gate, up, down) = match table.mlp {
            Mlp::Plain { up, down } => (None, self.whole(up, table.layout, layer, [d_model, d_mlp]), down),
            Mlp::Gated { gate, up, down } => (
                Some(self.whole(gate, table.layout, layer, [d_model, d_mlp])),
                self.whole(up, table.layout, layer, [d_model, d_mlp]),
                down,
            ),
            Mlp::GatedFused { gate_up, down } => {
                let parts = [(d_mlp, Features::from(0, d_mlp)), (d_mlp, Features::from(d_mlp, d_mlp))];
                let [gate, up] = self.linear(gate_up, table.layout, layer, [d_model, 2 * d_mlp], parts);
                (Some(gate), up, down)
            }
        };
        let down = self.whole(down, table.layout, layer, [d_mlp, d_model]);
        LayerPlan { residual, q, k, v, qk_norm, attention_out, gate, up, down }
    }

    fn finish(mut self) -> Result<(), WeightsError> {
        self.error.leftover = self.unread.into_keys().map(str::to_owned).collect();
        if self.error == WeightsError::default() { Ok(()) } else { Err(self.error) }
    }
}

impl Features {
    /// `len` features side by side.
    fn from(start: usize, len: usize) -> Self {
        Features { start, run: len, stride: len }
    }
}
