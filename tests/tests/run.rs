//! `worker run` as a user meets it: the real binary, from a prompt file to a data directory.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{
    Ended, binary, check_committed, end, example_prompts, fixture, hub_cache, prompt_dirs, read_npz,
    repository, worker_run,
};

const MODEL: &str = "gpt2-tiny";

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn run_raw(save_path: &Path, extra: &[&str]) -> Ended {
    let mut command = worker_run(&fixture(MODEL), &example_prompts(), save_path);
    command.arg("--raw-prompts").args(extra);
    end(command)
}

/// A prompt file of `n` short texts.
fn prompt_file(dir: &TempDir, n: usize) -> std::path::PathBuf {
    let path = dir.path().join("prompts.jsonl");
    let text: String = (0..n)
        .map(|i| {
            format!(
                "{}\n",
                json!({"text": format!("The {i}th of some words, and more of them. ").repeat(i % 5 + 1)})
            )
        })
        .collect();
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_first_run_writes_the_whole_tree_and_a_second_computes_nothing() {
    let dir = TempDir::new().unwrap();
    let first = run_raw(dir.path(), &[]).expect(0).json();
    let model = &first["models"][0];
    let done = model["done"].as_u64().unwrap() as usize;
    assert!(done > 50, "{first:#}");
    assert_eq!(check_committed(dir.path(), MODEL), Ok(done));
    assert_eq!(
        model["npz_bytes"].as_u64().unwrap(),
        prompt_dirs(dir.path(), MODEL)
            .values()
            .map(|d| fs::metadata(d.join("activations.npz")).unwrap().len())
            .sum::<u64>()
    );

    let index = lines(&dir.path().join(MODEL).join("prompts.jsonl"));
    let indexed: BTreeSet<_> = index.iter().map(|line| line["hash"].as_str().unwrap().to_owned()).collect();
    assert_eq!(indexed, prompt_dirs(dir.path(), MODEL).into_keys().collect());
    let models = lines(&dir.path().join("models.jsonl"));
    assert_eq!(
        (models.len(), &models[0]["sanitized_name"], &models[0]["model_name"]),
        (1, &json!(MODEL), &json!(MODEL))
    );
    assert!(dir.path().join("figures.jsonl").exists() && dir.path().join("index.html").exists());

    let second = run_raw(dir.path(), &[]).expect(0).json();
    let model = &second["models"][0];
    assert_eq!((model["done"].as_u64(), model["cached"].as_u64()), (Some(0), Some(done as u64)));
    assert_eq!(model["seconds"]["load"], json!(0.0), "the model was loaded for nothing");
    assert_eq!(lines(&dir.path().join(MODEL).join("prompts.jsonl")), index, "the index changed");

    let again = run_raw(dir.path(), &["--force"]).expect(0).json();
    assert_eq!(again["models"][0]["done"].as_u64(), Some(done as u64));
}

#[test]
fn without_a_prompt_file_the_model_s_own_prompts_are_read() {
    let dir = TempDir::new().unwrap();
    let done = run_raw(dir.path(), &["-n", "5"]).expect(0).json()["models"][0]["done"].clone();
    let mut command = binary("worker");
    command
        .arg("run")
        .arg("-m")
        .arg(fixture(MODEL))
        .arg("-s")
        .arg(dir.path())
        .args(["--json", "--force", "--device", "cpu"]);
    assert_eq!(end(command).expect(0).json()["models"][0]["done"], done);
}

#[test]
fn every_compression_stores_the_same_numbers() {
    let dir = TempDir::new().unwrap();
    let saved = |how: &str| {
        let path = dir.path().join(how.replace(':', "-"));
        run_raw(&path, &["-n", "6", "--compress", how]).expect(0);
        path
    };
    let reference = saved("store");
    for how in ["causal", "zlib:1", "zlib:9"] {
        let path = saved(how);
        for (hash, prompt) in prompt_dirs(&reference, MODEL) {
            let other = path.join(MODEL).join("prompts").join(&hash);
            assert_eq!(
                read_npz(&prompt.join("activations.npz")),
                read_npz(&other.join("activations.npz")),
                "{how} {hash}"
            );
        }
    }
}

#[test]
fn layers_are_chosen_added_and_kept() {
    let dir = TempDir::new().unwrap();
    let held = || {
        let dirs = prompt_dirs(dir.path(), MODEL);
        let names: BTreeSet<Vec<_>> = dirs
            .values()
            .map(|d| read_npz(&d.join("activations.npz")).unwrap().into_keys().collect())
            .collect();
        assert_eq!(names.len(), 1, "{names:?}");
        names.into_iter().next().unwrap()
    };
    let name = |layer: usize| format!("blocks.{layer}.attn.hook_pattern");
    let counts = |ended: Ended| {
        let model = ended.expect(0).json()["models"][0].clone();
        (model["done"].as_u64().unwrap(), model["cached"].as_u64().unwrap())
    };
    assert_eq!(counts(run_raw(dir.path(), &["-n", "4", "--layers", "1"])), (4, 0));
    assert_eq!(held(), [name(1)]);
    assert_eq!(counts(run_raw(dir.path(), &["-n", "4", "--names-filter", r"blocks\.1\."])), (0, 4));
    assert_eq!(counts(run_raw(dir.path(), &["-n", "4", "--layers", "0"])), (4, 0));
    assert_eq!(held(), [name(0), name(1)], "a layer that was kept before is lost");
    assert_eq!(counts(run_raw(dir.path(), &["-n", "4", "--layers", "0-1"])), (0, 4));
    let (done, cached) = counts(run_raw(dir.path(), &["-n", "4"]));
    assert_eq!((done, cached), (4, 0), "a file that lacks layers counted as cached");
    assert!(held().len() > 2);

    let whole = TempDir::new().unwrap();
    run_raw(whole.path(), &["-n", "4"]).expect(0);
    for (hash, prompt) in prompt_dirs(whole.path(), MODEL) {
        let pieced = dir.path().join(MODEL).join("prompts").join(&hash).join("activations.npz");
        assert_eq!(read_npz(&prompt.join("activations.npz")), read_npz(&pieced), "{hash}");
    }
}

#[test]
fn stacked_heads_are_one_array_of_all_layers() {
    use ndarray_npy::ReadNpyExt;
    let dir = TempDir::new().unwrap();
    run_raw(dir.path(), &["-n", "3", "--stacked-heads"]).expect(0);
    let again = run_raw(dir.path(), &["-n", "3", "--stacked-heads"]).expect(0).json();
    assert_eq!(again["models"][0]["cached"], json!(3));
    // Upstream takes a stacked file for no cached one, and so do we in a run that is not stacked.
    let apart = run_raw(dir.path(), &["-n", "3"]).expect(0).json();
    assert_eq!(apart["models"][0]["done"], json!(3));
    for prompt in prompt_dirs(dir.path(), MODEL).values() {
        let file = fs::File::open(prompt.join("activations-blocks.-.attn.hook_pattern.npy")).unwrap();
        let stacked = ndarray::ArrayD::<f32>::read_npy(file).unwrap();
        let layers = read_npz(&prompt.join("activations.npz")).unwrap();
        assert_eq!(stacked.shape()[1], layers.len());
        for (layer, array) in stacked.index_axis(ndarray::Axis(0), 0).outer_iter().enumerate() {
            let single = &layers[&format!("blocks.{layer}.attn.hook_pattern")];
            assert_eq!(array, single.index_axis(ndarray::Axis(0), 0), "layer {layer}");
        }
    }
}

#[test]
fn a_bad_line_is_named_and_costs_only_itself() {
    let dir = TempDir::new().unwrap();
    let path = prompt_file(&dir, 4);
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str("\n{\"text\": \"no end\n{\"no_text\": 1}\n{\"text\": \"the last one is good\"}\n");
    fs::write(&path, text).unwrap();
    let save = dir.path().join("data");
    let ended = end(worker_run(&fixture(MODEL), &path, &save)).expect(65);
    let ended = ended.says("prompts.jsonl:6:").says("prompts.jsonl:7:").says("\"text\"");
    assert_eq!(ended.json()["bad_lines"], json!(2));
    assert_eq!(check_committed(&save, MODEL), Ok(5));
}

#[test]
fn mistakes_are_told_in_one_sentence_and_exit_78() {
    let dir = TempDir::new().unwrap();
    let prompts = prompt_file(&dir, 1);
    let cases: [(&[&str], &str); 12] = [
        (&["--layers", "0-99"], "layer 99 was asked for, but gpt2-tiny has layers 0 to"),
        (&["--layers", "first"], "--layers: \"first\" is no list of layers"),
        (&["--names-filter", "hook_resid"], "lenspool captures attention patterns only"),
        (&["--names-filter", "("], "--names-filter is no regular expression"),
        (&["--stacked-heads", "--layers", "0"], "cannot be combined"),
        (
            &["--batch-size", "0"],
            "flag --batch-size sets run.batch_size to what it cannot be: invalid value: integer `0`, expected a whole \
             number from 1 on",
        ),
        (&["--batch-memory", "much"], "flag --batch-memory sets run.batch_memory to what it cannot be"),
        (&["--dtype", "float8"], "\"float8\" is none of float32, float16"),
        (&["--compress", "zlib:12"], "zlib:12"),
        (&["--device", "tpu"], "tpu"),
        (&["--on-too-long", "explode"], "\"explode\" is none of truncate, skip, fail"),
        (
            &["--max-chars", "5", "--min-chars", "9"],
            "--max-chars must be at least 1 and no less than --min-chars",
        ),
    ];
    for (flags, message) in cases {
        let mut command = worker_run(&fixture(MODEL), &prompts, &dir.path().join("data"));
        command.args(flags);
        end(command).expect(78).says(message);
    }
    let nowhere = dir.path().join("nowhere.jsonl");
    end(worker_run(&fixture(MODEL), &nowhere, &dir.path().join("data"))).expect(78).says("nowhere.jsonl");
    end(worker_run(Path::new("no-such-model-anywhere"), &prompts, &dir.path().join("data")))
        .expect(78)
        .says("no-such-model-anywhere");
    assert!(!dir.path().join("data").exists(), "a run that could not begin left something behind");
}

#[test]
fn a_hub_cache_is_read_offline_and_every_spelling_leads_to_one_directory() {
    let dir = TempDir::new().unwrap();
    let (home, save) = (dir.path().join("hf"), dir.path().join("data"));
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = hub_cache(&home, "openai-community/gpt2", commit, &fixture(MODEL));
    let prompts = prompt_file(&dir, 6);
    let run = |model: &str| {
        let mut command = worker_run(Path::new(model), &prompts, &save);
        command.env("HF_HOME", &home);
        end(command)
    };
    let first = run("gpt2").expect(0).json();
    assert_eq!((&first["models"][0]["done"], &first["models"][0]["commit"]), (&json!(6), &json!(commit)));
    // All is cached now, so nothing needs the weights.
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    for spelling in ["openai-community/gpt2", "gpt2-small", "gpt2"] {
        let again = run(spelling).expect(0).json();
        assert_eq!(
            (&again["models"][0]["model"], &again["models"][0]["cached"]),
            (&json!("gpt2"), &json!(6)),
            "{spelling}"
        );
    }
    // Others do.
    let other = prompt_file(&dir, 7);
    let mut command = worker_run(Path::new("gpt2"), &other, &save);
    command.env("HF_HOME", &home);
    end(command).expect(78).says("hf download openai-community/gpt2");
    run("EleutherAI/pythia-70m").expect(78).says("hf download EleutherAI/pythia-70m");
}

#[test]
fn a_hub_that_does_not_answer_may_answer_later_whatever_asks() {
    let dir = TempDir::new().unwrap();
    let model = "some-org/some-model";
    let mut run = worker_run(Path::new(model), &prompt_file(&dir, 1), &dir.path().join("data"));
    let mut models = binary("worker");
    models.args(["models", model]);
    let mut bench = binary("worker");
    bench.args(["bench", "forward", "-m", model]);
    // Nobody listens there.
    let nobody = [("HF_HUB_OFFLINE", "0"), ("HF_ENDPOINT", "http://127.0.0.1:9")];
    for command in [&mut run, &mut models, &mut bench] {
        command.env("HF_HOME", dir.path()).envs(nobody);
    }
    for command in [run, models, bench] {
        let ended = end(command).expect(75);
        assert!(
            format!("{ended:#?}").contains("could not fetch config.json of some-org/some-model"),
            "{ended:#?}"
        );
    }
}

#[test]
fn a_directory_of_another_model_is_not_mixed_with() {
    let dir = TempDir::new().unwrap();
    let prompts = prompt_file(&dir, 2);
    let (one, two) = (dir.path().join("a/model"), dir.path().join("b/model"));
    for (path, name) in [(&one, MODEL), (&two, "gpt2-unscaled")] {
        fs::create_dir_all(path).unwrap();
        for entry in fs::read_dir(fixture(name)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), path.join(entry.file_name())).unwrap();
        }
    }
    let save = dir.path().join("data");
    end(worker_run(&one, &prompts, &save)).expect(0);
    end(worker_run(&two, &prompts, &save))
        .expect(78)
        .says("holds patterns of another model")
        .says("commit is");
}

