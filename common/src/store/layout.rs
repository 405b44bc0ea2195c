//! Where every file of a data directory lies, computed here and nowhere else.
//!
//! ```text
//! {save_path}/
//!   index.html  models.jsonl  figures.jsonl
//!   {model}/model_cfg.json
//!   {model}/prompts.jsonl
//!   {model}/prompts/{hash}/prompt.json
//!   {model}/prompts/{hash}/activations.npz
//!   {model}/prompts/{hash}/activations-blocks.-.attn.hook_pattern.npy   (stacked runs)
//!   .lenspool/.intents/{writer}.jsonl       where a writer may have left temporary files
//!   .lenspool/{model}/journal/{writer}.jsonl
//!   .lenspool/{model}/runs/{run}.jsonl       what was enqueued; beside it .cancelled and .indexed
//!   .lenspool/{model}/partial               some npz here may lack layers: look inside
//!   .lenspool/{model}/float16               some npz here may hold `<f2`: look inside
//! ```
//!
//! Every path is made of the save path, a [`ModelName`] and a [`PromptHash`]. Both are one safe path
//! component by construction, so nothing that comes in a message leads out of the save path.

use std::path::{Path, PathBuf};

use super::writer::component;
pub use crate::model::reference::ModelName;
use crate::{capture::ArrayLayout, job::RunId, prompt::PromptHash};

/// The array file of a prompt, a layer an entry.
pub const NPZ: &str = "activations.npz";
/// The array file of a prompt in a stacked run.
pub const STACKED: &str = "activations-blocks.-.attn.hook_pattern.npy";
/// The commit mark of a prompt.
pub const PROMPT_JSON: &str = "prompt.json";
/// lenspool's own directory in a save path.
pub const BOOKKEEPING: &str = ".lenspool";

/// The paths of one data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveLayout {
    root: PathBuf,
}

impl SaveLayout {
    /// The paths under `save_path`.
    pub fn new(save_path: impl Into<PathBuf>) -> Self {
        SaveLayout { root: save_path.into() }
    }

    /// The save path itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The paths of one model.
    pub fn model(&self, name: &ModelName) -> ModelLayout {
        ModelLayout { root: self.root.clone(), name: name.clone() }
    }

    /// One model configuration a line.
    pub fn models_jsonl(&self) -> PathBuf {
        self.root.join("models.jsonl")
    }

    /// The figure functions' descriptions, filled by pattern_lens's figures step.
    pub fn figures_jsonl(&self) -> PathBuf {
        self.root.join("figures.jsonl")
    }

    /// The viewer page.
    pub fn index_html(&self) -> PathBuf {
        self.root.join("index.html")
    }

    /// lenspool's own directory.
    pub fn bookkeeping(&self) -> PathBuf {
        self.root.join(BOOKKEEPING)
    }

    /// Where writers say which prompt directories they are about to write in. Its name starts with a
    /// dot because model names, which lie beside it, cannot.
    pub fn intents(&self) -> PathBuf {
        self.bookkeeping().join(".intents")
    }
}

/// The paths of one model in a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelLayout {
    root: PathBuf,
    name: ModelName,
}

impl ModelLayout {
    /// The model's directory name.
    pub fn name(&self) -> &ModelName {
        &self.name
    }

    /// The data directory it lies in.
    pub fn save(&self) -> SaveLayout {
        SaveLayout { root: self.root.clone() }
    }

    /// The model's directory.
    pub fn dir(&self) -> PathBuf {
        self.root.join(self.name.as_str())
    }

    /// The model's configuration in TransformerLens's terms.
    pub fn model_cfg(&self) -> PathBuf {
        self.dir().join("model_cfg.json")
    }

    /// One prompt.json a line.
    pub fn prompts_jsonl(&self) -> PathBuf {
        self.dir().join("prompts.jsonl")
    }

    /// The directory of all prompt directories.
    pub fn prompts(&self) -> PathBuf {
        self.dir().join("prompts")
    }

    /// The directory of one prompt.
    pub fn prompt(&self, hash: &PromptHash) -> PathBuf {
        self.prompts().join(hash.as_str())
    }

