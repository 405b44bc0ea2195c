//! The files that list others: models.jsonl, a model's prompts.jsonl, figures.jsonl, and the page.
//!
//! Every one is replaced whole, by a rename. An index is made from what is committed, never from what
//! a run remembers, so it is right after a killed run too.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde_json::{Map, Value};

use super::{
    Store,
    error::{Context, Op, StoreError},
    layout::{self, ModelLayout},
};
use crate::{capture::ArrayLayout, model::card::index_line, prompt::PromptHash};

/// How often an index is made again because somebody committed meanwhile.
const TRIES: usize = 5;

impl Store {
    /// The model's model_cfg.json, where there is one that can be read as an object.
    pub fn read_card(&self, model: &ModelLayout) -> Result<Option<Map<String, Value>>, StoreError> {
        let path = model.model_cfg();
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).on(Op::Read, &path),
        }
    }

    /// Writes what must be there before the first prompt: the model's card, the list of models, an
    /// empty list of figures, and the page.
    pub fn begin_model(
        &self,
        model: &ModelLayout,
        card: &Map<String, Value>,
        index_html: bool,
    ) -> Result<(), StoreError> {
        let text = serde_json::to_string_pretty(card).expect("a card is plain data");
        self.replace(&model.model_cfg(), text.as_bytes())?;
        let save = self.layout();
        if !save.figures_jsonl().exists() {
            self.replace(&save.figures_jsonl(), b"")?;
        }
        if index_html && !save.index_html().exists() {
            self.replace(&save.index_html(), PAGE.as_bytes())?;
        }
        self.index_models()
    }

    /// Brings the model's prompts.jsonl up to date with what is committed, in the order of the hashes.
    pub fn update_index(&self, model: &ModelLayout) -> Result<(), StoreError> {
        let mut before = BTreeMap::new();
        for _ in 0..TRIES {
            let lines = committed_lines(model)?;
            let mut text = String::new();
            for line in lines.values() {
                text.push_str(line);
                text.push('\n');
            }
            if !model.dir().exists() {
                return Ok(());
            }
            self.replace(&model.prompts_jsonl(), text.as_bytes())?;
            if lines.len() == before.len() {
                break;
            }
            before = lines;
        }
        Ok(())
    }

    fn index_models(&self) -> Result<(), StoreError> {
        let save = self.layout();
        let mut lines = BTreeMap::new();
        for entry in fs::read_dir(save.root()).on(Op::List, save.root())? {
            let name = entry.on(Op::List, save.root())?.file_name().to_string_lossy().into_owned();
            let Ok(name) = layout::ModelName::try_from(name) else { continue };
            if let Some(card) = self.read_card(&save.model(&name))? {
                let line = index_line(&card, &name);
                lines.insert(name, serde_json::to_string(&line).expect("a card is plain data"));
            }
        }
        let text: String = lines.into_values().flat_map(|line| [line, "\n".to_owned()]).collect();
        self.replace(&save.models_jsonl(), text.as_bytes())
    }
}

/// prompt.json of every committed prompt, by hash.
fn committed_lines(model: &ModelLayout) -> Result<BTreeMap<PromptHash, String>, StoreError> {
    let prompts = model.prompts();
    let entries = match fs::read_dir(&prompts) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error).on(Op::List, &prompts),
    };
    let mut lines = BTreeMap::new();
    for entry in entries {
        let name = entry.on(Op::List, &prompts)?.file_name().to_string_lossy().into_owned();
        let Ok(hash) = PromptHash::try_from(name) else { continue };
        let arrays = [ArrayLayout::PerLayer, ArrayLayout::Stacked];
        if !arrays.iter().any(|&arrays| is_file(&model.activations(&hash, arrays))) {
            continue;
        }
        if let Ok(text) = fs::read_to_string(model.prompt_json(&hash)) {
            lines.insert(hash, text);
        }
    }
    Ok(lines)
}

fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() > 0)
}

/// The page.
const PAGE: &str = "<!doctype html><title>lenspool</title><p>See models.jsonl and prompts.jsonl.</p>\n";
