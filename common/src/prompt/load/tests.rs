use std::fs;

use proptest::prelude::*;

use super::*;
use crate::prompt::{Json, Prompt};

/// Options for a file with this content. The directory goes when it is dropped.
fn file(content: impl AsRef<[u8]>) -> (tempfile::TempDir, LoadOptions) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompts.jsonl");
    fs::write(&path, content).unwrap();
    (dir, LoadOptions::new(path))
}

fn raw(options: LoadOptions, min_chars: usize, max_chars: usize) -> LoadOptions {
    LoadOptions { raw: true, lengths: LengthRules { min_chars, max_chars }, ..options }
}

fn prompts(loaded: &Loaded) -> Vec<Prompt> {
    (0..loaded.prompts.len()).map(|at| loaded.prompts.get(at).unwrap()).collect()
}

fn texts(loaded: &Loaded) -> Vec<String> {
    prompts(loaded).iter().map(|prompt| prompt.text().to_owned()).collect()
}

fn line(text: &str) -> String {
    let mut record = crate::prompt::Record::new();
    record.insert("text", text);
    record.to_python_json() + "\n"
}

#[test]
fn a_bad_line_is_named_and_the_rest_goes_on() {
    let table: &[(&[u8], usize, &str)] = &[
        (b"{\"text\": \"open", 10, "this string has no closing quote"),
        (b"{\"text\": 'x'}", 10, "expected a value, found '\\''"),
        (b"[\"text\"]", 1, "expected an object {...}, found an array"),
        (b"plain text", 1, "expected an object {...}, found 'p'"),
        (b"{\"txt\": \"x\"}", 1, "the object has no \"text\"; add it, or remove the line"),
        (b"{\"hash\": \"abc\"}", 1, "the object has no \"text\"; add it, or remove the line"),
        (b"{\"id\": 1, \"text\": 5}", 19, "\"text\" is a number; it must be a string"),
        (b"{\"text\": null}", 10, "\"text\" is null; it must be a string"),
        (b"{\"text\": [\"x\"]}", 10, "\"text\" is an array; it must be a string"),
        (b"{\"text\": \"\xc3\xa9\xff\"}", 12, "byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"{\"text\": \"\\ud83d\"}", 11, "\\ud83d is half a surrogate pair, which is no text"),
        (
            b"{\"text\": \"x\", \"meta\": \"\\udc00\"}",
            24,
            "\\udc00 is half a surrogate pair, which is no text",
        ),
        (
            b"{\"text\": \"x\", \"hash\": 7}",
            23,
            "\"hash\" is a number; it must be a string; remove the key to have it computed",
        ),
        (
            b"{\"hash\": \"../x\", \"text\": \"x\"}",
            10,
            "\"../x\" cannot be a prompt's hash: it names a directory, so it must be 1 to 128 of A-Z a-z 0-9 - _ = ., \
             not starting with a dot; remove the \"hash\" key to have it computed",
        ),
        (b"{\"text\": \"a\"} {\"text\": \"b\"}", 15, "one object a line, but '{' follows it"),
    ];
    for raw_prompts in [false, true] {
        let mut content = Vec::new();
        for (bad, _, _) in table {
            content.extend_from_slice(bad);
            content.push(b'\n');
        }
        content.extend_from_slice(b"{\"text\": \"the good one\"}");
        let (_dir, mut options) = file(content);
        options = LoadOptions { raw: raw_prompts, ..raw(options, 0, 1000) };
        let loaded = load(&options).unwrap();
        assert_eq!(texts(&loaded), ["the good one"]);
        assert_eq!(loaded.report.bad_lines, table.len());
        assert_eq!(loaded.report.lines, table.len() + 1);
        for (number, (bad, (line, column, message))) in loaded.report.bad.iter().zip(table).enumerate() {
            let line = String::from_utf8_lossy(line);
            assert_eq!(
                (bad.line, bad.column, bad.message.as_str()),
                (number + 1, *column, *message),
                "{line}"
            );
        }
        let located = loaded.report.bad_lines_located().next().unwrap();
        assert_eq!(located, format!("{}:1:10: this string has no closing quote", options.path.display()));
    }
}

#[test]
fn a_file_without_a_usable_prompt_is_an_error_that_says_why() {
    for (content, expected) in [
        (
            "",
            "has no usable prompt (0 lines: 0 blank, 0 bad; 0 texts too short): give a file with an object like {\"text\": \"...\"} on each line",
        ),
        ("\n \n\r\n", "has no usable prompt (3 lines: 3 blank, 0 bad; 0 texts too short): give a file"),
        (
            "\n{\"txt\": 1}\n",
            "(2 lines: 1 blank, 1 bad; 0 texts too short): the first bad line is line 2, column 1: the object has no \"text\"",
        ),
        (
            "{\"text\": \"short\"}\n",
            "(1 lines: 0 blank, 0 bad; 1 texts too short): lower --min-chars, or raise --max-chars",
        ),
    ] {
        let (_dir, options) = file(content);
        let error = load(&raw(options, 100, 1000)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let (_dir, options) = file(b"\x1f\x8b\x08\x00 and so on");
    let error = load(&options).unwrap_err().to_string();
    assert!(error.contains("line 1, column 1: the file is compressed with gzip; unpack it first"), "{error}");
}

#[test]
fn what_cannot_be_is_refused_before_reading() {
    for (options, expected) in [
        (raw(LoadOptions::new("x"), 100, 0), "--max-chars must be at least 1"),
        (LoadOptions { n_samples: Some(0), ..LoadOptions::new("x") }, "--n-samples must be at least 1"),
        (LoadOptions::new("no/such/file"), "could not read the prompts in no/such/file: No such file"),
        (LoadOptions::new("/"), "could not read the prompts in /: Is a directory"),
    ] {
        let error = load(&options).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn raw_prompts_are_cut_in_code_points_and_carry_their_file() {
    let content = [
        r#"{"text": "éééé☃☃☃☃😀😀", "meta": {"a": 1}, "hash": "old", "tokens": ["x"], "n_tokens": 1, "id": 7}"#,
        r#"{"text": "abc", "hash": "kept", "tokens": ["stale"], "n_tokens": 1}"#,
        r#"{"id": 9, "text": "abcd", "source_fname": "elsewhere"}"#,
        r#"{"text": "ab"}"#,
    ]
    .join("\n");
    let (_dir, options) = file(content);
    let source = options.path.to_str().unwrap().to_owned();
    let loaded = load(&raw(options, 3, 4)).unwrap();
    let written: Vec<String> =
        prompts(&loaded).iter().map(|prompt| prompt.record().to_compact_utf8()).collect();
    let hash = |text| crate::prompt::PromptHash::of(text);
    assert_eq!(
        written,
        [
            // The last piece, two characters, is too short.
            format!(
                r#"{{"text": "éééé", "meta": {{"a": 1}}, "hash": "{}", "id": 7, "source_fname": "{source}"}}"#,
                hash("éééé")
            ),
            format!(
                r#"{{"text": "☃☃☃☃", "meta": {{"a": 1}}, "hash": "{}", "id": 7, "source_fname": "{source}"}}"#,
                hash("☃☃☃☃")
            ),
            format!(
                r#"{{"text": "abc", "hash": "kept", "tokens": ["stale"], "n_tokens": 1, "meta": {{}}, "source_fname": "{source}"}}"#
            ),
            format!(
                r#"{{"id": 9, "text": "abcd", "source_fname": "{source}", "meta": {{}}, "hash": "{}"}}"#,
                hash("abcd")
            ),
        ]
    );
    let report = loaded.report;
    assert_eq!((report.lines, report.split, report.too_short, report.prompts), (4, 1, 2, 4));
}

#[test]
fn without_raw_a_line_is_taken_as_it_is() {
    let long = "x".repeat(5000);
    let (_dir, options) = file([line("s"), line(&long), line("")].concat());
    let loaded = load(&options).unwrap();
    assert_eq!(texts(&loaded), ["s", &long, ""]);
    assert!(prompts(&loaded).iter().all(|prompt| prompt.record().get("source_fname").is_none()));
}

#[test]
fn line_ends_marks_and_blanks_do_not_matter() {
    let (_dir, options) =
        file("\u{feff}{\"text\": \"a\"}\r\n\r\n   \t\n{\"text\": \"b\"}\n\n{\"text\": \"c\"}");
    let loaded = load(&options).unwrap();
    assert_eq!(texts(&loaded), ["a", "b", "c"]);
    assert_eq!((loaded.report.lines, loaded.report.blank, loaded.report.bad_lines), (6, 3, 0));
}

#[test]
fn a_text_that_comes_twice_is_taken_once() {
    let (_dir, options) = file([line("a"), line("b"), line("a"), line("a")].concat());
    let loaded = load(&options).unwrap();
    assert_eq!(texts(&loaded), ["a", "b"]);
    assert_eq!((loaded.report.duplicates, loaded.report.conflicting), (2, 0));
    // Pieces of split lines too.
    let (_dir, options) = file(line("abababX"));
    let loaded = load(&raw(options, 2, 2)).unwrap();
    assert_eq!(texts(&loaded), ["ab"]);
    assert_eq!((loaded.report.duplicates, loaded.report.too_short), (2, 1));
}

#[test]
fn two_texts_under_one_hash_are_never_one_silently() {
    let (_dir, options) = file(
        "{\"text\": \"one\", \"hash\": \"h\"}\n\n{\"text\": \"two\", \"hash\": \"h\"}\n{\"text\": \"one\", \"hash\": \"h\"}\n",
    );
    let loaded = load(&options).unwrap();
    assert_eq!(texts(&loaded), ["one"]);
    assert_eq!((loaded.report.duplicates, loaded.report.conflicting), (1, 1));
    assert_eq!(
        loaded.report.conflicts[0].to_string(),
        "line 3: left out, because line 1 has the same hash h with another text; \
         remove \"hash\" from one of them to have it computed"
    );
}

#[test]
fn metas_that_are_no_objects_are_wrapped_and_counted() {
    let (_dir, options) =
        file("{\"text\": \"a\", \"meta\": \"web\"}\n{\"text\": \"b\", \"meta\": null}\n{\"text\": \"c\"}\n");
    let loaded = load(&options).unwrap();
    let metas: Vec<String> =
        prompts(&loaded).iter().map(|prompt| prompt.record().get("meta").unwrap().to_python_json()).collect();
    assert_eq!(metas, ["{\"value\": \"web\"}", "{}", "{}"]);
    assert_eq!(loaded.report.meta_wrapped, 1);
}

#[test]
fn a_seed_gives_an_order_again_and_a_drawn_seed_is_told() {
    let (_dir, options) = file((0..50).map(|at| line(&at.to_string())).collect::<String>());
    let shuffled =
        |seed, n_samples| load(&LoadOptions { shuffle: true, seed, n_samples, ..options.clone() }).unwrap();
    let in_order = texts(&load(&options).unwrap());
    let first = shuffled(Some(7), None);
    assert_eq!(first.report.seed, Some(7));
    assert_ne!(texts(&first), in_order);
    let again = shuffled(Some(7), Some(10));
    assert_eq!(texts(&again), texts(&first)[..10]);
    assert_eq!((again.report.prompts, again.report.beyond_n_samples), (10, 40));
    let drawn = shuffled(None, None);
    assert_eq!(texts(&shuffled(drawn.report.seed, None)), texts(&drawn));
    assert_eq!(load(&options).unwrap().report.seed, None);
}

#[test]
fn samples_are_distinct_and_reading_ends_with_them() {
    let (_dir, options) = file([line("a"), line("a"), line("b"), line("c"), "broken".into()].concat());
    let loaded = load(&LoadOptions { n_samples: Some(2), ..options }).unwrap();
    assert_eq!(texts(&loaded), ["a", "b"]);
    assert!(loaded.report.stopped_early);
    assert_eq!((loaded.report.lines, loaded.report.bad_lines), (3, 0));
}

#[test]
fn many_blocks_keep_their_order_and_line_numbers() {
    let mut content = String::new();
    for at in 0..3000 {
        content += &line(&format!("{at} {}", "padding ".repeat(500)));
        if at % 1000 == 999 {
            content += "bad\n";
        }
    }
    let (_dir, options) = file(&content);
    let spool = SpoolOptions { memory: 1 << 20, dir: None };
    let loaded = load(&LoadOptions { spool, ..options }).unwrap();
    assert!(content.len() > 10 << 20 && loaded.prompts.is_on_disk());
    assert_eq!(loaded.report.bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [1001, 2002, 3003]);
    for (at, text) in texts(&loaded).iter().enumerate() {
        assert!(text.starts_with(&format!("{at} ")));
    }
    for at in 0..loaded.prompts.len() {
        assert_eq!(loaded.prompts.hash(at), loaded.prompts.get(at).unwrap().hash());
    }
}

#[test]
fn only_so_many_bad_lines_are_kept() {
    let (_dir, options) = file("x\n".repeat(3000) + &line("good"));
    let report = load(&options).unwrap().report;
    assert_eq!((report.bad_lines, report.bad.len()), (3000, MAX_SHOWN));
}

#[test]
fn a_file_is_named_as_pathlib_names_it() {
    for (path, named) in [
        ("data/pile.jsonl", "data/pile.jsonl"),
        ("./data//x/./pile.jsonl", "data/x/pile.jsonl"),
        ("../data/../pile.jsonl", "../data/../pile.jsonl"),
        ("/abs//pile.jsonl", "/abs/pile.jsonl"),
        ("//net/pile.jsonl", "//net/pile.jsonl"),
        ("///abs/pile.jsonl", "/abs/pile.jsonl"),
        ("é.jsonl", "é.jsonl"),
    ] {
        assert_eq!(python_posix_path(Path::new(path)), named);
    }
}

proptest! {
    /// Upstream's rules, spelled out the slow way.
    #[test]
    fn cutting_is_upstreams(texts in prop::collection::vec("[aé😀]{0,30}", 1..20), min in 0usize..12, max in 1usize..12) {
        let content: String = texts.iter().map(|text| line(text)).collect();
        let (_dir, options) = file(content);
        let mut expected: Vec<String> = Vec::new();
        for text in &texts {
            let chars: Vec<char> = text.chars().collect();
            if chars.len() < min {
                continue;
            }
            let mut rest = &chars[..];
            while rest.len() > max {
                expected.push(rest[..max].iter().collect());
                rest = &rest[max..];
            }
            expected.push(rest.iter().collect());
        }
        expected.retain(|piece| piece.chars().count() >= min);
        let mut seen = std::collections::HashSet::new();
        expected.retain(|piece| seen.insert(piece.clone()));
        match load(&raw(options, min, max)) {
            Ok(loaded) => {
                prop_assert_eq!(self::texts(&loaded), expected);
                for prompt in prompts(&loaded) {
                    prop_assert_eq!(prompt.hash(), &crate::prompt::PromptHash::of(prompt.text()));
                    prop_assert_eq!(prompt.record().get("hash").and_then(Json::as_str), Some(prompt.hash().as_str()));
                }
            }
            Err(LoadError::NoPrompts(_)) => prop_assert!(expected.is_empty()),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
