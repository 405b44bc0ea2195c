//! One file a family: its HF configuration, the spec it makes of it, and its tensor names.
//!
//! Two families side by side differ only where the models differ. Adding one is a file here, its name in
//! [`Family`], a line in [`of_config`] and a fixture with goldens.

mod config;
mod gpt2;
mod neox;
mod rope;

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
        Family::GptNeoX => neox::spec(keys),
    }
}
