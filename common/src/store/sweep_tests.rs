use std::{
    io::Write,
    process::{Child, Command, Stdio},
    thread,
    time::Instant,
};

use rustix::fs::{Timespec, Timestamps};

use super::*;
use crate::{
    capture::{ArrayLayout, Capture},
    job::RunId,
    prompt::PromptHash,
    store::{ModelStore, writer::TEMP_PREFIX},
};

fn store(root: &Path) -> Store {
    Store::new(root, &RunId("r".to_owned()))
}

fn model(store: &Store) -> ModelStore {
    store.model(&ModelName::try_from("m").unwrap(), &Capture::default(), 2).unwrap()
}

/// Every temporary or intents file under `dir`.
fn traces(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in names(dir) {
        if path.is_dir() {
            found.extend(traces(&path));
        } else if name(&path).is_some_and(|name| WriterId::of_temp_name(name).is_some())
            || path.starts_with(dir.join(".intents"))
            || dir.ends_with(".intents")
        {
            found.push(path);
        }
    }
    found
}

/// Puts a file of another writer there, as old as `age`.
fn put(path: PathBuf, contents: &str, age: Duration) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = fs::File::create(&path).unwrap();
    (&file).write_all(contents.as_bytes()).unwrap();
    let then = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap() - age;
    let then = Timespec { tv_sec: then.as_secs() as i64, tv_nsec: 0 };
    rustix::fs::futimens(&file, &Timestamps { last_access: then, last_modification: then }).unwrap();
    path
}

/// Writers with an open announcement and a temporary file each: one elsewhere, silent for `age`.
fn elsewhere(root: &Path, text: &str, age: Duration) -> (PathBuf, PathBuf) {
    let layout = store(root).layout().clone();
    let hash = PromptHash::of(text);
    let id = format!("run.another-host.0a0b0c0d.{}.77.0", 1000 + text.len());
    let writer = WriterId::parse(&id).unwrap();
    let model = ModelName::try_from("m").unwrap();
    let intent = serde_json::to_string(&Intent { model: model.clone(), hashes: vec![hash.clone()] }).unwrap();
    let intents = put(layout.intents().join(format!("{id}.jsonl")), &format!("{intent}\n"), age);
    let temp = put(layout.model(&model).prompt(&hash).join(writer.temp_name(0)), "half a", age);
    (intents, temp)
}

#[test]
fn a_sweep_of_nothing_makes_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let swept = store(&tmp.path().join("absent")).sweep();
    assert!(!tmp.path().join("absent").exists());
    assert_eq!((swept.files, swept.failures.len()), (0, 0));
}

#[test]
fn the_living_are_left_alone() {
    let tmp = tempfile::tempdir().unwrap();
    let store = store(tmp.path());
    let hash = PromptHash::of("x");
    let model = model(&store);
    model
        .commit(&hash, b"{}", |file| {
            file.write_all(b"arr")?;
            let swept = Store::new(tmp.path(), &RunId("another".to_owned())).sweep();
            assert_eq!((swept.files, swept.directories, swept.writers), (0, 0, 0));
            file.write_all(b"ays").map(|()| 6)
        })
        .unwrap();
    assert_eq!(fs::read(model.layout().activations(&hash, ArrayLayout::PerLayer)).unwrap(), b"arrays");
}

#[test]
fn a_writer_elsewhere_is_given_a_day() {
    let tmp = tempfile::tempdir().unwrap();
    let day = GENEROUS;
    let (young_intents, young) = elsewhere(tmp.path(), "young", day - Duration::from_secs(60));
    let (old_intents, old) = elsewhere(tmp.path(), "old", day + Duration::from_secs(60));
    let future = elsewhere(tmp.path(), "its clock is ahead", Duration::ZERO);
    let swept = store(tmp.path()).sweep();
    assert!(swept.failures.is_empty(), "{:?}", swept.failures);
    assert_eq!((swept.files, swept.directories, swept.writers), (1, 1, 1));
    assert!(young_intents.exists() && young.exists() && future.1.exists());
    assert!(!old_intents.exists() && !old.parent().unwrap().exists());
}

#[test]
fn a_young_file_keeps_its_silent_writer_known() {
    let tmp = tempfile::tempdir().unwrap();
    let (intents, temp) = elsewhere(tmp.path(), "x", GENEROUS + Duration::from_secs(60));
    put(temp.clone(), "being written", Duration::ZERO);
    store(tmp.path()).sweep();
    assert!(intents.exists() && temp.exists());
}

