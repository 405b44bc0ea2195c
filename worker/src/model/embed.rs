//! Token ids to the first residual stream: `[rows, d_model]` on the host.
//!
//! The tables stay where the checkpoint has them, in a mapped file as a rule: a batch reads the rows its tokens name.

use common::model::{
    spec::{ModelSpec, Positions},
    weights::Plan,
};
use rayon::prelude::*;

use super::{LoadError, batch::Group, checkpoint::Checkpoint, values::Values};
use crate::engine::EngineError;

/// Token and learned position embeddings.
pub(super) struct Embedding {
    tokens: Values,
    /// The table and how many of its first rows no position uses.
    positions: Option<(Values, usize)>,
    d_embed: usize,
    d_model: usize,
    d_vocab: usize,
    n_ctx: usize,
    scale: f32,
}

impl Embedding {
    pub(super) fn new(checkpoint: &Checkpoint, spec: &ModelSpec, plan: &Plan) -> Result<Self, LoadError> {
        let offset = match spec.positions {
            Positions::Learned { offset } => offset,
            Positions::Rotary | Positions::Alibi => 0,
        };
        let positions = plan.position_embedding.as_deref().map(|name| checkpoint.values(name));
        Ok(Embedding {
            tokens: checkpoint.values(&plan.token_embedding)?,
            positions: positions.transpose()?.map(|values| (values, offset)),
            d_embed: spec.d_embed,
            d_model: spec.d_model,
            d_vocab: spec.d_vocab,
            n_ctx: spec.n_ctx,
            scale: spec.embedding_scale as f32,
        })
    }

    /// Whether the model can read this prompt at all.
    pub(super) fn check(&self, prompt: &[u32]) -> Result<(), EngineError> {
        if prompt.is_empty() {
            return Err(EngineError::Input("a prompt without tokens has no attention pattern".to_owned()));
        }
        if prompt.len() > self.n_ctx {
            return Err(EngineError::Input(format!(
                "the prompt has {} tokens, the model's context {}; truncate it",
                prompt.len(),
                self.n_ctx
            )));
        }
        match prompt.iter().find(|id| **id as usize >= self.d_vocab) {
            None => Ok(()),
            Some(id) => Err(EngineError::Input(format!(
                "token id {id} is outside the model's vocabulary of {}; tokenizer and model do not belong together",
                self.d_vocab
            ))),
        }
    }

    /// The rows of `groups`, in order, for prompts that passed [`Self::check`]: token plus position.
    /// Padding rows are token 0's.
    pub(super) fn rows(&self, prompts: &[Vec<u32>], groups: &[Group]) -> Vec<f32> {
        let (mut rows, positions) = self.rows_apart(prompts, groups);
        if let Some(positions) = positions {
            let width = 1 << 14;
            rows.par_chunks_mut(width).zip(positions.par_chunks(width)).for_each(|(rows, positions)| {
                rows.iter_mut().zip(positions).for_each(|(value, position)| *value += position);
            });
        }
        rows
    }

    /// As [`Self::rows`], `[rows, d_embed]` of tokens and `[rows, d_model]` of positions not yet added.
    pub(super) fn rows_apart(&self, prompts: &[Vec<u32>], groups: &[Group]) -> (Vec<f32>, Option<Vec<f32>>) {
        let ids = places(groups, |prompt, at| prompts[prompt].get(at).map_or(0, |id| *id as usize));
        let mut tokens = gather(&self.tokens, &ids, self.d_embed);
        if self.scale != 1.0 {
            tokens.iter_mut().for_each(|value| *value *= self.scale);
        }
        let positions = self
            .positions
            .as_ref()
            .map(|(table, offset)| gather(table, &places(groups, |_, at| at + offset), self.d_model));
        (tokens, positions)
    }
}

/// What `of(prompt, position)` says for every row.
fn places(groups: &[Group], of: impl Fn(usize, usize) -> usize) -> Vec<usize> {
    let of = &of;
    groups
        .iter()
        .flat_map(|group| {
            group.prompts.clone().flat_map(move |prompt| (0..group.seq).map(move |at| of(prompt, at)))
        })
        .collect()
}

/// Rows of a table, one after the other.
fn gather(table: &Values, rows: &[usize], width: usize) -> Vec<f32> {
    let mut gathered = vec![0.0; rows.len() * width];
    gathered
        .par_chunks_mut(width)
        .zip(rows)
        .with_min_len(16)
        .for_each(|(out, row)| table.read(row * width, out));
    gathered
}