#[test]
fn a_device_that_is_not_there_leaves_the_directory_to_others() {
    let dir = TempDir::new().unwrap();
    let (prompts, save) = (prompt_file(&dir, 2), dir.path().join("data"));
    let mut command = worker_run(&fixture(MODEL), &prompts, &save);
    // On a GPU machine there is no such card either.
    command.args(["--device", "cuda:99", "--compute-dtype", "bf16"]);
    end(command).expect(78).says("--device cuda:99");
    end(worker_run(&fixture(MODEL), &prompts, &save)).expect(0);
}

#[test]
fn a_shuffle_tells_the_seed_that_repeats_it() {
    let dir = TempDir::new().unwrap();
    run_raw(&dir.path().join("data"), &["--shuffle"]).expect(0).says("shuffled with --seed ");
}

#[test]
fn an_old_repository_that_has_its_weights_as_a_pickle_alone_runs() {
    let (dir, home) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (name, commit) = ("gpt-neo-pickle", "0123456789abcdef0123456789abcdef01234567");
    hub_cache(home.path(), &format!("org/{name}"), commit, &fixture(name));
    let prompts = prompt_file(&dir, 10);
    let mut saved = Vec::new();
    for model in [fixture(name), format!("org/{name}").into()] {
        let save = dir.path().join(format!("data-{}", saved.len()));
        let mut command = worker_run(&model, &prompts, &save);
        command.env("HF_HOME", home.path());
        let summary = end(command).expect(0).json();
        let model = &summary["models"][0];
        let called = model["model"].as_str().unwrap().to_owned();
        assert_eq!((&model["done"], check_committed(&save, &called)), (&json!(10), Ok(10)), "{summary:#}");
        saved.push(prompt_dirs(&save, &called));
    }
    for (hash, there) in &saved[0] {
        let bytes = |dir: &Path| fs::read(dir.join("activations.npz")).unwrap();
        assert!(bytes(there) == bytes(&saved[1][hash]), "{hash}");
    }
}