#[test]
fn leftovers_beside_the_indexes_go_too_and_strangers_files_stay() {
    let tmp = tempfile::tempdir().unwrap();
    let dead = WriterId::parse("r.another-host.0a0b0c0d.1.2.3").unwrap();
    let age = GENEROUS * 2;
    let gone = [
        put(tmp.path().join(dead.temp_name(1)), "", age),
        put(tmp.path().join("m").join(dead.ready_name("prompts.jsonl", 1)), "", age),
        put(tmp.path().join(".lenspool/.intents").join(dead.temp_name(1)), "", age),
    ];
    let stay = [
        put(tmp.path().join(format!("{TEMP_PREFIX}notes")), "", age),
        put(tmp.path().join("m/prompts.jsonl"), "", age),
        put(tmp.path().join("m/prompts.jsonl.tmp"), "", age),
        put(tmp.path().join(".lenspool/.intents/readme.jsonl"), "", age),
    ];
    let swept = store(tmp.path()).sweep();
    assert_eq!(swept.files, 3);
    assert!(gone.iter().all(|path| !path.exists()));
    assert!(stay.iter().all(|path| path.exists()));
}

/// What the stories below kill: commits prompt after prompt until it is.
#[test]
#[ignore = "a part of the stories below, in a process of its own"]
fn victim() {
    let Some(root) = std::env::var_os("LENSPOOL_TEST_VICTIM") else { return };
    let store = store(Path::new(&root));
    let model = model(&store);
    let first: u64 = std::env::var("LENSPOOL_TEST_FIRST").unwrap().parse().unwrap();
    for i in first.. {
        let hash = PromptHash::of(&i.to_string());
        let json = format!("{{\"text\": \"{i}\", \"hash\": \"{hash}\"}}");
        model
            .commit(&hash, json.as_bytes(), |file| {
                for _ in 0..4 {
                    file.write_all(&[b'x'; 1000])?;
                }
                if std::env::var_os("LENSPOOL_TEST_STOP").is_some() {
                    thread::sleep(Duration::from_secs(600));
                }
                Ok(4000)
            })
            .unwrap();
        if i % 3 == 0 {
            store.index_prompts(model.layout()).unwrap();
        }
    }
}

fn start_victim(root: &Path, first: u64, stop: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "store::sweep::tests::victim"]);
    command.env("LENSPOOL_TEST_VICTIM", root).env("LENSPOOL_TEST_FIRST", first.to_string());
    if stop {
        command.env("LENSPOOL_TEST_STOP", "1");
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "still not: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_run_killed_while_it_wrote_leaves_no_trace_after_the_next_start() {
    let tmp = tempfile::tempdir().unwrap();
    let mut victim = start_victim(tmp.path(), 0, true);
    let prompts = tmp.path().join("m/prompts");
    wait_until("the victim writes", || names(&prompts).iter().any(|dir| !names(dir).is_empty()));
    assert_eq!(store(tmp.path()).sweep().files, 0, "it is alive");
    victim.kill().unwrap();
    victim.wait().unwrap();
    let swept = store(tmp.path()).sweep();
    assert_eq!((swept.files, swept.directories, swept.writers), (1, 1, 1));
    assert_eq!(names(&prompts), Vec::<PathBuf>::new());
    assert_eq!(traces(tmp.path()), Vec::<PathBuf>::new());
}

#[test]
fn killed_at_any_moment_nothing_is_torn_nothing_is_lost_and_nothing_is_left() {
    let tmp = tempfile::tempdir().unwrap();
    let layout = store(tmp.path()).layout().model(&ModelName::try_from("m").unwrap());
    let mut committed = 0;
    for round in 0..12 {
        let mut victim = start_victim(tmp.path(), committed, false);
        let json = layout.prompt_json(&PromptHash::of(&committed.to_string()));
        wait_until("the victim committed", || json.exists());
        thread::sleep(Duration::from_micros(rand::random::<u64>() % 20_000));
        victim.kill().unwrap();
        victim.wait().unwrap();

        let store = store(tmp.path());
        let swept = store.sweep();
        assert!(swept.failures.is_empty(), "round {round}: {:?}", swept.failures);
        assert_eq!(traces(tmp.path()), Vec::<PathBuf>::new(), "round {round}");
        // Prompts were committed one after the other: all before the killed one are whole.
        committed = 0;
        loop {
            let hash = PromptHash::of(&committed.to_string());
            let arrays = fs::read(layout.activations(&hash, ArrayLayout::PerLayer)).ok();
            assert!(arrays.as_ref().is_none_or(|arrays| arrays.len() == 4000), "round {round}: torn arrays");
            let Ok(json) = fs::read_to_string(layout.prompt_json(&hash)) else { break };
            assert!(json.ends_with(&format!("\"hash\": \"{hash}\"}}")), "round {round}: torn {json}");
            assert!(arrays.is_some(), "round {round}: prompt.json before the arrays");
            committed += 1;
        }
        assert_eq!(store.index_prompts(&layout).unwrap().lines as u64, committed, "round {round}");
    }
}
