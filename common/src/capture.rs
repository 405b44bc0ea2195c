//! What of a forward pass is kept: which layers, as which arrays, in which number type.

use std::{collections::BTreeSet, str::FromStr};

use serde::{Deserialize, Serialize};

/// The layers whose attention patterns a run keeps.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layers {
    /// Every layer of the model.
    All,
    /// These layers, counted from 0.
    Only(BTreeSet<usize>),
}

impl Layers {
    /// The selected layer indices of a model with `n_layers` layers, ascending.
    pub fn indices(&self, n_layers: usize) -> Vec<usize> {
        match self {
            Layers::All => (0..n_layers).collect(),
            Layers::Only(set) => set.iter().copied().filter(|&layer| layer < n_layers).collect(),
        }
    }
}

/// How the arrays of one prompt are laid out in its npz file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArrayLayout {
    /// One array a layer: `blocks.{i}.attn.hook_pattern`, shape `(1, n_heads, n, n)`.
    #[default]
    PerLayer,
    /// One array in all: `activations-blocks.-.attn.hook_pattern`, shape `(1, n_layers, n_heads, n, n)`.
    Stacked,
}

/// The number type patterns are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// `<f4`, exactly what the model computed.
    #[default]
    Float32,
    /// `<f2`, rounded to nearest even: relative error at most 2^-11, absolute at most 2^-25 below 2^-14.
    Float16,
}

/// A word that names no number type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of float32, float16")]
pub struct UnknownDtype(String);

impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(text: &str) -> Result<Self, UnknownDtype> {
        match text {
            "float32" => Ok(Dtype::Float32),
            "float16" => Ok(Dtype::Float16),
            _ => Err(UnknownDtype(text.to_owned())),
        }
    }
}

impl Dtype {
    /// Bytes one value takes.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::Float32 => 4,
            Dtype::Float16 => 2,
        }
    }
}

/// What one run keeps of each prompt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Capture {
    /// Which layers.
    pub layers: Layers,
    /// As which arrays.
    pub layout: ArrayLayout,
    /// In which number type.
    pub dtype: Dtype,
}

impl Default for Capture {
    fn default() -> Self {
        Capture { layers: Layers::All, layout: ArrayLayout::PerLayer, dtype: Dtype::Float32 }
    }
}
