use std::{
    path::Path,
    process::{Command, Stdio},
    thread,
};

use super::*;
use crate::{
    capture::Capture,
    job::FailureKind,
    store::{ModelStore, layout::ModelName},
};

fn run(name: &str) -> RunId {
    RunId(name.to_owned())
}

fn open(root: &Path, name: &str) -> (Store, ModelStore) {
    let store = Store::new(root, &run(name));
    let model = store.model(&ModelName::try_from("m").unwrap(), &Capture::default(), 2).unwrap();
    (store, model)
}

fn commit(model: &ModelStore, text: &str) -> PromptHash {
    let hash = PromptHash::of(text);
    let json = format!("{{\"text\": \"{text}\", \"hash\": \"{hash}\"}}");
    model.commit(&hash, json.as_bytes(), |file| file.write_all(b"x").map(|()| 1)).unwrap();
    hash
}

fn committed(text: &str) -> Event {
    Event::Committed { hash: PromptHash::of(text), bytes: 10 }
}

fn finished(job: &str) -> Event {
    Event::Finished { job: JobId(job.to_owned()), done: 1, cached: 0, failed: 0, millis: 5 }
}

fn failed(text: &str) -> Event {
    let failure = Failure {
        hash: Some(PromptHash::of(text)),
        kind: FailureKind::Permanent,
        reason: "too\nlong".to_owned(),
    };
    Event::Failed { job: JobId("j".to_owned()), failure, last: false }
}

fn progress(model: &ModelLayout, run: Option<&RunId>) -> Progress {
    let mut progress = Progress::default();
    JournalReader::new(model, run).poll(|_, line| progress.take(line)).unwrap();
    progress
}

#[test]
fn what_was_noted_is_read_back_line_by_line() {
    let tmp = tempfile::tempdir().unwrap();
    let (store, model) = open(tmp.path(), "r");
    let journal = Journal::new(&store, model.layout(), &run("r"));
    assert!(!model.layout().journal().exists(), "nothing noted, nothing made");
    let events = [committed("a"), Event::Cached { hash: PromptHash::of("b") }, failed("c"), finished("j")];
    for event in events.clone() {
        journal.note(event).unwrap();
    }
    let mut read = Vec::new();
    JournalReader::new(model.layout(), None)
        .poll(|writer, line| {
            assert_eq!(writer, store.writer());
            read.push(line.event);
        })
        .unwrap();
    assert!(
        matches!(&read[0], Event::Opened { version: 1, run: r, pid, .. } if *r == run("r") && *pid == std::process::id())
    );
    assert_eq!(read[1..], events);
    let text = fs::read_to_string(files(model.layout()).unwrap().remove(0)).unwrap();
    assert!(text.lines().nth(1).unwrap().contains("\"event\":\"committed\",\"hash\":"), "{text}");
}

#[test]
fn a_reader_gets_each_line_once_and_a_line_in_the_making_when_it_is_made() {
    let tmp = tempfile::tempdir().unwrap();
    let (store, model) = open(tmp.path(), "r");
    let journal = Journal::new(&store, model.layout(), &run("r"));
    let mut reader = JournalReader::new(model.layout(), None);
    let mut poll = || {
        let mut count = 0;
        reader.poll(|_, _| count += 1).unwrap();
        count
    };
    assert_eq!(poll(), 0);
    journal.note(committed("a")).unwrap();
    assert_eq!(poll(), 2);
    assert_eq!(poll(), 0);
    let path = files(model.layout()).unwrap().remove(0);
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    let line = serde_json::to_string(&Line { at: Timestamp::now(), event: committed("b") }).unwrap();
    file.write_all(&line.as_bytes()[..20]).unwrap();
    assert_eq!(poll(), 0);
    file.write_all(&line.as_bytes()[20..]).unwrap();
    assert_eq!(poll(), 0);
    file.write_all(b"\n").unwrap();
    assert_eq!(poll(), 1);
}

#[test]
fn torn_and_unknown_lines_and_strangers_files_are_skipped() {
    let tmp = tempfile::tempdir().unwrap();
    let (store, model) = open(tmp.path(), "r");
    let journal = Journal::new(&store, model.layout(), &run("r"));
    journal.note(committed("a")).unwrap();
    let path = files(model.layout()).unwrap().remove(0);
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(b"{\"at\":\"2030-01-01T00:00:00Z\",\"event\":\"from a later version\"}\n\0\0\0\n{\"at\":")
        .unwrap();
    fs::write(model.layout().journal().join("notes.txt"), "hello\n").unwrap();
    // The writer knows that its last line may be torn.
    journal.state.lock().unwrap().torn = true;
    journal.note(committed("b")).unwrap();
    assert_eq!(progress(model.layout(), None).committed(), 2);
}

