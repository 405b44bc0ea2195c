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

/// The number type in which a model's matrices are multiplied. All else, the softmax included, is float32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeDtype {
    /// As exact as the reference.
    #[default]
    Float32,
    /// Weights and inputs of a product are rounded to bfloat16 (8 bits of mantissa); sums are float32.
    Bf16,
    /// Weights and inputs of a product are rounded to float16 (11 bits of mantissa, up to 65,504); sums are float32.
    F16,
}

/// A word that names no number type to compute in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of float32, bf16, f16")]
pub struct UnknownComputeDtype(String);

impl FromStr for ComputeDtype {
    type Err = UnknownComputeDtype;

    fn from_str(text: &str) -> Result<Self, UnknownComputeDtype> {
        match text {
            "float32" => Ok(ComputeDtype::Float32),
            "bf16" => Ok(ComputeDtype::Bf16),
            "f16" => Ok(ComputeDtype::F16),
            _ => Err(UnknownComputeDtype(text.to_owned())),
        }
    }
}

impl ComputeDtype {
    /// As torch and model_cfg.json name it.
    pub fn torch_name(self) -> &'static str {
        match self {
            ComputeDtype::Float32 => "torch.float32",
            ComputeDtype::Bf16 => "torch.bfloat16",
            ComputeDtype::F16 => "torch.float16",
        }
    }
}

/// How exactly a GPU multiplies float32 matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatmulPrecision {
    /// In float32.
    #[default]
    Float32,
    /// On tensor cores, with inputs rounded to TF32 (11 bits of mantissa): several times faster, and patterns are off
    /// by up to 1e-3.
    Tf32,
}

/// A word that names no precision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of float32, tf32")]
pub struct UnknownMatmulPrecision(String);

impl FromStr for MatmulPrecision {
    type Err = UnknownMatmulPrecision;

    fn from_str(text: &str) -> Result<Self, UnknownMatmulPrecision> {
        match text {
            "float32" => Ok(MatmulPrecision::Float32),
            "tf32" => Ok(MatmulPrecision::Tf32),
            _ => Err(UnknownMatmulPrecision(text.to_owned())),
        }
    }
}

impl MatmulPrecision {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            MatmulPrecision::Float32 => "float32",
            MatmulPrecision::Tf32 => "tf32",
        }
    }
}

/// How exactly a run computes. Decided where it is planned, so that every worker computes it alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Numerics {
    /// The number type of products.
    pub compute_dtype: ComputeDtype,
    /// How products of float32 are carried out on a GPU.
    pub matmul_precision: MatmulPrecision,
}

/// What one run keeps of each prompt, and how exactly.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Capture {
    /// Which layers.
    pub layers: Layers,
    /// As which arrays.
    pub layout: ArrayLayout,
    /// In which number type it is stored.
    pub dtype: Dtype,
    /// How it is computed.
    #[serde(default)]
    pub numerics: Numerics,
}

impl Default for Capture {
    fn default() -> Self {
        Capture {
            layers: Layers::All,
            layout: ArrayLayout::PerLayer,
            dtype: Dtype::Float32,
            numerics: Numerics::default(),
        }
    }
}