#[test]
fn several_models_run_one_after_the_other_and_one_that_fails_does_not_stop_them() {
    let dir = TempDir::new().unwrap();
    let prompts = prompt_file(&dir, 3);
    let models = format!("{},no-such-model,{}", fixture(MODEL).display(), fixture("neox-tiny").display());
    let ended = end(worker_run(Path::new(&models), &prompts, dir.path())).expect(78).says("no-such-model");
    let done: Vec<_> = ended.json()["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["model"].clone(), m["done"].clone()))
        .collect();
    assert_eq!(
        done,
        [(json!(MODEL), json!(3)), (json!("no-such-model"), json!(0)), (json!("neox-tiny"), json!(3))]
    );
    assert!(ended.json()["models"][1]["error"].as_str().unwrap().contains("no-such-model"), "{ended:#?}");
    assert_eq!(lines(&dir.path().join("models.jsonl")).len(), 2);
}

#[test]
fn settings_come_from_everywhere_and_config_says_from_where() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("lenspool.toml");
    fs::write(&file, "[run]\nbatch_size = 3\nmin_chars = 7\n[hub]\ntoken = \"hf_do_not_show\"\n").unwrap();
    let mut command = binary("worker");
    command
        .args(["config", "--json", "--max-chars", "99", "--config"])
        .arg(&file)
        .env("LENSPOOL_RUN_MIN_CHARS", "8");
    let ended = end(command).expect(0);
    assert!(!ended.stdout.contains("hf_do_not_show"), "{ended:#?}");
    let row = |key: &str| {
        let row = ended.json()[key].clone();
        (row["value"].clone(), row["origin"].as_str().unwrap().to_owned())
    };
    assert_eq!(row("run.batch_size").0, json!(3));
    assert!(row("run.batch_size").1.contains("lenspool.toml"), "{ended:#?}");
    assert_eq!(row("run.min_chars").0, json!(8));
    assert!(row("run.min_chars").1.contains("LENSPOOL_RUN_MIN_CHARS"));
    assert_eq!(row("run.max_chars").0, json!(99));
    assert!(row("run.max_chars").1.contains("--max-chars"));
    assert_eq!(row("run.device"), (json!("auto"), "default".to_owned()));
}