#[test]
fn prompts_count_once_and_a_failure_is_forgotten_when_another_try_succeeds() {
    let at = Timestamp::now();
    let mut progress = Progress::default();
    for event in
        [failed("a"), committed("a"), failed("a"), committed("a"), failed("b"), failed("b"), finished("j")]
    {
        progress.take(Line { at, event });
    }
    assert_eq!((progress.committed(), progress.finished(), progress.bytes), (1, 1, 20));
    assert_eq!(
        progress.failed().map(|failed| failed.failure.hash.clone()).collect::<Vec<_>>(),
        [Some(PromptHash::of("b"))]
    );
    assert!(progress.is_finished(&JobId("j".to_owned())));
    assert_eq!(progress.span, Some((at, at)));
}

#[test]
fn the_index_of_a_run_is_built_from_its_journals_alone() {
    let tmp = tempfile::tempdir().unwrap();
    for (name, texts) in [("one", ["a", "b"]), ("two", ["c", "d"])] {
        let (store, model) = open(tmp.path(), name);
        let journal = Journal::new(&store, model.layout(), &run(name));
        for text in texts {
            let hash = commit(&model, text);
            journal.note(Event::Committed { hash, bytes: 1 }).unwrap();
        }
        journal.finish(finished("j")).unwrap();
        commit(&model, &format!("of {name}, not noted"));
    }
    let (store, model) = open(tmp.path(), "three");
    let index = || fs::read_to_string(model.layout().prompts_jsonl()).unwrap().lines().count();
    assert_eq!(progress(model.layout(), Some(&run("two"))).committed(), 2);
    assert_eq!(store.index_run(model.layout(), Some(&run("two"))).unwrap().lines, 2);
    assert_eq!(index(), 2);
    assert_eq!(store.index_run(model.layout(), None).unwrap().lines, 4);
    assert_eq!(index(), 4);
    assert_eq!(store.index_prompts(model.layout()).unwrap().lines, 6);
}

/// What the story below kills.
#[test]
#[ignore = "a part of the story below, in processes of its own"]
fn worker() {
    let Some(root) = std::env::var_os("LENSPOOL_TEST_WORKER") else { return };
    let number = std::env::var("LENSPOOL_TEST_NUMBER").unwrap();
    let (store, model) = open(Path::new(&root), "r");
    let journal = Journal::new(&store, model.layout(), &run("r"));
    for i in 0..40 {
        let hash = commit(&model, &format!("{number}.{i}"));
        journal.note(Event::Committed { hash, bytes: 1 }).unwrap();
        if i % 8 == 7 {
            journal.finish(finished(&format!("{number}.{i}"))).unwrap();
            store.index_run(model.layout(), Some(&run("r"))).unwrap();
        }
    }
}

#[test]
fn several_processes_one_killed_and_the_index_holds_what_they_noted() {
    let tmp = tempfile::tempdir().unwrap();
    let mut workers: Vec<_> = (0..4)
        .map(|number: u32| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "store::journal::tests::worker"])
                .env("LENSPOOL_TEST_WORKER", tmp.path())
                .env("LENSPOOL_TEST_NUMBER", number.to_string())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let layout = Store::new(tmp.path(), &run("r")).layout().model(&ModelName::try_from("m").unwrap());
    let mut seen = 0;
    let mut victim = workers.pop().unwrap();
    while workers.iter_mut().any(|worker| worker.try_wait().unwrap().is_none()) {
        let text = fs::read_to_string(layout.prompts_jsonl()).unwrap_or_default();
        assert!(text.is_empty() || text.ends_with('\n'));
        let now = text.lines().count();
        assert!(now >= seen, "shrank from {seen} to {now}");
        seen = now;
        if seen > 20 {
            let _ = victim.kill();
        }
        thread::sleep(std::time::Duration::from_millis(1));
    }
    let _ = victim.kill();
    victim.wait().unwrap();
    for mut worker in workers {
        assert!(worker.wait().unwrap().success());
    }
    let noted = progress(&layout, None).committed();
    assert!(noted >= 3 * 40);
    let (store, model) = open(tmp.path(), "r");
    let lines = store.index_run(model.layout(), None).unwrap().lines;
    assert!(lines == noted, "{lines} lines of {noted} noted prompts");
    // Of the killed one, one prompt may be committed and not noted.
    let all = store.index_prompts(model.layout()).unwrap().lines;
    assert!((lines..=lines + 1).contains(&all), "{all} and {lines}");
}
