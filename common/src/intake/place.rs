//! One model's place in a data directory: model_cfg.json, the indexes, the page.

use std::path::PathBuf;

use super::{KnownModel, Request};
use crate::{
    model::card::{CardFacts, differences},
    store::{
        Store, StoreError,
        layout::{ModelLayout, SaveLayout},
    },
};

/// Why a model cannot have its place.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PlaceError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{} holds patterns of another model: {told}; use another --save-path", directory.display())]
    OtherModel { directory: PathBuf, told: String },
}

/// One model's place in a data directory.
#[derive(Debug)]
pub struct Place {
    store: Store,
    layout: ModelLayout,
    index_html: bool,
}

impl Place {
    /// The place of `known`. Writes nothing yet.
    pub fn open(request: &Request, known: &KnownModel, index_html: bool) -> Self {
        let store = Store::new(&request.save_path, &request.run);
        let layout = SaveLayout::new(&request.save_path).model(&known.located.name);
        Place { store, layout, index_html }
    }

    /// The prompt file that is read where none was given.
    pub fn own_prompts(&self) -> PathBuf {
        self.layout.prompts_jsonl()
    }

    /// Where the model's files are.
    pub fn directory(&self) -> PathBuf {
        self.layout.dir()
    }

    /// Writes what must be there from the start; `device` is the kind that computes, as torch names it.
    /// Refuses a directory that holds another model's patterns.
    pub fn begin(&self, request: &Request, known: &KnownModel, device: &str) -> Result<(), PlaceError> {
        let (bos, _) = known.bos();
        let facts = CardFacts {
            model: &known.located,
            spec: &known.spec,
            bos,
            prepend_bos: request.prepend_bos,
            device,
            numerics: request.numerics,
        };
        let card = facts.card();
        if let Some(there) = self.store.read_card(&self.layout)? {
            let differences = differences(&there, &card);
            if !differences.is_empty() {
                let told = differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                return Err(PlaceError::OtherModel { directory: self.layout.dir(), told });
            }
        }
        self.store.begin_model(&self.layout, &card, self.index_html)?;
        Ok(())
    }

    /// Where its files lie.
    pub fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    /// Brings the indexes up to date with what is committed.
    pub fn index(&self) -> Result<(), StoreError> {
        self.store.update_index(&self.layout)
    }
}
