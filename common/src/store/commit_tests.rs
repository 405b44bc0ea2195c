use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::*;
use crate::capture::Layers;

fn run() -> RunId {
    RunId("run-1".to_owned())
}

fn gpt2(store: &Store) -> ModelStore {
    store.model(&ModelName::try_from("gpt2").unwrap(), &Capture::default(), 12).unwrap()
}

/// Every file under `dir`, as paths relative to it, in order.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_commit_is_two_whole_files_and_nothing_else() {
    let tmp = tempfile::tempdir().unwrap();
    let save = tmp.path().join("deep/attn_data");
    let store = Store::new(&save, &run());
    assert!(!save.exists(), "opening writes nothing");
    let committed = gpt2(&store)
        .commit(&PromptHash::of("test prompt"), b"{}", |file| file.write_all(b"arrays").map(|()| 6))
        .unwrap();
    assert_eq!(committed, Committed { array_bytes: 6, json_bytes: 2 });
    drop(store);
    let dir = "gpt2/prompts/C7p4x9-iwFxWSKCb8kbLfQ";
    assert_eq!(files(&save), [format!("{dir}/activations.npz"), format!("{dir}/prompt.json")]);
    assert_eq!(fs::read(save.join(dir).join("activations.npz")).unwrap(), b"arrays");
    let mode = fs::metadata(save.join(dir).join("prompt.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o600, 0o600);
}

#[test]
fn the_umask_decides_who_may_read_as_for_any_file() {
    // tempfile's own files are 0600 whatever the umask says: a group could not read them.
    let tmp = tempfile::tempdir().unwrap();
    let store = Store::new(tmp.path(), &run());
    let hash = PromptHash::of("x");
    let model = gpt2(&store);
    model.commit(&hash, b"{}", |_| Ok(0)).unwrap();
    let plain = tmp.path().join("plain");
    fs::write(&plain, "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&model.layout().prompt_json(&hash)), mode(&plain));
}

#[test]
fn prompt_json_comes_last_and_an_array_file_that_fails_leaves_neither() {
    let tmp = tempfile::tempdir().unwrap();
    let store = Store::new(tmp.path(), &run());
    let model = gpt2(&store);
    let hash = PromptHash::of("x");
    let error = model
        .commit(&hash, b"{}", |file| {
            file.write_all(b"half a fi")?;
            Err(Errno::NOSPC.into())
        })
        .unwrap_err();
    assert!(error.is_retryable());
    assert!(error.to_string().contains("No space left"), "{error}");
    let left: Vec<_> = files(&tmp.path().join("gpt2"));
    assert!(left.is_empty(), "{left:?}");
    // The same prompt succeeds later.
    model.commit(&hash, b"{}", |_| Ok(0)).unwrap();
}

#[test]
fn while_the_arrays_are_written_no_final_name_exists_and_the_intent_is_noted() {
    let tmp = tempfile::tempdir().unwrap();
    let store = Store::new(tmp.path(), &run());
    let model = gpt2(&store);
    let hash = PromptHash::of("x");
    let dir = model.layout().prompt(&hash);
    model
        .commit(&hash, b"{}", |_| {
            let names = files(&dir);
            assert_eq!(names.len(), 1);
            assert_eq!(WriterId::of_temp_name(&names[0]).as_ref(), Some(store.writer()));
            let noted = fs::read_dir(store.layout().intents()).unwrap().next().unwrap().unwrap().path();
            assert!(fs::read_to_string(noted).unwrap().contains(hash.as_str()));
            Ok(0)
        })
        .unwrap();
}

#[test]
fn a_prompt_directory_swept_away_while_empty_is_made_again() {
    let tmp = tempfile::tempdir().unwrap();
    let store = Store::new(tmp.path(), &run());
    let model = gpt2(&store);
    let prompts = model.layout().prompts();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            while !done.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(60) {
                for entry in fs::read_dir(&prompts).into_iter().flatten().flatten() {
                    let _ = fs::remove_dir(entry.path());
                }
            }
        });
        for n in 0..50 {
            model.commit(&PromptHash::of(&n.to_string()), b"{}", |_| Ok(0)).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn many_threads_commit_into_one_model() {
    let tmp = tempfile::tempdir().unwrap();
    let store = Store::new(tmp.path(), &run());
    let model = gpt2(&store);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let model = &model;
            scope.spawn(move || {
                let hashes: Vec<_> = (0..8).map(|i| PromptHash::of(&format!("{thread}.{i}"))).collect();
                let announced = model.announce(hashes.clone()).unwrap();
                for hash in &hashes {
                    model.commit(hash, b"{}", |file| file.write_all(b"x").map(|()| 1)).unwrap();
                }
                drop(announced);
            });
        }
    });
    drop((model, store));
    assert_eq!(files(tmp.path()).len(), 2 * 64);
}

