//! The files of a data directory that are not one prompt's: model_cfg.json, the indexes, the page.

use std::path::PathBuf;

use common::{
    intake::{KnownModel, Request},
    model::card::{CardFacts, differences},
    store::{
        Store, StoreError,
        layout::{ModelLayout, SaveLayout},
    },
};

use super::model::ModelError;
use crate::model::device::DeviceChoice;

/// One model's place in a data directory.
pub(super) struct Files {
    store: Store,
    layout: ModelLayout,
    index_html: bool,
}

impl Files {
    /// The place of `known`. Writes nothing yet.
    pub(super) fn open(request: &Request, known: &KnownModel, index_html: bool) -> Self {
        let store = Store::new(&request.save_path, &request.run);
        let layout = SaveLayout::new(&request.save_path).model(&known.located.name);
        Files { store, layout, index_html }
    }

    /// The prompt file that is read where none was given.
    pub(super) fn own_prompts(&self) -> PathBuf {
        self.layout.prompts_jsonl()
    }

    /// Where the model's files are.
    pub(super) fn directory(&self) -> PathBuf {
        self.layout.dir()
    }

    /// Writes what must be there from the start. Refuses a directory that holds another model's patterns.
    pub(super) fn begin(
        &self,
        request: &Request,
        known: &KnownModel,
        device: DeviceChoice,
    ) -> Result<(), ModelError> {
        let (bos, _) = known.bos();
        let device = if matches!(device.resolve(), DeviceChoice::Cuda(_)) { "cuda" } else { "cpu" };
        let facts = CardFacts {
            model: &known.located,
            spec: &known.spec,
            bos,
            prepend_bos: request.prepend_bos,
            device,
        };
        let card = facts.card();
        if let Some(there) = self.store.read_card(&self.layout)? {
            let differences = differences(&there, &card);
            if !differences.is_empty() {
                let told = differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                return Err(ModelError::OtherModel { directory: self.layout.dir(), told });
            }
        }
        self.store.begin_model(&self.layout, &card, self.index_html)?;
        Ok(())
    }

    /// Brings the indexes up to date with what is committed.
    pub(super) fn index(&self) -> Result<(), StoreError> {
        self.store.update_index(&self.layout)
    }
}
