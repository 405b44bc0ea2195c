//! Our tokens against transformers', on every tokenizer among the parity fixtures.

use std::{collections::BTreeMap, fs, path::Path};

use common::tokenize::{OnTooLong, PrependBos, PromptTokenizer, TokenizeOptions};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    prepend_bos: bool,
    prompts: Vec<GoldenPrompt>,
}

#[derive(Deserialize)]
struct GoldenPrompt {
    text: String,
    tokens: Vec<String>,
    input_ids: Vec<u32>,
}

/// The goldens by model name.
fn goldens() -> BTreeMap<String, Golden> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/goldens");
    let mut goldens = BTreeMap::new();
    for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            goldens.insert(name, serde_json::from_slice(&fs::read(&path).unwrap()).unwrap());
        }
    }
    goldens
}

fn tokenizer(name: &str, prepends: bool, prepend_bos: PrependBos) -> PromptTokenizer {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models").join(name);
    let options = TokenizeOptions {
        prepend_bos,
        family_prepends: prepends,
        n_ctx: 4096,
        d_vocab: None,
        on_too_long: OnTooLong::Fail,
    };
    PromptTokenizer::from_dir(&dir, options).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn tokens_and_ids_are_those_of_transformers() {
    let goldens = goldens();
    assert!(goldens.len() >= 2, "no goldens found");
    for (name, golden) in goldens {
        let tokenizer = tokenizer(&name, golden.prepend_bos, PrependBos::Auto);
        assert_eq!(tokenizer.bos().default_prepend_bos, golden.prepend_bos);
        for prompt in golden.prompts {
            let tokens = tokenizer.tokens(&prompt.text).unwrap();
            assert_eq!(tokens.strings, prompt.tokens, "{name}: tokens of {:?}", prompt.text);
            assert_eq!(tokens.ids, prompt.input_ids, "{name}: ids of {:?}", prompt.text);
        }
    }
}

#[test]
fn without_bos_the_ids_are_those_of_the_tokens() {
    for (name, golden) in goldens() {
        let tokenizer = tokenizer(&name, golden.prepend_bos, PrependBos::Never);
        for prompt in golden.prompts {
            let tokens = tokenizer.tokens(&prompt.text).unwrap();
            let before = prompt.input_ids.len() - prompt.tokens.len();
            assert_eq!(tokens.strings, prompt.tokens, "{name}");
            assert_eq!(tokens.ids, prompt.input_ids[before..], "{name}: ids of {:?}", prompt.text);
        }
    }
}