#[test]
fn models_says_what_is_supported_and_why_not() {
    let mut command = binary("worker");
    command.arg("models").arg(fixture("neox-tiny"));
    assert!(end(command).expect(0).stdout.contains("is supported"));
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.json"), r#"{"model_type": "mamba"}"#).unwrap();
    fs::copy(fixture(MODEL).join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let mut command = binary("worker");
    command.arg("models").arg(dir.path());
    let ended = end(command).expect(78);
    assert!(ended.stdout.contains("mamba") && ended.stdout.contains("gpt2"), "{ended:#?}");
}

#[test]
fn half_precision_takes_half_the_bytes_and_reads_back_within_its_bound() {
    use ndarray_npy::ReadNpyExt;
    let dir = TempDir::new().unwrap();
    let (full, half) = (dir.path().join("full"), dir.path().join("half"));
    run_raw(&full, &["-n", "3", "--stacked-heads"]).expect(0);
    run_raw(&half, &["-n", "3", "--stacked-heads", "--dtype", "float16"]).expect(0);
    let name = "activations-blocks.-.attn.hook_pattern.npy";
    for (hash, prompt) in prompt_dirs(&full, MODEL) {
        let exact = ndarray::ArrayD::<f32>::read_npy(fs::File::open(prompt.join(name)).unwrap()).unwrap();
        let bytes = fs::read(half.join(MODEL).join("prompts").join(&hash).join(name)).unwrap();
        let values = &bytes[bytes.len() - 2 * exact.len()..];
        assert!(String::from_utf8_lossy(&bytes[..128]).contains("'<f2'"));
        for (exact, stored) in exact.iter().zip(values.chunks_exact(2)) {
            let stored = half_to_f32(u16::from_le_bytes([stored[0], stored[1]]));
            let bound = (exact * 2f32.powi(-11)).max(2f32.powi(-25));
            assert!((exact - stored).abs() <= bound, "{hash}: {exact} became {stored}");
        }
    }
}

/// IEEE 754 binary16 to binary32, for numbers from 0 to 1.
fn half_to_f32(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10), f32::from(bits & 0x3ff));
    if exponent == 0 {
        fraction * 2f32.powi(-24)
    } else {
        (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15)
    }
}

