use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;
use crate::model::{family, hub::HubOptions, locate::locate_config, reference::ModelRef};

fn fixtures() -> Vec<PathBuf> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models");
    let mut found: Vec<PathBuf> = fs::read_dir(models).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.join("config.json").is_file());
    found.sort();
    found
}

fn hub() -> HubOptions {
    HubOptions { offline: true, ..HubOptions::from_vars(&|_| None) }
}

fn card_of(dir: &Path) -> Map<String, Value> {
    let reference = ModelRef::parse(dir.to_str().unwrap(), None).unwrap();
    let model = locate_config(&reference, &hub(), &mut |_| {}).unwrap();
    let spec = family::read_spec(&dir.join("config.json")).unwrap();
    let bos = BosFacts { token: "<s>".to_owned(), default_prepend_bos: true, tokenizer_prepends_bos: false };
    let facts = CardFacts {
        model: &model,
        spec: &spec,
        bos: &bos,
        prepend_bos: PrependBos::Auto,
        device: "cpu",
        numerics: Numerics::default(),
    };
    facts.card()
}

fn fixture(name: &str) -> Map<String, Value> {
    card_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models").join(name))
}

#[test]
fn every_fixture_has_a_card_with_the_keys_of_the_contract() {
    let mut seen = 0;
    for dir in fixtures() {
        if family::read_spec(&dir.join("config.json")).is_err() {
            continue; // refused on purpose, as the families' tests say
        }
        let card = card_of(&dir);
        for key in [
            "model_name",
            "n_layers",
            "n_heads",
            "d_model",
            "d_head",
            "n_ctx",
            "d_vocab",
            "act_fn",
            "eps",
            "dtype",
            "tokenizer_name",
            "default_prepend_bos",
            "tokenizer_prepends_bos",
            "original_architecture",
            "positional_embedding_type",
            "normalization_type",
            "device",
            "repo",
            "commit",
        ] {
            assert!(!card[key].is_null(), "{key} of {}", dir.display());
        }
        assert_eq!(card["model_name"], dir.file_name().unwrap().to_str().unwrap());
        assert_eq!(card["dtype"], "torch.float32");
        assert_eq!(card["matmul_precision"], "float32");
        assert!(!card.contains_key("sanitized_name"), "that is the index's");
        seen += 1;
    }
    assert!(seen > 30, "only {seen} fixtures were read");
}

#[test]
fn a_card_speaks_transformerlens() {
    let gpt2 = fixture("gpt2-tiny");
    assert_eq!(gpt2["original_architecture"], "GPT2LMHeadModel");
    assert_eq!(gpt2["act_fn"], "gelu_new");
    assert_eq!(
        (&gpt2["normalization_type"], &gpt2["positional_embedding_type"]),
        (&json!("LNPre"), &json!("standard"))
    );
    assert_eq!(
        (&gpt2["n_key_value_heads"], &gpt2["rotary_dim"], &gpt2["window_size"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!(gpt2["parallel_attn_mlp"], false);

    let neox = fixture("neox-tiny");
    assert_eq!(
        (&neox["positional_embedding_type"], &neox["parallel_attn_mlp"]),
        (&json!("rotary"), &json!(true))
    );
    assert_eq!(neox["rotary_adjacent_pairs"], false);
    assert!(neox["rotary_dim"].as_u64().unwrap() <= neox["d_head"].as_u64().unwrap());
    assert_eq!(fixture("neox-sequential")["parallel_attn_mlp"], false);
    assert_eq!(fixture("gptj-tiny")["rotary_adjacent_pairs"], true);
    assert_eq!(fixture("bloom-tiny")["positional_embedding_type"], "alibi");

    let llama = fixture("llama-tiny");
    assert_eq!(llama["normalization_type"], "RMSPre");
    assert!(llama["n_key_value_heads"].as_u64().unwrap() < llama["n_heads"].as_u64().unwrap());

    let neo = fixture("gpt-neo-tiny");
    assert_eq!(neo["use_local_attn"], true);
    assert_eq!(neo["attn_types"].as_array().unwrap().len() as u64, neo["n_layers"].as_u64().unwrap());
    assert_eq!((&neo["attn_types"][0], &neo["attn_types"][1]), (&json!("global"), &json!("local")));
}

#[test]
fn the_tokenizer_is_named_as_transformerlens_names_the_model() {
    assert_eq!(tokenizer_name("openai-community/gpt2"), "gpt2");
    assert_eq!(tokenizer_name("distilbert/distilgpt2"), "distilgpt2");
    assert_eq!(tokenizer_name("EleutherAI/pythia-70m"), "EleutherAI/pythia-70m");
    assert_eq!(tokenizer_name("EleutherAI/gpt-j-6B"), "EleutherAI/gpt-j-6B");
    assert_eq!(tokenizer_name("/models/pythia-70m"), "/models/pythia-70m");
}

#[test]
fn the_index_line_is_the_card_with_its_directory() {
    let card = fixture("gpt2-tiny");
    let line = index_line(&card, &ModelName::sanitize("gpt2-tiny"));
    assert_eq!(line["sanitized_name"], "gpt2-tiny");
    assert_eq!(line.len(), card.len() + 1);
    assert!(line.iter().zip(&card).all(|(a, b)| a == b), "keys keep their order");
}

#[test]
fn cards_of_different_models_are_told_apart() {
    let (one, other) = (fixture("gpt2-tiny"), fixture("llama-tiny"));
    assert_eq!(differences(&one, &one), []);
    let found: Vec<&str> = differences(&one, &other).iter().map(|difference| difference.key).collect();
    assert!(found.starts_with(&["commit", "original_architecture"]), "{found:?}");

    // A card of pattern_lens's own has no commit, runs elsewhere, and is the same model all the same.
    let mut upstream = one.clone();
    for ours in ["repo", "commit", "prepend_bos", "bos_token", "lenspool_version"] {
        upstream.remove(ours);
    }
    upstream.insert("device".to_owned(), json!("cuda"));
    assert_eq!(differences(&upstream, &one), []);

    let mut without_bos = one.clone();
    without_bos.insert("default_prepend_bos".to_owned(), json!(false));
    let said: Vec<String> = differences(&one, &without_bos).iter().map(Difference::to_string).collect();
    assert_eq!(said, ["default_prepend_bos is true there and false here"]);
}
