use std::{fs, path::PathBuf, sync::Arc};

use serde_json::{Value, json};

use super::*;
use crate::{
    prompt::{PromptSet, Record},
    spool::SpoolOptions,
};

/// A fixture's tokenizer files, to be changed before they are written.
struct Files {
    tokenizer: Value,
    config: Value,
    map: Option<Value>,
    model: Option<Value>,
}

impl Files {
    fn of(name: &str) -> Self {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models").join(name);
        let read = |file: &str| serde_json::from_slice(&fs::read(dir.join(file)).unwrap()).unwrap();
        Files {
            tokenizer: read("tokenizer.json"),
            config: read("tokenizer_config.json"),
            map: None,
            model: None,
        }
    }

    /// GPT-2's kind with a configuration that names no special token.
    fn unnamed(config: Value) -> Self {
        Files { config, ..Files::of("gpt2-tiny") }
    }

    fn write(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("tokenizer.json", Some(&self.tokenizer)),
            ("tokenizer_config.json", Some(&self.config)),
            ("special_tokens_map.json", self.map.as_ref()),
            ("config.json", self.model.as_ref()),
        ];
        for (name, content) in files {
            if let Some(content) = content {
                fs::write(dir.path().join(name), serde_json::to_vec(content).unwrap()).unwrap();
            }
        }
        dir
    }

    fn load(&self, options: TokenizeOptions) -> Result<PromptTokenizer, TokenizerError> {
        PromptTokenizer::from_dir(self.write().path(), options)
    }

    fn always(&self) -> PromptTokenizer {
        self.load(TokenizeOptions { prepend_bos: PrependBos::Always, ..options() }).unwrap()
    }

    fn never(&self) -> PromptTokenizer {
        self.load(TokenizeOptions { prepend_bos: PrependBos::Never, ..options() }).unwrap()
    }
}

fn options() -> TokenizeOptions {
    TokenizeOptions {
        prepend_bos: PrependBos::Auto,
        family_prepends: true,
        n_ctx: 64,
        d_vocab: None,
        on_too_long: OnTooLong::Truncate,
    }
}

const END: &str = "<|endoftext|>";

#[test]
fn words_of_options_are_read_and_written() {
    for word in ["auto", "always", "never"] {
        assert_eq!(word.parse::<PrependBos>().unwrap().to_string(), word);
    }
    for word in ["truncate", "skip", "fail"] {
        assert_eq!(word.parse::<OnTooLong>().unwrap().to_string(), word);
    }
    assert_eq!(
        "yes".parse::<PrependBos>().unwrap_err().to_string(),
        "\"yes\" is none of auto, always, never"
    );
    assert_eq!(
        "Skip".parse::<OnTooLong>().unwrap_err().to_string(),
        "\"Skip\" is none of truncate, skip, fail"
    );
}

#[test]
fn bos_is_put_in_front_where_the_tokenizer_does_not() {
    let tokenizer = Files::of("gpt2-tiny").always();
    let bos = BosFacts { token: END.into(), default_prepend_bos: true, tokenizer_prepends_bos: false };
    assert_eq!((tokenizer.bos(), tokenizer.warning()), (&bos, None));
    let tokens = tokenizer.tokens("It was").unwrap();
    assert_eq!(tokens.strings, ["It", "Ġwas"]);
    assert_eq!((tokens.ids[0], tokens.ids.len()), (0, 3));

    let without = Files::of("gpt2-tiny").never();
    assert!(!without.bos().default_prepend_bos);
    assert_eq!(without.tokens("It was").unwrap().ids, tokens.ids[1..]);
}

#[test]
fn auto_is_what_the_family_does() {
    for (family_prepends, n) in [(true, 2), (false, 1)] {
        let options = TokenizeOptions { family_prepends, ..options() };
        let tokenizer = Files::of("gpt2-tiny").load(options).unwrap();
        assert_eq!(tokenizer.bos().default_prepend_bos, family_prepends);
        assert_eq!(tokenizer.tokens("It").unwrap().ids.len(), n);
    }
}

