//! A weight table held against a checkpoint's headers: where each weight is, or what does not fit.

use std::{collections::BTreeMap, fmt};

use super::{
    super::spec::{ModelSpec, Positions},
    Affine, FusedOrder, Layout, LinearNames, Mlp, NormNames, QkNorm, QkNormSpan, Qkv, Residual,
};

/// The names and shapes in a checkpoint's headers.
pub type Header = BTreeMap<String, Vec<usize>>;

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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::linear, *};
    use crate::model::family::of_config;

    /// A GPT-2 of one layer and width 4, and the tensors it calls for.
    fn tiny() -> (ModelSpec, Header) {
        let config = serde_json::json!({
            "model_type": "gpt2", "n_embd": 4, "n_head": 2, "n_layer": 1, "n_positions": 8, "vocab_size": 10,
        });
        let config = config.as_object().expect("an object").clone();
        let spec = of_config(Path::new("config.json"), config).expect("a spec");
        let shapes: [(&str, &[usize]); 16] = [
            ("wte.weight", &[10, 4]),
            ("wpe.weight", &[8, 4]),
            ("h.0.ln_1.weight", &[4]),
            ("h.0.ln_1.bias", &[4]),
            ("h.0.ln_2.weight", &[4]),
            ("h.0.ln_2.bias", &[4]),
            ("h.0.attn.c_attn.weight", &[4, 12]),
            ("h.0.attn.c_attn.bias", &[12]),
            ("h.0.attn.c_proj.weight", &[4, 4]),
            ("h.0.attn.c_proj.bias", &[4]),
            ("h.0.mlp.c_fc.weight", &[4, 16]),
            ("h.0.mlp.c_fc.bias", &[16]),
            ("h.0.mlp.c_proj.weight", &[16, 4]),
            ("h.0.mlp.c_proj.bias", &[4]),
            ("ln_f.weight", &[4]),
            ("ln_f.bias", &[4]),
        ];
        let header = shapes.map(|(name, shape)| (format!("transformer.{name}"), shape.to_vec()));
        (spec, header.into())
    }

    fn refused(edit: impl FnOnce(&mut Header)) -> String {
        let (spec, mut header) = tiny();
        edit(&mut header);
        Plan::new(&spec, &header).expect_err("must be refused").to_string()
    }

    #[test]
    fn a_whole_checkpoint_has_a_plan_with_and_without_prefix_and_unused_tensors() {
        let (spec, mut header) = tiny();
        let plan = Plan::new(&spec, &header).expect("whole");
        assert_eq!(plan.layers[0].k.weight, "transformer.h.0.attn.c_attn.weight");
        assert_eq!(plan.layers[0].k.features, Features { start: 4, run: 4, stride: 4 });
        header.insert("lm_head.weight".to_owned(), vec![10, 4]);
        header.insert("transformer.h.0.attn.bias".to_owned(), vec![1, 1, 8, 8]);
        assert_eq!(Plan::new(&spec, &header), Ok(plan));
        let bare =
            header.into_iter().map(|(name, shape)| (name.replace("transformer.", ""), shape)).collect();
        assert_eq!(Plan::new(&spec, &bare).expect("whole").token_embedding, "wte.weight");
    }

    #[test]
    fn a_tensor_that_is_missing_left_over_or_misshapen_is_named() {
        let opening = "the tensors are not those config.json calls for; ";
        let missing = refused(|header| drop(header.remove("transformer.h.0.mlp.c_proj.bias")));
        assert_eq!(missing, format!("{opening}missing: transformer.h.0.mlp.c_proj.bias"));
        let leftover = refused(|header| drop(header.insert("transformer.h.1.ln_1.weight".into(), vec![4])));
        assert_eq!(leftover, format!("{opening}left over (nothing reads them): transformer.h.1.ln_1.weight"));
        let shape = refused(|header| drop(header.insert("transformer.wpe.weight".into(), vec![9, 4])));
        assert_eq!(shape, format!("{opening}wrong shape: transformer.wpe.weight is [9, 4], expected [8, 4]"));
    }

    #[test]
    fn many_names_are_counted() {
        let error = refused(|header| header.clear());
        assert!(
            error.ends_with("transformer.h.0.ln_2.weight, transformer.h.0.ln_2.bias and 10 more"),
            "{error}"
        );
    }

    #[test]
    fn a_fused_projection_by_head_is_cut_into_runs() {
        let (mut spec, header) = tiny();
        spec.weights.qkv =
            Qkv::Fused { names: linear("h.{i}.attn.c_attn", true), order: FusedOrder::PerHead };
        let plan = Plan::new(&spec, &header).expect("whole");
        assert_eq!(plan.layers[0].v.features, Features { start: 4, run: 2, stride: 6 });
    }
}