    /// The commit mark of one prompt.
    pub fn prompt_json(&self, hash: &PromptHash) -> PathBuf {
        self.prompt(hash).join(PROMPT_JSON)
    }

    /// The file of one prompt's arrays.
    pub fn activations(&self, hash: &PromptHash, layout: ArrayLayout) -> PathBuf {
        self.prompt(hash).join(activations_name(layout))
    }

    /// The model's part of lenspool's own directory.
    pub fn bookkeeping(&self) -> PathBuf {
        self.root.join(BOOKKEEPING).join(self.name.as_str())
    }

    /// What every writer did, one file a writer.
    pub fn journal(&self) -> PathBuf {
        self.bookkeeping().join("journal")
    }

    /// What was enqueued, one file a run.
    pub fn runs(&self) -> PathBuf {
        self.bookkeeping().join("runs")
    }

    /// What was enqueued for this model in `run`.
    pub fn run(&self, run: &RunId) -> PathBuf {
        self.run_file(run, "jsonl")
    }

    /// Exists once `run` was called off.
    pub fn run_cancelled(&self, run: &RunId) -> PathBuf {
        self.run_file(run, "cancelled")
    }

    /// Exists once the index holds all that `run` computed.
    pub fn run_indexed(&self, run: &RunId) -> PathBuf {
        self.run_file(run, "indexed")
    }

    fn run_file(&self, run: &RunId, extension: &str) -> PathBuf {
        // A run's name may come in a message.
        self.runs().join(format!("{}.{extension}", component(&run.0)))
    }

    /// Exists once an npz with fewer layers than the model has may have been written.
    pub fn partial_mark(&self) -> PathBuf {
        self.bookkeeping().join("partial")
    }

    /// Exists once an npz with half-precision arrays may have been written.
    pub fn float16_mark(&self) -> PathBuf {
        self.bookkeeping().join("float16")
    }
}

/// The name of the file a capture's arrays are stored in.
pub fn activations_name(layout: ArrayLayout) -> &'static str {
    match layout {
        ArrayLayout::PerLayer => NPZ,
        ArrayLayout::Stacked => STACKED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_that_of_pattern_lens() {
        let save = SaveLayout::new("attn_data");
        let model = save.model(&ModelName::try_from("gpt2").unwrap());
        let hash = PromptHash::of("test prompt");
        let dir = "attn_data/gpt2/prompts/C7p4x9-iwFxWSKCb8kbLfQ";
        for (path, expected) in [
            (save.index_html(), "attn_data/index.html".to_owned()),
            (save.models_jsonl(), "attn_data/models.jsonl".to_owned()),
            (save.figures_jsonl(), "attn_data/figures.jsonl".to_owned()),
            (model.model_cfg(), "attn_data/gpt2/model_cfg.json".to_owned()),
            (model.prompts_jsonl(), "attn_data/gpt2/prompts.jsonl".to_owned()),
            (model.prompt_json(&hash), format!("{dir}/prompt.json")),
            (model.activations(&hash, ArrayLayout::PerLayer), format!("{dir}/activations.npz")),
            (
                model.activations(&hash, ArrayLayout::Stacked),
                format!("{dir}/activations-blocks.-.attn.hook_pattern.npy"),
            ),
            (model.journal(), "attn_data/.lenspool/gpt2/journal".to_owned()),
        ] {
            assert_eq!(path, Path::new(&expected));
        }
    }

    #[test]
    fn a_model_name_is_one_safe_path_component() {
        let long = "x".repeat(201);
        for bad in [
            "",
            ".",
            "..",
            "../up",
            "a/b",
            "/abs",
            "a\0b",
            "é",
            ".lenspool",
            ".intents",
            "models.jsonl",
            &long,
        ] {
            assert!(ModelName::try_from(bad).is_err(), "{bad:?} was accepted");
            let json = serde_json::to_string(bad).unwrap();
            assert!(serde_json::from_str::<ModelName>(&json).is_err(), "{bad:?} came in by a message");
        }
        for good in ["gpt2", "pythia-70m", "Qwen-Qwen2.5-0.5B", "tiny-stories-1M", "a_b", "-x"] {
            assert_eq!(ModelName::try_from(good).unwrap().as_str(), good);
        }
    }
}