#[test]
fn a_prompt_that_fails_is_named_and_the_others_are_done() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("prompts.jsonl");
    let long = "word after word ".repeat(200);
    fs::write(&path, format!("{}\n{}\n", json!({"text": "a short one"}), json!({"text": long}))).unwrap();
    let run = |what: &str, code: i32| {
        let save = dir.path().join(what);
        let mut command = worker_run(&fixture(MODEL), &path, &save);
        command.args(["--on-too-long", what]);
        end(command).expect(code).json()["models"][0].clone()
    };
    let failed = run("fail", 65);
    assert_eq!((&failed["done"], &failed["failed"]), (&json!(1), &json!(1)));
    assert!(
        failed["failures"][0]["reason"].as_str().unwrap().contains("tokens are more than the model's 64"),
        "{failed:#}"
    );
    assert!(failed["failures"][0]["hash"].is_string());
    assert_eq!(
        (run("skip", 0)["skipped"].clone(), run("truncate", 0)["truncated"].clone()),
        (json!(1), json!(1))
    );
}

/// numpy and the real pattern_lens read what was written, and its figures step runs on it.
#[test]
fn numpy_and_pattern_lens_read_the_files() {
    let python = std::env::var_os("LENSPOOL_TEST_PYTHON").map(Into::into);
    let python = python.unwrap_or_else(|| repository().join("target/readback-venv/bin/python"));
    assert!(python.exists(), "{} is missing: tests/run makes it", python.display());
    let dir = TempDir::new().unwrap();
    run_raw(dir.path(), &["-n", "12"]).expect(0);
    let mut command = std::process::Command::new(python);
    command.arg(repository().join("tests/python/readback.py")).arg(dir.path()).arg(MODEL);
    end(command).expect(0);
}

#[test]
fn a_soak_tells_memory_after_every_tenth() {
    let mut command = binary("worker");
    command.args([
        "bench",
        "soak",
        "--batches",
        "12",
        "--batch-size",
        "3",
        "--device",
        "cpu",
        "--json",
        "-m",
    ]);
    command.arg(fixture(MODEL));
    let report = end(command).expect(0).json();
    let tenths = report["tenths"].as_array().unwrap();
    assert_eq!((tenths.len(), &tenths[9]["batches"], &report["prompts"]), (10, &json!(12), &json!(36)));
    let memory = |at: usize| tenths[at]["host_bytes"].as_i64().unwrap();
    assert_eq!(report["host_growth_bytes"].as_i64(), Some(memory(9) - memory(1)), "{report:#}");
    assert_eq!((&report["device_growth_bytes"], &report["device_total_bytes"]), (&Value::Null, &Value::Null));
    assert!(report["batches_per_s"].as_f64().unwrap() > 0.0);

    let mut command = binary("worker");
    command.args(["bench", "soak", "--batches", "9", "--device", "cpu", "-m"]).arg(fixture(MODEL));
    end(command).expect(2).says("9 is not in 10..");
}
