use std::{io::Write, path::Path, thread, time::Duration};

use super::*;
use crate::{
    capture::{ArrayLayout, Capture},
    job::RunId,
    store::{ModelStore, layout::ModelName},
};

fn store(root: &Path) -> Store {
    Store::new(root, &RunId("r".to_owned()))
}

fn model(store: &Store) -> ModelStore {
    store.model(&ModelName::try_from("gpt2").unwrap(), &Capture::default(), 2).unwrap()
}

fn json(text: &str, meta: &str) -> String {
    let hash = PromptHash::of(text);
    format!(
        "{{\"text\": \"{text}\", \"meta\": {{{meta}}}, \"hash\": \"{hash}\", \"n_tokens\": 1, \"tokens\": [\"x\"]}}"
    )
}

fn commit(model: &ModelStore, text: &str) -> PromptHash {
    commit_with(model, text, "")
}

fn commit_with(model: &ModelStore, text: &str, meta: &str) -> PromptHash {
    let hash = PromptHash::of(text);
    model.commit(&hash, json(text, meta).as_bytes(), |file| file.write_all(b"x").map(|()| 1)).unwrap();
    hash
}

/// prompts.jsonl as it must be for these texts.
fn expected(texts: &[&str]) -> String {
    let mut texts = texts.to_vec();
    texts.sort_by_key(|text| PromptHash::of(text));
    texts.iter().map(|text| json(text, "") + "\n").collect()
}

fn index(layout: &ModelLayout) -> String {
    fs::read_to_string(layout.prompts_jsonl()).unwrap()
}

#[test]
fn the_index_is_every_complete_prompt_in_the_order_of_the_hashes() {
    let tmp = tempfile::tempdir().unwrap();
    let store = store(tmp.path());
    let model = model(&store);
    let layout = model.layout();
    for text in ["c", "a", "b"] {
        commit(&model, text);
    }
    // Killed before the end, or by upstream at its own wrong moments.
    fs::create_dir(layout.prompt(&PromptHash::of("empty"))).unwrap();
    for (text, name) in [("only json", "prompt.json"), ("only arrays", "activations.npz")] {
        fs::create_dir(layout.prompt(&PromptHash::of(text))).unwrap();
        fs::write(layout.prompt(&PromptHash::of(text)).join(name), json(text, "")).unwrap();
    }
    fs::write(layout.prompts().join(".DS_Store"), "").unwrap();
    let report = store.index_prompts(layout).unwrap();
    assert_eq!(index(layout), expected(&["a", "b", "c"]));
    assert_eq!((report.lines, report.read, report.dropped, report.unlisted_count), (3, 3, 0, 0));
}

#[test]
fn an_index_of_nothing_is_an_empty_file() {
    let tmp = tempfile::tempdir().unwrap();
    let store = store(tmp.path());
    let layout = store.layout().model(&ModelName::try_from("gpt2").unwrap());
    assert_eq!(store.index_prompts(&layout).unwrap().lines, 0);
    assert!(!layout.dir().exists());
    assert_eq!(store.index_prompts(model(&store).layout()).unwrap().lines, 0);
    assert_eq!(index(&layout), "");
}

#[test]
fn a_second_update_reads_only_what_is_new_and_leaves_a_right_file_alone() {
    let tmp = tempfile::tempdir().unwrap();
    let store = store(tmp.path());
    let model = model(&store);
    let layout = model.layout();
    commit(&model, "a");
    commit(&model, "b");
    thread::sleep(Duration::from_millis(20));
    store.index_prompts(layout).unwrap();
    let before = fs::metadata(layout.prompts_jsonl()).unwrap();
    let report = store.index_prompts(layout).unwrap();
    assert_eq!((report.lines, report.read), (2, 0));
    assert_eq!(fs::metadata(layout.prompts_jsonl()).unwrap().modified().unwrap(), before.modified().unwrap());
    commit(&model, "c");
    let report = store.index_prompts(layout).unwrap();
    assert_eq!((report.lines, report.read), (3, 1));
    assert_eq!(index(layout), expected(&["a", "b", "c"]));
}

#[test]
fn a_prompt_committed_again_gets_its_new_line_even_of_the_same_length() {
    let tmp = tempfile::tempdir().unwrap();
    let store = store(tmp.path());
    let model = model(&store);
    commit_with(&model, "a", "\"k\": 1");
    store.index_prompts(model.layout()).unwrap();
    commit_with(&model, "a", "\"k\": 2");
    store.index_prompts(model.layout()).unwrap();
    assert_eq!(index(model.layout()), json("a", "\"k\": 2") + "\n");
}

