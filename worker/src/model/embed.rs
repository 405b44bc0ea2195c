//! Token ids to the first residual stream: `[rows, d_model]` on the host.
//!
//! The tables stay in the mapped file: a batch reads the rows its tokens name.

use std::sync::Arc;

use common::model::{spec::{ModelSpec, Positions}, weights::Plan};
use rayon::prelude::*;

use super::{LoadError, batch::Group, checkpoint::Checkpoint};
use crate::engine::EngineError;

/// Token and learned position embeddings.
pub(super) struct Embedding {
    checkpoint: Arc<Checkpoint>,
    tokens: String,
    /// The table's name and how many of its first rows no position uses.
    positions: Option<(String, usize)>,
    d_model: usize,
    d_vocab: usize,
    n_ctx: usize,
    scale: f32,
}

impl Embedding {
    pub(super) fn new(checkpoint: Arc<Checkpoint>, spec: &ModelSpec, plan: &Plan) -> Result<Self, LoadError> {
        let offset = match spec.positions {
            Positions::Learned { offset } => offset,
            Positions::Rotary | Positions::Alibi => 0,
        };
        // Found now, a number type that cannot be read is the load's error and not the first batch's.
        checkpoint.values(&plan.token_embedding)?;
        if let Some(name) = &plan.position_embedding {
            checkpoint.values(name)?;
        }
        Ok(Embedding {
            checkpoint,
            tokens: plan.token_embedding.clone(),
            positions: plan.position_embedding.clone().map(|name| (name, offset)),
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
        if self.positions.is_some() && prompt.len() > self.n_ctx {
            return Err(EngineError::Input(format!(
                "the prompt has {} tokens, the model {} positions; truncate it",
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

    /// The rows of `groups`, in order, for prompts that passed [`Self::check`]. Padding rows are token 0's.
    pub(super) fn rows(&self, prompts: &[Vec<u32>], groups: &[Group]) -> Result<Vec<f32>, EngineError> {
        let bug = |error: LoadError| EngineError::Device(error.to_string());
        let tokens = self.checkpoint.values(&self.tokens).map_err(bug)?;
        let positions = match &self.positions {
            None => None,
            Some((name, offset)) => Some((self.checkpoint.values(name).map_err(bug)?, *offset)),
        };
        let places: Vec<(usize, usize)> = groups
            .iter()
            .flat_map(|group| {
                group.prompts.clone().flat_map(|prompt| {
                    let ids = &prompts[prompt];
                    (0..group.seq).map(|at| (ids.get(at).map_or(0, |id| *id as usize), at))
                })
            })
            .collect();
        let mut rows = vec![0.0; places.len() * self.d_model];
        rows.par_chunks_mut(self.d_model).zip(&places).with_min_len(16).for_each(|(row, &(id, at))| {
            tokens.read(id * self.d_model, row);
            if self.scale != 1.0 {
                row.iter_mut().for_each(|value| *value *= self.scale);
            }
            if let Some((table, offset)) = &positions {
                let mut position = vec![0.0; self.d_model];
                // A padding row can lie past the table; its values are never used.
                let at = at.min(self.n_ctx - 1);
                table.read((at + offset) * self.d_model, &mut position);
                row.iter_mut().zip(&position).for_each(|(value, position)| *value += position);
            }
        });
        Ok(rows)
    }
}
