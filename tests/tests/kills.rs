//! Runs that are killed, interrupted or doubled: nothing torn, nothing lost, nothing done twice.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{check_committed, end, example_prompts, fixture, prompt_dirs, read_npz, worker_run};

const MODEL: &str = "gpt2-tiny";
/// Prompts of a story; enough that a kill falls between two of them.
const PROMPTS: usize = 400;

/// A file of many prompts.
fn many_prompts(dir: &Path) -> std::path::PathBuf {
    let texts: Vec<String> = fs::read_to_string(example_prompts())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_owned())
        .collect();
    let line = |i: usize| {
        let text: String =
            texts[i % texts.len()].chars().skip(i / texts.len() * 7).take(60 + i % 90).collect();
        format!("{}\n", json!({"text": format!("{i} {text}")}))
    };
    let path = dir.join("prompts.jsonl");
    fs::write(&path, (0..PROMPTS).map(line).collect::<String>()).unwrap();
    path
}

fn run(prompts: &Path, save: &Path) -> Command {
    let mut command = worker_run(&fixture(MODEL), prompts, save);
    command.args(["--batch-size", "8"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What identifies a committed file: a rewrite changes it.
fn committed_inodes(save: &Path) -> BTreeMap<String, u64> {
    let inode = |dir: &Path| Some(fs::metadata(dir.join("prompt.json")).ok()?.ino());
    prompt_dirs(save, MODEL).into_iter().filter_map(|(hash, dir)| Some((hash, inode(&dir)?))).collect()
}

/// Every file below `dir` whose name is not one a reader knows.
fn strangers(save: &Path) -> Vec<std::path::PathBuf> {
    let files =
        |dir: &Path| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let known = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        ["prompt.json", "activations.npz"].contains(&name.as_str())
    };
    let mut found: Vec<_> =
        prompt_dirs(save, MODEL).values().flat_map(|dir| files(dir)).filter(|p| !known(p)).collect();
    let top = ["model_cfg.json", "prompts.jsonl", "prompts"];
    found.extend(
        files(&save.join(MODEL))
            .into_iter()
            .filter(|p| !top.contains(&&*p.file_name().unwrap().to_string_lossy())),
    );
    found
}

#[test]
fn killed_at_any_moment_a_run_leaves_nothing_torn_and_the_next_goes_on() {
    let dir = TempDir::new().unwrap();
    let prompts = many_prompts(dir.path());
    let reference = dir.path().join("reference");
    let begin = Instant::now();
    end(run(&prompts, &reference)).expect(0);
    let whole = begin.elapsed();

    let save = dir.path().join("data");
    let mut before = BTreeMap::new();
    let kills = 12u32;
    for i in 0..kills {
        let mut child = run(&prompts, &save).spawn().unwrap();
        // From right after the start to most of a whole run, so that kills fall into every stage.
        std::thread::sleep(Duration::from_millis(20) + whole * (i * 7 % kills) / (2 * kills));
        child.kill().unwrap();
        child.wait().unwrap();
        check_committed(&save, MODEL).unwrap_or_else(|torn| panic!("after kill {i}: {torn}"));
        let now = committed_inodes(&save);
        for (hash, inode) in &before {
            assert_eq!(now.get(hash), Some(inode), "{hash} was committed and computed again, or lost");
        }
        before = now;
    }
    let last = end(run(&prompts, &save)).expect(0).json();
    let model = &last["models"][0];
    assert_eq!(model["cached"].as_u64().unwrap() as usize, before.len());
    assert_eq!(model["done"].as_u64().unwrap() as usize, PROMPTS - before.len());
    assert_eq!(check_committed(&save, MODEL), Ok(PROMPTS));
    assert_eq!(strangers(&save), Vec::<std::path::PathBuf>::new(), "leftovers of killed runs were not swept");
    for (hash, prompt) in prompt_dirs(&reference, MODEL) {
        let other = save.join(MODEL).join("prompts").join(&hash);
        assert_eq!(
            read_npz(&prompt.join("activations.npz")),
            read_npz(&other.join("activations.npz")),
            "{hash}"
        );
        assert_eq!(
            fs::read(prompt.join("prompt.json")).unwrap(),
            fs::read(other.join("prompt.json")).unwrap(),
            "{hash}"
        );
    }
    for file in ["prompts.jsonl", "model_cfg.json"] {
        let read = |save: &Path| fs::read_to_string(save.join(MODEL).join(file)).unwrap();
        assert_eq!(read(&reference), read(&save), "{file}");
    }
}

#[test]
fn two_runs_at_once_share_a_directory() {
    let dir = TempDir::new().unwrap();
    let prompts = many_prompts(dir.path());
    let save = dir.path().join("data");
    let children: Vec<_> = (0..2).map(|_| run(&prompts, &save).spawn().unwrap()).collect();
    for child in children {
        tests::Ended::from(child.wait_with_output().unwrap()).expect(0);
    }
    assert_eq!(check_committed(&save, MODEL), Ok(PROMPTS));
    let index = fs::read_to_string(save.join(MODEL).join("prompts.jsonl")).unwrap();
    assert_eq!(index.lines().count(), PROMPTS);
    assert!(index.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert_eq!(strangers(&save), Vec::<std::path::PathBuf>::new());
}

#[test]
fn an_interrupt_finishes_what_is_in_hand_and_says_how_to_go_on() {
    let dir = TempDir::new().unwrap();
    let prompts = many_prompts(dir.path());
    let save = dir.path().join("data");
    let child = run(&prompts, &save).spawn().unwrap();
    let begin = Instant::now();
    while check_committed(&save, MODEL).unwrap_or(0) == 0 {
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing was committed in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let ended = tests::Ended::from(child.wait_with_output().unwrap());
    // A fast machine may have finished before the signal came.
    assert!(ended.code == Some(130) || ended.code == Some(0), "{ended:#?}");
    let committed = check_committed(&save, MODEL).unwrap();
    if ended.code == Some(130) {
        assert!(ended.stderr.contains("the same command goes on where it stopped"), "{ended:#?}");
        assert_eq!(ended.json()["interrupted"], json!(true));
        assert_eq!(ended.json()["models"][0]["done"], json!(committed));
    }
    let index = fs::read_to_string(save.join(MODEL).join("prompts.jsonl")).unwrap();
    assert_eq!(index.lines().count(), committed, "the index lacks what the interrupted run committed");
    let rest = end(run(&prompts, &save)).expect(0).json();
    assert_eq!(rest["models"][0]["cached"], json!(committed));
    assert_eq!(check_committed(&save, MODEL), Ok(PROMPTS));
}

#[test]
fn a_second_signal_stops_at_once_and_costs_nothing_that_was_committed() {
    let dir = TempDir::new().unwrap();
    let prompts = many_prompts(dir.path());
    let save = dir.path().join("data");
    let child = run(&prompts, &save).spawn().unwrap();
    let begin = Instant::now();
    while check_committed(&save, MODEL).unwrap_or(0) == 0 {
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing was committed in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    for _ in 0..2 {
        Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    let ended = tests::Ended::from(child.wait_with_output().unwrap());
    assert!(ended.code == Some(130) || ended.code == Some(0), "{ended:#?}");
    let committed = check_committed(&save, MODEL).unwrap();
    let rest = end(run(&prompts, &save)).expect(0).json();
    assert_eq!(rest["models"][0]["cached"], json!(committed));
    assert_eq!(check_committed(&save, MODEL), Ok(PROMPTS));
    assert_eq!(strangers(&save), Vec::<std::path::PathBuf>::new());
}

#[test]
fn two_runs_of_different_layers_at_once_end_with_both() {
    let dir = TempDir::new().unwrap();
    let prompts = many_prompts(dir.path());
    let save = dir.path().join("data");
    let spawn = |layers: &str| {
        let mut command = run(&prompts, &save);
        command.args(["--layers", layers]).spawn().unwrap()
    };
    for child in [spawn("0"), spawn("1")] {
        tests::Ended::from(child.wait_with_output().unwrap()).expect(0);
    }
    check_committed(&save, MODEL).unwrap();
    // Where both replaced a file within one fsync the later one has won; such a prompt is not cached for both.
    let mut command = run(&prompts, &save);
    command.args(["--layers", "0-1"]);
    end(command).expect(0);
    for prompt in prompt_dirs(&save, MODEL).values() {
        let held: Vec<_> = read_npz(&prompt.join("activations.npz")).unwrap().into_keys().collect();
        assert_eq!(held, ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern"]);
    }
}