#[test]
fn a_vanished_prompt_loses_its_line_and_so_does_one_whose_arrays_were_removed() {
    let tmp = tempfile::tempdir().unwrap();
    let store = store(tmp.path());
    let model = model(&store);
    let layout = model.layout();
    let hashes = ["a", "b", "c"].map(|text| commit(&model, text));
    store.index_prompts(layout).unwrap();
    fs::remove_dir_all(layout.prompt(&hashes[0])).unwrap();
    fs::remove_file(layout.activations(&hashes[1], ArrayLayout::PerLayer)).unwrap();
    let report = store.index_prompts(layout).unwrap();
    assert_eq!((report.lines, report.dropped), (1, 2));
    assert_eq!(index(layout), expected(&["c"]));
}

#[test]
fn a_file_in_another_order_torn_or_with_foreign_lines_is_mended() {
    let tmp = tempfile::tempdir().unwrap();
    let store = store(tmp.path());
    let model = model(&store);
    let layout = model.layout();
    let hashes: Vec<_> = ["a", "b", "c"].map(|text| commit(&model, text)).into();
    let right = expected(&["a", "b", "c"]);
    let backwards: String = right.lines().rev().map(|line| format!("{line}\n")).collect();
    let twice = format!("{right}{right}");
    let foreign = format!("not json\n{right}{}\n", json("never committed", ""));
    for wrong in
        [&backwards, &twice, &foreign, &right[..right.len() - 7], &right[..right.len() - 1], "\n", ""]
    {
        fs::write(layout.prompts_jsonl(), wrong).unwrap();
        store.index_prompts(layout).unwrap();
        assert_eq!(index(layout), right, "from {wrong:?}");
    }
    // Torn lines are mended in the narrow way too.
    fs::write(layout.prompts_jsonl(), &right[..right.len() - 7]).unwrap();
    store.add_to_index(layout, &hashes[..1]).unwrap();
    assert_eq!(index(layout), right);
}

#[test]
fn the_narrow_way_adds_what_it_is_told_and_keeps_the_rest() {
    let tmp = tempfile::tempdir().unwrap();
    let store = store(tmp.path());
    let model = model(&store);
    let layout = model.layout();
    let [a, b, _unnamed] = ["a", "b", "c"].map(|text| commit(&model, text));
    let absent = PromptHash::of("never committed");
    store.add_to_index(layout, &[a.clone(), absent, a.clone()]).unwrap();
    assert_eq!(index(layout), expected(&["a"]));
    store.add_to_index(layout, std::slice::from_ref(&b)).unwrap();
    assert_eq!(index(layout), expected(&["a", "b"]));
    fs::remove_dir_all(layout.prompt(&b)).unwrap();
    let report = store.add_to_index(layout, &[a, b]).unwrap();
    assert_eq!((report.lines, report.dropped), (1, 1));
    assert_eq!(index(layout), expected(&["a"]));
}

#[test]
fn what_others_wrote_is_taken_as_it_is_and_what_cannot_be_read_is_told() {
    let tmp = tempfile::tempdir().unwrap();
    let store = store(tmp.path());
    let model = model(&store);
    let layout = model.layout();
    let put = |text: &str, json: &str| {
        let hash = commit(&model, text);
        fs::write(layout.prompt_json(&hash), json).unwrap();
        hash
    };
    let hash = PromptHash::of("pretty");
    put("pretty", &format!("{{\n  \"hash\":\r\n \"{hash}\",\n  \"x\": NaN\n}}\n"));
    put("torn", "{\"text\": \"to");
    put("other", &json("not this one", ""));
    put("list", "[1]");
    let report = store.index_prompts(layout).unwrap();
    assert_eq!(index(layout), format!("{{   \"hash\":   \"{hash}\",   \"x\": NaN }}\n"));
    assert_eq!((report.lines, report.unlisted_count), (1, 3));
    let told: Vec<_> = report.unlisted.iter().map(|file| file.reason.as_str()).collect();
    assert!(told.iter().any(|reason| reason.contains("not its directory's name")), "{told:?}");
    assert!(report.unlisted.iter().all(|file| file.path.ends_with("prompt.json")));
}

#[test]
fn a_stacked_prompt_is_listed() {
    let tmp = tempfile::tempdir().unwrap();
    let store = store(tmp.path());
    let capture = Capture { layout: ArrayLayout::Stacked, ..Capture::default() };
    let model = store.model(&ModelName::try_from("gpt2").unwrap(), &capture, 2).unwrap();
    commit(&model, "a");
    store.index_prompts(model.layout()).unwrap();
    assert_eq!(index(model.layout()), expected(&["a"]));
}