#[test]
fn a_committed_prompt_is_replaced_whole() {
    let tmp = tempfile::tempdir().unwrap();
    let store = Store::new(tmp.path(), &run());
    let model = gpt2(&store);
    let hash = PromptHash::of("x");
    model.commit(&hash, b"{\"a\": 1}", |file| file.write_all(b"first").map(|()| 5)).unwrap();
    model.commit(&hash, b"{}", |file| file.write_all(b"2nd").map(|()| 3)).unwrap();
    let dir = model.layout().prompt(&hash);
    assert_eq!(fs::read(dir.join("activations.npz")).unwrap(), b"2nd");
    assert_eq!(fs::read(dir.join("prompt.json")).unwrap(), b"{}");
}

#[test]
fn partial_and_half_precision_captures_are_marked_before_anything_is_written() {
    let tmp = tempfile::tempdir().unwrap();
    let store = Store::new(tmp.path(), &run());
    let name = ModelName::try_from("gpt2").unwrap();
    let layout = store.layout().model(&name);
    let some = |layers: &[usize]| Layers::Only(layers.iter().copied().collect::<BTreeSet<_>>());
    store.model(&name, &Capture { layers: some(&[0, 1]), ..Capture::default() }, 2).unwrap();
    assert!(!layout.partial_mark().exists(), "these are all the layers");
    store.model(&name, &Capture { layers: some(&[1]), ..Capture::default() }, 2).unwrap();
    assert!(layout.partial_mark().exists());
    assert!(!layout.float16_mark().exists());
    store.model(&name, &Capture { dtype: Dtype::Float16, ..Capture::default() }, 2).unwrap();
    assert!(layout.float16_mark().exists());
}

#[test]
fn a_stacked_array_of_some_layers_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let capture = Capture {
        layers: Layers::Only(BTreeSet::from([1])),
        layout: ArrayLayout::Stacked,
        ..Capture::default()
    };
    let error =
        Store::new(tmp.path(), &run()).model(&ModelName::try_from("m").unwrap(), &capture, 2).unwrap_err();
    assert!(!error.is_retryable());
    assert!(error.to_string().contains("do without --stacked-heads"), "{error}");
}

#[test]
fn replace_makes_the_directory_and_replaces_whole() {
    let tmp = tempfile::tempdir().unwrap();
    let store = Store::new(tmp.path(), &run());
    let target = tmp.path().join("gpt2/model_cfg.json");
    store.replace(&target, b"{}").unwrap();
    store.replace(&target, b"{\"n_layers\": 12}").unwrap();
    assert_eq!(files(tmp.path()), ["gpt2/model_cfg.json"]);
    assert_eq!(fs::read(&target).unwrap(), b"{\"n_layers\": 12}");
}

/// A full disk, as it really is: needs the right to mount, and says so where it has none.
#[test]
#[ignore = "mounts a small tmpfs: run as root with --ignored"]
fn a_full_file_system_leaves_no_torn_file_and_the_run_goes_on_when_there_is_room() {
    let tmp = tempfile::tempdir().unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(tmp.path())
        .status();
    assert!(mount.is_ok_and(|status| status.success()), "this test needs the right to mount a tmpfs");
    let outcome = std::panic::catch_unwind(|| {
        let store = Store::new(tmp.path(), &run());
        let model = gpt2(&store);
        let put = |text: &str| {
            model.commit(&PromptHash::of(text), b"{\"hash\": \"x\"}", |file| {
                file.write_all(&[7; 100_000]).map(|()| 100_000)
            })
        };
        let texts: Vec<String> = (0..20).map(|i| i.to_string()).collect();
        let (done, failed): (Vec<_>, Vec<_>) = texts.iter().partition(|text| put(text).is_ok());
        assert!(done.len() >= 5 && failed.len() >= 5, "{} and {}", done.len(), failed.len());
        let error = put(failed[0]).unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains("the file system is full"), "{error}");
        for path in files(&tmp.path().join("gpt2")) {
            assert!(path.ends_with("/activations.npz") || path.ends_with("/prompt.json"), "{path} stayed");
        }
        for text in &done {
            let arrays = model.layout().activations(&PromptHash::of(text), ArrayLayout::PerLayer);
            assert_eq!(fs::metadata(arrays).unwrap().len(), 100_000);
        }
        for text in &done {
            fs::remove_dir_all(model.layout().prompt(&PromptHash::of(text))).unwrap();
        }
        put(failed[0]).unwrap();
    });
    let _ = std::process::Command::new("umount").arg("-l").arg(tmp.path()).status();
    outcome.unwrap();
}