#[test]
fn special_tokens_in_a_text_are_special() {
    let tokenizer = Files::of("gpt2-tiny").always();
    let tokens = tokenizer.tokens(&format!("{END}It{END} was")).unwrap();
    assert_eq!(tokens.strings, [END, "It", END, "Ġwas"]);
    assert_eq!(tokens.ids.iter().filter(|&&id| id == 0).count(), 3, "BOS and both of the text's");
}

#[test]
fn a_tokenizer_that_adds_bos_is_left_to_it_or_freed_of_it() {
    for name in ["opt-tiny", "llama-tiny", "llama-3", "gemma-tiny"] {
        let with = Files::of(name).always();
        assert!(with.bos().tokenizer_prepends_bos, "{name}");
        let ids = with.tokens("It was").unwrap().ids;
        let without = Files::of(name).never();
        assert!(without.bos().tokenizer_prepends_bos && !without.bos().default_prepend_bos, "{name}");
        assert_eq!(without.tokens("It was").unwrap().ids, ids[1..], "{name}");
    }
}

#[test]
fn a_promise_to_add_bos_is_kept_without_a_post_processor() {
    let whole = Files::of("llama-tiny").always().tokens("It was").unwrap();
    for config in [
        json!({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "add_bos_token": true}),
        // TransformerLens asks for it where the class obeys.
        json!({"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "add_bos_token": false}),
        json!({"tokenizer_class": "Other", "bos_token": {"content": "<s>", "lstrip": false}, "add_bos_token": true}),
        json!({"tokenizer_class": "LlamaTokenizer"}),
    ] {
        let mut files = Files::of("llama-tiny");
        files.tokenizer["post_processor"] = Value::Null;
        files.config = config;
        let tokenizer = files.always();
        assert!(tokenizer.bos().tokenizer_prepends_bos, "{}", files.config);
        assert_eq!(tokenizer.tokens("It was").unwrap(), whole, "{}", files.config);
        assert_eq!(files.never().tokens("It was").unwrap().ids, whole.ids[1..], "{}", files.config);
    }
}

#[test]
fn a_template_adds_it_once_where_text_in_front_would_change_the_rest() {
    // Metaspace marks the first word only at the start of a text; behind BOS as text it would not.
    let mut files = Files::of("llama-tiny");
    files.tokenizer["normalizer"] = Value::Null;
    files.tokenizer["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    let tokens = files.always().tokens("It was").unwrap();
    assert_eq!(tokens.strings.concat(), "▁It▁was");
    // As text in front, the tokens are those the model reads, so that n stays n_tokens + 1.
    files.tokenizer["post_processor"] = Value::Null;
    let tokens = files.always().tokens("It was").unwrap();
    assert_eq!(tokens.strings.concat(), "It▁was");
    assert_eq!(tokens.ids.len(), tokens.strings.len() + 1);
}

#[test]
fn what_a_processor_adds_behind_stays_behind() {
    let mut files = Files::of("llama-tiny");
    files.tokenizer["post_processor"]["single"] = json!([
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ]);
    files.tokenizer["post_processor"]["special_tokens"]["</s>"] =
        json!({"id": "</s>", "ids": [2], "tokens": ["</s>"]});
    let long = "It was the best of times. ".repeat(20);
    for (tokenizer, first) in [(files.always(), 1), (files.never(), 0)] {
        for text in ["It", &long] {
            let tokens = tokenizer.tokens(text).unwrap();
            assert_eq!(tokens.ids.last(), Some(&2));
            assert_eq!(tokens.ids.len(), first + tokens.strings.len() + 1);
            assert_eq!(tokens.truncated_from.is_some(), tokens.ids.len() == 64);
        }
    }
}

#[test]
fn who_lacks_bos_lends_eos() {
    let tokenizer = Files::unnamed(json!({"bos_token": null, "eos_token": END})).always();
    assert_eq!(tokenizer.bos().token, END);
    assert_eq!(tokenizer.tokens("It").unwrap().ids[0], 0);
}

#[test]
fn a_class_names_what_the_files_leave_out() {
    for (config, model, token) in [
        (json!({"tokenizer_class": "GPT2TokenizerFast"}), None, END),
        (json!({"model_max_length": 1024}), Some(json!({"model_type": "gpt2"})), END),
        (json!({}), Some(json!({"model_type": "gpt_neox"})), END),
        (json!({"tokenizer_class": "Qwen2Tokenizer"}), None, END),
        (json!({"tokenizer_class": "GPT2Tokenizer", "bos_token": null, "eos_token": "It"}), None, "It"),
        // Not in this vocabulary, so nobody's.
        (json!({"tokenizer_class": "BloomTokenizer"}), None, END),
        (json!({"tokenizer_class": "PreTrainedTokenizerFast"}), Some(json!({"model_type": "bloom"})), END),
    ] {
        let files = Files { model, ..Files::unnamed(config) };
        assert_eq!(files.never().bos().token, token, "{} {:?}", files.config, files.model);
    }
    let files = Files { config: json!({"tokenizer_class": "BloomTokenizer"}), ..Files::of("bloom-tiny") };
    assert_eq!(files.never().bos().token, "<s>");
}

#[test]
fn the_special_tokens_map_speaks_unless_the_configuration_lists_its_tokens() {
    let map = Some(json!({"bos_token": {"content": "It", "special": true}, "eos_token": "was"}));
    for (config, token, strings) in [
        (json!({}), "It", &["It", "Ġ", "was"][..]),
        (json!({"bos_token": END}), "It", &["It", "Ġ", "was"]),
        (json!({"bos_token": null}), "It", &["It", "Ġ", "was"]),
        (
            json!({"bos_token": END, "added_tokens_decoder": {"0": {"content": END, "special": true}}}),
            END,
            &["It", "Ġwas"],
        ),
    ] {
        let files = Files { map: map.clone(), ..Files::unnamed(config) };
        let tokenizer = files.never();
        assert_eq!(tokenizer.bos().token, token, "{}", files.config);
        assert_eq!(tokenizer.tokens("It was").unwrap().strings, strings, "{}", files.config);
    }
}

#[test]
fn a_bos_that_is_no_token_is_read_as_characters_as_upstream_does() {
    let mut files = Files::unnamed(json!({}));
    files.tokenizer["added_tokens"][0]["content"] = json!("<|end|>");
    let vocab = files.tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let id = vocab.remove(END).unwrap();
    vocab.insert("<|end|>".into(), id);
    let tokenizer = files.always();
    let warning = tokenizer.warning().unwrap();
    assert!(
        warning.starts_with("BOS \"<|endoftext|>\" is no token of this tokenizer: the model reads it as ")
    );
    let whole = files.never().tokens(&format!("{END}It was")).unwrap();
    let tokens = tokenizer.tokens("It was").unwrap();
    assert_eq!(tokens.ids, whole.ids);
    assert_eq!(tokens.strings, ["It", "Ġwas"]);
}

#[test]
fn added_tokens_of_the_configuration_are_added() {
    let mut files = Files::of("gpt2-tiny");
    files.config["added_tokens_decoder"] = json!({
        "0": {"content": END, "lstrip": false, "normalized": false, "rstrip": false, "special": true},
        "300": {"content": "<mask>", "lstrip": true, "normalized": false, "rstrip": false, "special": true},
        "301": {"content": "  ", "lstrip": false, "normalized": true, "rstrip": false, "special": false},
    });
    files.config["pad_token"] = json!("[PAD]");
    let tokens = files.never().tokens("It <mask>  was[PAD]").unwrap();
    // As in transformers, the string of a token that eats spaces has them.
    assert_eq!(tokens.strings, ["It", " <mask>", "  ", "w", "a", "s", "[PAD]"]);
    assert_eq!(tokens.ids[1..3], [300, 301]);
    assert_eq!(tokens.ids[6], 302);
}

#[test]
fn a_class_settles_the_prefix_space() {
    let strings = |class: &str, file: bool, config: Option<bool>| {
        let mut files = Files::unnamed(json!({"tokenizer_class": class, "add_prefix_space": config}));
        files.tokenizer["pre_tokenizer"]["add_prefix_space"] = json!(file);
        files.never().tokens("was").unwrap().strings.concat()
    };
    for class in ["GPT2Tokenizer", "GPTNeoXTokenizerFast", "CodeGenTokenizer", "Qwen2Tokenizer"] {
        assert_eq!(strings(class, false, Some(true)), "Ġwas", "{class}");
        assert_eq!(strings(class, true, Some(false)), "was", "{class}");
        assert_eq!(strings(class, true, None), "was", "{class}");
    }
    assert_eq!(strings("PreTrainedTokenizerFast", true, None), "Ġwas");
    assert_eq!(strings("PreTrainedTokenizerFast", false, Some(true)), "was");
}

#[test]
fn padding_and_truncation_of_the_file_are_not_ours() {
    let mut files = Files::of("gpt2-tiny");
    files.tokenizer["truncation"] =
        json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    files.tokenizer["padding"] = json!({"strategy": {"Fixed": 50}, "direction": "Left", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": END});
    let plain = Files::of("gpt2-tiny").always().tokens("It was the best of times").unwrap();
    assert_eq!(files.always().tokens("It was the best of times").unwrap(), plain);
}

#[test]
fn too_long_is_cut_with_bos_counted_or_told() {
    let text = "It was ".repeat(10);
    let load = |on_too_long, prepend_bos| {
        let options = TokenizeOptions { n_ctx: 5, on_too_long, prepend_bos, ..options() };
        Files::of("gpt2-tiny").load(options).unwrap()
    };
    let full = Files::of("gpt2-tiny").always().tokens(&text).unwrap();
    let cut = load(OnTooLong::Truncate, PrependBos::Always).tokens(&text).unwrap();
    assert_eq!((&cut.ids[..], &cut.strings[..]), (&full.ids[..5], &full.strings[..4]));
    assert_eq!(cut.truncated_from, Some(full.ids.len()));
    let cut = load(OnTooLong::Truncate, PrependBos::Never).tokens(&text).unwrap();
    assert_eq!((&cut.ids[..], &cut.strings[..]), (&full.ids[1..6], &full.strings[..5]));

    for on_too_long in [OnTooLong::Skip, OnTooLong::Fail] {
        let tokenizer = load(on_too_long, PrependBos::Always);
        let n = full.ids.len();
        assert_eq!(tokenizer.tokens(&text), Err(TokenizeReason::TooLong { n, n_ctx: 5 }));
        // Exactly n_ctx is not too long.
        assert_eq!(tokenizer.tokens("It was was was").unwrap().ids.len(), 5);
    }
}

#[test]
fn what_cannot_be_read_fails_alone_and_says_so() {
    let never = Files::of("gpt2-tiny").never();
    let prompt = crate::prompt::Prompt::from_text("");
    let hash = prompt.hash().clone();
    let failure = never.job_prompt(prompt).unwrap_err();
    assert_eq!(
        failure.to_string(),
        "prompt 1B2M2Y8AsgTpgAmY7PhCfg: its text has no tokens and no BOS is prepended; \
         remove it, or use --prepend-bos always"
    );
    assert_eq!(
        Failure::from(failure),
        Failure {
            hash: Some(hash),
            kind: FailureKind::Permanent,
            reason: "its text has no tokens and no BOS is prepended; remove it, or use --prepend-bos always"
                .into()
        }
    );
    let empty = Files::of("gpt2-tiny").always().tokens("").unwrap();
    assert_eq!((empty.ids, empty.strings), (vec![0], vec![]));

    let narrow = TokenizeOptions { d_vocab: Some(257), ..options() };
    let reason = Files::of("gpt2-tiny").load(narrow).unwrap().tokens("It was").unwrap_err();
    let message = reason.to_string();
    assert!(
        message.ends_with("but the model embeds only 257; do tokenizer and model belong together?"),
        "{message}"
    );
    assert!(message.starts_with("token \"") && message.contains("has id "), "{message}");

    let long = TokenizeReason::TooLong { n: 9, n_ctx: 5 };
    assert_eq!(
        long.to_string(),
        "9 tokens are more than the model's 5; shorten it, or use --on-too-long truncate or skip"
    );
}

#[test]
fn a_directory_without_a_usable_tokenizer_is_refused_with_what_to_do() {
    let error = |files: &[(&str, &str)], options: TokenizeOptions| {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let error = PromptTokenizer::from_dir(dir.path(), options).unwrap_err().to_string();
        error.replace(dir.path().to_str().unwrap(), "DIR")
    };
    let good = serde_json::to_string(&Files::of("gpt2-tiny").tokenizer).unwrap();
    for (files, options, expected) in [
        (
            vec![],
            options(),
            "DIR has no tokenizer.json; copy the tokenizer's files there, or fetch the whole repository",
        ),
        (
            vec![("vocab.json", "{}"), ("merges.txt", "")],
            options(),
            "DIR has no tokenizer.json, only the older vocab.json and merges.txt; make one with \
             AutoTokenizer.from_pretrained(dir).save_pretrained(dir) in Python",
        ),
        (
            vec![("tokenizer.model", "")],
            options(),
            "DIR has no tokenizer.json, only a SentencePiece tokenizer.model; make one with",
        ),
        (
            vec![("tokenizer.json", "{")],
            options(),
            "DIR/tokenizer.json is not a tokenizer file this build understands: ",
        ),
        (
            vec![("tokenizer.json", &good), ("tokenizer_config.json", "[1]")],
            options(),
            "DIR/tokenizer_config.json is not a tokenizer file this build understands: ",
        ),
        (
            vec![("tokenizer.json", &good)],
            TokenizeOptions { n_ctx: 1, ..options() },
            "the tokenizer in DIR cannot be used: the model's 1 positions leave no room for a text",
        ),
        (
            vec![("tokenizer.json", &good), ("tokenizer_config.json", "{\"bos_token\": \"[NEW]\"}")],
            TokenizeOptions { d_vocab: Some(300), ..options() },
            "the tokenizer in DIR cannot be used: its BOS \"[NEW]\" has id 300, but the model embeds only 300 tokens; \
             use --prepend-bos never",
        ),
    ] {
        let error = error(&files, options);
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn the_record_gets_its_tokens_last_or_where_it_had_them() {
    let tokenizer = Files::of("gpt2-tiny").always();
    for (line, record) in [
        (
            r#"{"text": "It was", "hash": "h", "id": 1}"#,
            r#"{"text": "It was", "hash": "h", "id": 1, "meta": {}, "n_tokens": 2, "tokens": ["It", "\u0120was"]}"#,
        ),
        (
            r#"{"tokens": ["stale"], "text": "It was", "n_tokens": 1, "meta": {}, "hash": "h"}"#,
            r#"{"tokens": ["It", "\u0120was"], "text": "It was", "n_tokens": 2, "meta": {}, "hash": "h"}"#,
        ),
    ] {
        let prompt = crate::prompt::Prompt::from_record(Record::parse(line).unwrap()).unwrap();
        let job = tokenizer.job_prompt(prompt).unwrap();
        assert_eq!(job.record.to_python_json(), record);
        assert_eq!((job.hash.as_str(), job.ids.len()), ("h", 3));
    }
}

#[test]
fn a_set_gives_what_each_prompt_alone_gives() {
    let mut files = Files::of("gpt2-tiny");
    files.config["mask_token"] = json!({"content": "<mask>", "lstrip": true, "special": true});
    let options = TokenizeOptions { n_ctx: 40, prepend_bos: PrependBos::Never, ..options() };
    let tokenizer = Arc::new(files.load(options).unwrap());
    let mut texts: Vec<String> =
        (0..3000).map(|at| format!("It was the {at}th time. ").repeat(1 + at % 5)).collect();
    texts.extend(["".into(), "eats <mask> spaces".into(), format!("{END}é☃😀")]);
    let prompts: Vec<_> = texts.iter().map(|text| crate::prompt::Prompt::from_text(text)).collect();
    let set = Arc::new(PromptSet::from_prompts(&prompts).unwrap());
    let wanted: Vec<usize> = (0..prompts.len()).filter(|at| at % 7 != 3).collect();
    let mut seen = Vec::new();
    let spool = SpoolOptions { memory: 1000, dir: None };
    let tokenized =
        TokenizedSet::new(tokenizer.clone(), set, &wanted, spool, |done| seen.push(done)).unwrap();

    assert_eq!(seen.last(), Some(&wanted.len()));
    assert_eq!(tokenized.failures.len(), 1);
    let expected: Vec<JobPrompt> =
        wanted.iter().filter_map(|&at| tokenizer.job_prompt(prompts[at].clone()).ok()).collect();
    let items = tokenized.items();
    assert_eq!(items.len(), expected.len());
    let members: Vec<usize> = (0..items.len()).rev().collect();
    let ready = tokenized.job_prompts(&members).unwrap();
    for ((at, ready), item) in members.iter().zip(&ready).zip(items.iter().rev()) {
        assert_eq!(ready, &expected[*at]);
        assert_eq!((item.hash, item.n), (&ready.hash, ready.ids.len()));
        assert_eq!(item.message_bytes, serde_json::to_vec(ready).unwrap().len());
    }
    let cut = expected.iter().filter(|prompt| prompt.ids.len() == 40).count();
    let report = &tokenized.report;
    assert!(cut > 0 && report.truncated <= cut && report.truncated > 0);
    assert_eq!((report.prompts, report.longest, report.skipped), (expected.len(), 40, 0));
    assert_eq!(report.tokens, expected.iter().map(|prompt| prompt.ids.len() as u64).sum::<u64>());
}

#[test]
fn skipping_is_counted_and_failing_is_listed() {
    let texts = ["It", "It was It was It was", "was"];
    let prompts = texts.map(crate::prompt::Prompt::from_text);
    for (on_too_long, skipped, failed) in [(OnTooLong::Skip, 1, 0), (OnTooLong::Fail, 0, 1)] {
        let options = TokenizeOptions { n_ctx: 4, on_too_long, ..options() };
        let tokenizer = Arc::new(Files::of("gpt2-tiny").load(options).unwrap());
        let set = Arc::new(PromptSet::from_prompts(&prompts).unwrap());
        let tokenized =
            TokenizedSet::new(tokenizer, set, &[0, 1, 2], SpoolOptions::default(), |_| ()).unwrap();
        assert_eq!((tokenized.report.skipped, tokenized.failures.len()), (skipped, failed));
        assert_eq!(tokenized.items().len(), 2);
    }
}

#[test]
fn a_text_of_nothing_but_spaces_is_tokenized_whole() {
    // Regular expressions that look ahead may give up on such texts, and what is left unsplit would
    // silently tokenize otherwise.
    let options = TokenizeOptions { n_ctx: usize::MAX, prepend_bos: PrependBos::Never, ..options() };
    let tokenizer = Files::of("gpt2-tiny").load(options).unwrap();
    let text = format!("It{}was was was", " ".repeat(100_000));
    let tokens = tokenizer.tokens(&text).unwrap();
    assert_eq!(tokens.strings.iter().map(|token| token.chars().count()).sum::<usize>(), text.len());
    assert_eq!(tokens.strings[tokens.strings.len() - 3..], ["Ġwas", "Ġwas", "Ġwas"]);
}
