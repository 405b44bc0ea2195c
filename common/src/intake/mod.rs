//! The planning half of a run, the same for `worker run` and `dispatcher enqueue`: from a prompt file
//! and a model's name to jobs, longest first.
//!
//! Reads config and tokenizer, never weights; looks at what is committed and leaves it out.

mod options;
mod place;

use std::{collections::HashSet, path::PathBuf, sync::Arc};

pub use options::{IntakeOptions, IntakeOptionsError};
pub use place::{Place, PlaceError};

use crate::{
    capture::{ArrayLayout, Capture, Dtype, Numerics},
    job::{Failure, Job, ModelPin, ModelShape, RunId},
    model::{
        family::{self, SpecError},
        hub::HubOptions,
        locate::{LocateError, LocatedModel, Progress, locate_config},
        reference::ModelRef,
        spec::ModelSpec,
    },
    plan::{Batch, PatternShape, PlanLimits, plan},
    prompt::{PromptHash, PromptSet},
    selection::{Selection, SelectionError},
    spool::{SpoolError, SpoolOptions},
    store::{CacheCheck, StoreError, layout::SaveLayout},
    tokenize::{
        BosFacts, OnTooLong, PrependBos, PromptTokenizer, TokenizeOptions, TokenizeReport, TokenizedSet,
        TokenizerError,
    },
};

/// What a run wants of every model.
#[derive(Clone, Debug)]
pub struct Request {
    /// The run.
    pub run: RunId,
    /// The data directory, absolute.
    pub save_path: PathBuf,
    /// Where models come from.
    pub hub: HubOptions,
    /// Which layers.
    pub selection: Selection,
    /// As which arrays.
    pub layout: ArrayLayout,
    /// In which number type.
    pub dtype: Dtype,
    /// How exactly it is computed.
    pub numerics: Numerics,
    /// Compute again what is committed.
    pub force: bool,
    /// Whether the model reads BOS first.
    pub prepend_bos: PrependBos,
    /// What becomes of a prompt longer than the model's context.
    pub on_too_long: OnTooLong,
    /// How large a batch may be.
    pub limits: PlanLimits,
}

/// Why a model's part of a run could not be planned.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum IntakeError {
    #[error(transparent)]
    Locate(#[from] LocateError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Selection(#[from] SelectionError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// A model whose config and tokenizer are read: enough to plan for it, not to run it.
#[derive(Debug)]
pub struct KnownModel {
    /// Where it is.
    pub located: LocatedModel,
    /// What it is.
    pub spec: ModelSpec,
    /// What is kept of it.
    pub capture: Capture,
    tokenizer: Arc<PromptTokenizer>,
}

impl KnownModel {
    /// Finds `model` and reads its config and tokenizer.
    pub fn find(
        request: &Request,
        model: &ModelRef,
        progress: &mut Progress<'_>,
    ) -> Result<Self, IntakeError> {
        let located = locate_config(model, &request.hub, progress)?;
        let spec = family::read_spec(&located.dir.join("config.json"))?;
        let layers = request.selection.resolve(located.name.as_str(), spec.n_layers())?;
        let capture =
            Capture { layers, layout: request.layout, dtype: request.dtype, numerics: request.numerics };
        let tokenizer = PromptTokenizer::from_dir(
            &located.dir,
            TokenizeOptions {
                prepend_bos: request.prepend_bos,
                family_prepends: spec.default_prepend_bos(),
                n_ctx: spec.n_ctx,
                d_vocab: Some(spec.d_vocab),
                on_too_long: request.on_too_long,
            },
        )?;
        Ok(KnownModel { located, spec, capture, tokenizer: Arc::new(tokenizer) })
    }

    /// How many patterns it makes of a prompt.
    pub fn shape(&self) -> ModelShape {
        ModelShape { n_layers: self.spec.n_layers(), n_heads: self.spec.n_heads }
    }

    /// What the user should know of its tokenizer, in a sentence.
    pub fn warning(&self) -> Option<String> {
        self.tokenizer.warning()
    }

    /// What model_cfg.json says of BOS, and whether it is prepended in this run.
    pub fn bos(&self) -> (&BosFacts, bool) {
        (self.tokenizer.bos(), self.tokenizer.options().wants_bos())
    }

    /// Leaves out what is committed and what `published` says is on its way, tokenizes the rest and cuts it into
    /// batches. `progress` is told how many prompts were tokenized.
    pub fn plan(
        &self,
        request: &Request,
        prompts: Arc<PromptSet>,
        published: &HashSet<PromptHash>,
        spool: SpoolOptions,
        progress: impl FnMut(usize),
    ) -> Result<Planned, IntakeError> {
        let total = prompts.len();
        let mut wanted: Vec<usize> = if request.force {
            (0..total).collect()
        } else {
            let layout = SaveLayout::new(&request.save_path).model(&self.located.name);
            let check = CacheCheck::new(layout, &self.capture, self.spec.n_layers());
            let hashes: Vec<_> = prompts.hashes().cloned().collect();
            let cached = check.check(&hashes)?;
            (0..total).filter(|&at| !cached[at]).collect()
        };
        let cached = total - wanted.len();
        if !published.is_empty() {
            let under_way: Vec<_> = prompts.hashes().map(|hash| published.contains(hash)).collect();
            wanted.retain(|&at| !under_way[at]);
        }
        let published = total - cached - wanted.len();
        let set = TokenizedSet::new(Arc::clone(&self.tokenizer), prompts, &wanted, spool, progress)?;
        let n_layers = self.capture.layers.indices(self.spec.n_layers()).len();
        let shape = PatternShape { n_layers, n_heads: self.spec.n_heads };
        let batches = plan(&set.items(), shape, request.limits);
        Ok(Planned {
            prompts: total,
            cached,
            published,
            template: JobTemplate {
                run: request.run.clone(),
                model: self.located.pin(),
                shape: self.shape(),
                capture: self.capture.clone(),
                save_path: request.save_path.clone(),
                force: request.force,
            },
            set,
            batches,
        })
    }
}

/// A model's part of a run, ready to be published batch by batch.
#[derive(Debug)]
pub struct Planned {
    /// Prompts the input gave.
    pub prompts: usize,
    /// Prompts committed already.
    pub cached: usize,
    /// Prompts left out because they are on their way.
    pub published: usize,
    set: TokenizedSet,
    batches: Vec<Batch>,
    template: JobTemplate,
}

#[derive(Clone, Debug)]
struct JobTemplate {
    run: RunId,
    model: ModelPin,
    shape: ModelShape,
    capture: Capture,
    save_path: PathBuf,
    force: bool,
}

impl Planned {
    /// Prompts that are to be computed.
    pub fn todo(&self) -> usize {
        self.set.report.prompts
    }

    /// What tokenizing met.
    pub fn report(&self) -> &TokenizeReport {
        &self.set.report
    }

    /// Prompts that could not be tokenized.
    pub fn failures(&self) -> impl Iterator<Item = Failure> {
        self.set.failures.iter().cloned().map(Failure::from)
    }

    /// The batches, in the order they are published.
    pub fn batches(&self) -> &[Batch] {
        &self.batches
    }

    /// The job of one batch; its prompts are read back from the spool only now.
    pub fn job(&self, batch: &Batch) -> Result<Job, SpoolError> {
        let JobTemplate { run, model, shape, capture, save_path, force } = self.template.clone();
        let prompts = self.set.job_prompts(&batch.members)?;
        Ok(Job::new(run, model, shape, capture, save_path, force, prompts))
    }
}
