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
mod value;

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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models")
    }

    /// A fixture's configuration with some keys changed or, where null is given, taken out.
    fn edited(name: &str, edits: Value) -> Map<String, Value> {
        let text = std::fs::read_to_string(fixtures().join(name).join("config.json")).expect("a fixture");
        let mut object: Map<String, Value> = serde_json::from_str(&text).expect("JSON");
        for (key, value) in edits.as_object().expect("an object") {
            match value.as_str() {
                Some("<absent>") => drop(object.remove(key)),
                _ => drop(object.insert(key.clone(), value.clone())),
            }
        }
        object
    }

    fn refused(name: &str, edits: Value) -> String {
        of_config(Path::new("config.json"), edited(name, edits)).expect_err("must be refused").to_string()
    }

    #[test]
    fn what_is_not_supported_is_refused_in_one_sentence_that_names_it() {
        let table = [
            (
                refused("gpt2-tiny", json!({"model_type": "mamba"})),
                "config.json: `model_type` is \"mamba\", which is not supported; supported are gpt2, gpt_neo, gptj, \
                 gpt_neox, opt, bloom, llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, phi, phi3, olmo2, \
                 stablelm",
            ),
            (
                refused("gpt2-tiny", json!({"use_flux_capacitor": true})),
                "config.json: unknown key `use_flux_capacitor` = true; it may change what the model computes, so it \
                 is not ignored. GPT-2 reads none of that name; remove the key if it has no effect",
            ),
            (
                refused("gpt2-tiny", json!({"quantization_config": {"bits": 4}})),
                "config.json: `quantization_config` is {\"bits\":4}, which is not supported for GPT-2; supported: \
                 leaving it out",
            ),
            (
                refused("gpt2-tiny", json!({"add_cross_attention": true})),
                "config.json: `add_cross_attention` is true, which is not supported for GPT-2; supported: false",
            ),
            (
                refused("gpt2-tiny", json!({"activation_function": "mish"})),
                "config.json: `activation_function` is \"mish\", which is not supported for GPT-2; supported: gelu, \
                 gelu_new, gelu_fast, gelu_pytorch_tanh, relu, silu, swish",
            ),
            (
                refused("gpt2-tiny", json!({"n_embd": "wide"})),
                "config.json: `n_embd` is \"wide\", which is not supported for GPT-2; supported: a whole number, not \
                 negative",
            ),
            (
                refused("gpt2-tiny", json!({"n_layer": null})),
                "config.json: `n_layer` is null, which is not supported for GPT-2; supported: a whole number, not \
                 negative",
            ),
            (
                refused("gpt2-tiny", json!({"n_head": 7})),
                "config.json: `n_embd` is 30, which is not supported for GPT-2; supported: a multiple of `n_head` (7)",
            ),
            (
                refused("gpt2-tiny", json!({"num_hidden_layers": 4})),
                "config.json: `num_hidden_layers` is 4, which is not supported for GPT-2; supported: 3, which its \
                 other name `n_layer` says",
            ),
            (
                refused("llama-tiny", json!({"rope_scaling": {"rope_type": "mrope", "factor": 4.0}})),
                "config.json: `rope_scaling.rope_type` is \"mrope\", which is not supported for Llama; supported: \
                 default, linear, dynamic, yarn, longrope, llama3",
            ),
            (
                refused("llama-tiny", json!({"rope_parameters": {"rope_type": "default", "mscale": 1.0}})),
                "config.json: `rope_parameters.mscale` is 1.0, which is not supported for Llama; supported: leaving \
                 it out for rope type \"default\"",
            ),
            (
                refused("llama-tiny", json!({"rope_parameters": {"rope_type": "linear"}})),
                "config.json: `rope_parameters.factor` is null, which is not supported for Llama; supported: a number",
            ),
            (
                refused("llama-tiny", json!({"num_key_value_heads": 4})),
                "config.json: `num_attention_heads` is 6, which is not supported for Llama; supported: a multiple of \
                 `num_key_value_heads` (4)",
            ),
            (
                refused("llama-tiny", json!({"num_local_experts": 8})),
                "config.json: unknown key `num_local_experts` = 8; it may change what the model computes, so it is \
                 not ignored. Llama reads none of that name; remove the key if it has no effect",
            ),
            (
                refused("neox-hub", json!({"rope_theta": 500.0})),
                "config.json: `rope_theta` is 500.0, which is not supported for GPT-NeoX; supported: 10000, as \
                 NeoX's own key says",
            ),
            (
                refused("gpt-neo-tiny", json!({"attention_layers": ["global", "dilated"]})),
                "config.json: `attention_types` is \"dilated\", which is not supported for GPT-Neo; supported: \
                 global, local",
            ),
            (
                refused("qwen2-tiny", json!({"layer_types": ["full_attention", "chunked_attention"]})),
                "config.json: `layer_types` is \"chunked_attention\", which is not supported for Qwen 2; supported: \
                 sliding_attention, full_attention",
            ),
            (
                refused("qwen3-tiny", json!({"layer_types": ["full_attention", "sliding_attention"]})),
                "config.json: `sliding_window` is null, which is not supported for Qwen 3; supported: a number, as \
                 `layer_types` has sliding layers",
            ),
            (
                refused("gemma3-tiny", json!({"use_bidirectional_attention": true})),
                "config.json: `use_bidirectional_attention` is true, which is not supported for Gemma 3; supported: \
                 false",
            ),
        ];
        for (found, expected) in table {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn null_means_none_and_absent_means_the_default() {
        let window = |edits| {
            let spec = of_config(Path::new("config.json"), edited("mistral-tiny", edits)).expect("a spec");
            spec.layers[0].window
        };
        assert_eq!(window(json!({})), Some(7));
        assert_eq!(window(json!({"sliding_window": null})), None);
        assert_eq!(window(json!({"sliding_window": "<absent>"})), Some(4096));
    }

    #[test]
    fn a_file_that_is_no_configuration_is_named() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("config.json");
        let error = read_spec(&path).expect_err("absent").to_string();
        assert!(
            error.starts_with(&format!("cannot read the model configuration {}", path.display())),
            "{error}"
        );
        std::fs::write(&path, "[1, 2").expect("written");
        let error = read_spec(&path).expect_err("no JSON").to_string();
        assert!(error.starts_with(&format!("{} is not a model configuration: ", path.display())), "{error}");
    }

    #[test]
    fn every_fixture_has_a_spec() {
        for entry in std::fs::read_dir(fixtures()).expect("fixtures") {
            let path = entry.expect("an entry").path().join("config.json");
            if let Err(error) = read_spec(&path) {
                panic!("{error}");
            }
        }
    }
}