#[test]
fn several_writers_end_with_everything_and_readers_never_see_it_shrink_or_torn() {
    let tmp = tempfile::tempdir().unwrap();
    let (writers, commits) = (4, 12);
    let layout = store(tmp.path()).layout().model(&ModelName::try_from("gpt2").unwrap());
    thread::scope(|scope| {
        let working: Vec<_> = (0..writers)
            .map(|writer| {
                let root = tmp.path();
                scope.spawn(move || {
                    // A store a thread: what processes have in common is the directory alone.
                    let store = store(root);
                    let model = model(&store);
                    for i in 0..commits {
                        let hash = commit(&model, &format!("{writer}.{i}"));
                        if writer % 2 == 0 {
                            store.index_prompts(model.layout()).unwrap();
                        } else {
                            store.add_to_index(model.layout(), &[hash]).unwrap();
                        }
                    }
                })
            })
            .collect();
        let mut seen = 0;
        while !working.iter().all(|writer| writer.is_finished()) {
            let text = fs::read_to_string(layout.prompts_jsonl()).unwrap_or_default();
            assert!(text.is_empty() || text.ends_with('\n'));
            let now = text.lines().inspect(|line| drop(serde_json::from_str::<Value>(line).unwrap())).count();
            assert!(now >= seen, "shrank from {seen} to {now}");
            seen = now;
            thread::sleep(Duration::from_millis(1));
        }
    });
    let texts: Vec<String> =
        (0..writers).flat_map(|w| (0..commits).map(move |i| format!("{w}.{i}"))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(index(&layout), expected(&texts));
}

fn card(name: &str, n_layers: usize) -> Map<String, Value> {
    serde_json::from_value(serde_json::json!({"model_name": name, "n_layers": n_layers, "eps": 1e-5}))
        .unwrap()
}

#[test]
fn a_model_begins_with_its_card_its_line_and_an_empty_figures_file() {
    let tmp = tempfile::tempdir().unwrap();
    let store = store(&tmp.path().join("attn_data"));
    let layout = |name: &str| store.layout().model(&ModelName::try_from(name).unwrap());
    assert_eq!(store.read_card(&layout("gpt2")).unwrap(), None);
    for (name, n_layers) in [("pythia-70m", 6), ("gpt2", 12), ("gpt2", 12)] {
        store.begin_model(&layout(name), &card(name, n_layers), false).unwrap();
    }
    assert_eq!(store.read_card(&layout("gpt2")).unwrap().unwrap(), card("gpt2", 12));
    assert_eq!(
        fs::read_to_string(store.layout().models_jsonl()).unwrap(),
        "{\"model_name\": \"gpt2\", \"n_layers\": 12, \"eps\": 1e-05, \"sanitized_name\": \"gpt2\"}\n\
         {\"model_name\": \"pythia-70m\", \"n_layers\": 6, \"eps\": 1e-05, \"sanitized_name\": \"pythia-70m\"}\n"
    );
    assert_eq!(fs::read(store.layout().figures_jsonl()).unwrap(), b"");
    assert!(!store.layout().index_html().exists());
    // What the figures step wrote stays.
    fs::write(store.layout().figures_jsonl(), "{\"name\": \"raw\"}\n").unwrap();
    store.begin_model(&layout("gpt2"), &card("gpt2", 12), false).unwrap();
    assert_eq!(fs::read(store.layout().figures_jsonl()).unwrap(), b"{\"name\": \"raw\"}\n");
}

#[test]
fn models_of_other_programs_are_listed_and_broken_ones_told() {
    let tmp = tempfile::tempdir().unwrap();
    let store = store(tmp.path());
    for (name, text) in [("ours", "{\n \"model_name\": \"ours\"\n}"), ("torn", "{\"model"), ("no.card", "")] {
        fs::create_dir(tmp.path().join(name)).unwrap();
        if name != "no.card" {
            fs::write(tmp.path().join(name).join("model_cfg.json"), text).unwrap();
        }
    }
    let report = store.update_models().unwrap();
    let text = fs::read_to_string(store.layout().models_jsonl()).unwrap();
    assert_eq!(text, "{\"model_name\": \"ours\", \"sanitized_name\": \"ours\"}\n");
    assert_eq!((report.lines, report.unlisted_count), (1, 1));
    assert_eq!(report.unlisted[0].path, tmp.path().join("torn/model_cfg.json"));
    let torn = store.layout().model(&ModelName::try_from("torn").unwrap());
    assert_eq!(store.read_card(&torn).unwrap(), None);
}

#[test]
fn models_that_begin_at_once_are_all_listed() {
    let tmp = tempfile::tempdir().unwrap();
    thread::scope(|scope| {
        for writer in 0..6 {
            let root = tmp.path();
            scope.spawn(move || {
                let (store, name) = (store(root), format!("model-{writer}"));
                let layout = store.layout().model(&ModelName::try_from(name.as_str()).unwrap());
                store.begin_model(&layout, &card(&name, writer), false).unwrap();
            });
        }
    });
    let text = fs::read_to_string(tmp.path().join("models.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 6);
}
