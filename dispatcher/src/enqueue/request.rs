//! Whether the same was asked for before.

use common::{
    intake::{KnownModel, Request},
    job::RunId,
    prompt::PromptSet,
    store::{
        layout::ModelLayout,
        runs::{self, RunRecord},
    },
};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{Error, publish::is_published_now};

/// An earlier enqueue of the same request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Earlier {
    /// There was none.
    None,
    /// It did not come to its end.
    Interrupted(Box<RunRecord>),
    /// It published everything.
    Complete(RunId),
}

/// A digest of everything that decides which prompts are computed how, and where they go.
pub fn digest(request: &Request, known: &KnownModel, namespace: &str, prompts: &PromptSet) -> String {
    let asked = json!({
        "namespace": namespace,
        "model": known.located.pin(),
        "capture": known.capture,
        "save_path": request.save_path,
        "force": request.force,
        "prepend_bos": format!("{:?}", request.prepend_bos),
        "on_too_long": format!("{:?}", request.on_too_long),
    });
    let mut digest = Sha256::new();
    digest.update(asked.to_string().as_bytes());
    for hash in prompts.hashes() {
        digest.update([0]);
        digest.update(hash.as_str().as_bytes());
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The last enqueue of the same request. One that is going on now is an error.
pub fn earlier(model: &ModelLayout, digest: &str) -> Result<Earlier, Error> {
    let mut earlier = Earlier::None;
    for record in runs::list_runs(model)? {
        if record.card.request != digest || record.cancelled {
            continue;
        }
        if record.complete {
            earlier = Earlier::Complete(record.card.run);
            continue;
        }
        if is_published_now(model, &record) {
            return Err(Error::Request(format!(
                "run {} asks for the same and is being enqueued now, by {}; wait for it, or stop it first",
                record.card.run, record.card.writer
            )));
        }
        earlier = Earlier::Interrupted(Box::new(record));
    }
    Ok(earlier)
}
