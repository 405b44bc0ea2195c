//! One file a family: its HF configuration, the spec it makes of it, and its tensor names.
//!
//! Two families side by side differ only where the models differ. Adding one is a file here, its name in
//! [`Family`], a line in [`of_config`] and a fixture with goldens.

mod bloom;
mod config;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neo;
mod gptj;
mod llama;
mod mistral;
mod neox;
mod olmo2;
mod opt;
mod phi;
mod phi3;
mod qwen2;
mod qwen3;
mod rope;
mod stablelm;

use std::path::Path;

use serde_json::{Map, Value};

use self::config::Keys;
pub use self::config::SpecError;
use super::spec::{Family, ModelSpec};

/// Reads a checkpoint's config.json.
pub fn read_spec(config_json: &Path) -> Result<ModelSpec, SpecError> {
    let text = fs_err::read_to_string(config_json)
        .map_err(|error| SpecError::Read { path: config_json.to_owned(), reason: error.to_string() })?;
    let object: Map<String, Value> = serde_json::from_str(&text).map_err(|error| SpecError::NotAnObject {
        path: config_json.to_owned(),
        reason: error.to_string(),
    })?;
    of_config(config_json, object)
}

/// The spec of a parsed config.json; `path` is for messages.
pub fn of_config(path: &Path, object: Map<String, Value>) -> Result<ModelSpec, SpecError> {
    let model_type = object.get("model_type").cloned().unwrap_or(Value::Null);
    let family = Family::ALL.into_iter().find(|family| model_type == family.model_type());
    let family = family.ok_or_else(|| SpecError::UnknownFamily {
        path: path.to_owned(),
        found: model_type.to_string(),
        supported: Family::ALL.map(Family::model_type).join(", "),
    })?;
    let keys = &mut Keys::new(path, family, object);
    match family {
        Family::Gpt2 => gpt2::spec(keys),
        Family::GptNeo => gpt_neo::spec(keys),
        Family::GptJ => gptj::spec(keys),
        Family::GptNeoX => neox::spec(keys),
        Family::Opt => opt::spec(keys),
        Family::Bloom => bloom::spec(keys),
        Family::Llama => llama::spec(keys),
        Family::Mistral => mistral::spec(keys),
        Family::Qwen2 => qwen2::spec(keys),
        Family::Qwen3 => qwen3::spec(keys),
        Family::Gemma => gemma::spec(keys),
        Family::Gemma2 => gemma2::spec(keys),
        Family::Gemma3 => gemma3::spec(keys),
        Family::Phi => phi::spec(keys),
        Family::Phi3 => phi3::spec(keys),
        Family::Olmo2 => olmo2::spec(keys),
        Family::StableLm => stablelm::spec(keys),
    }
}
