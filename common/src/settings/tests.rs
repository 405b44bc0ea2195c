use std::{collections::BTreeSet, fs, path::PathBuf};

use serde::Serialize;
use serde_json::json;

use super::*;

/// A place with configuration files, an environment and flags.
struct Place {
    dir: tempfile::TempDir,
    sources: Sources,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().join("here");
        fs::create_dir(&here).unwrap();
        let mut place = Place { sources: Sources { directory: here, ..Sources::default() }, dir };
        let home = place.path("home").to_str().unwrap().to_owned();
        place.set("HOME", &home);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn set(&mut self, name: &str, value: &str) {
        self.sources.environment.insert(name.to_owned(), value.to_owned());
    }

    fn load(&self) -> Loaded {
        load(&self.sources).unwrap_or_else(|error| panic!("{error}"))
    }

    fn error(&self) -> String {
        load(&self.sources).map(|loaded| loaded.table()).unwrap_err().to_string()
    }
}

#[test]
fn without_anything_the_defaults_hold_and_are_upstreams() {
    let loaded = Place::new().load();
    let Settings { run, .. } = &loaded.settings;
    assert_eq!(run.save_path, PathBuf::from("attn_data"));
    assert_eq!((run.min_chars, run.max_chars.get(), run.batch_size.get()), (100, 1000, 32));
    assert_eq!(run, &Run::default());
    assert!(loaded.warnings.is_empty());
    let origins: BTreeSet<String> = loaded.rows().into_iter().map(|row| row.origin).collect();
    assert_eq!(origins, BTreeSet::from(["default".to_owned()]));
}

/// The documented configuration file with the comment signs before its keys and sections taken away.
fn uncommented(examples: bool) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest.to_owned(),
        Some(rest) if examples => rest.strip_prefix(" Example: ").unwrap_or("").to_owned(),
        _ => String::new(),
    };
    DEFAULT_FILE.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_documented_file_is_the_defaults() {
    let place = Place::new();
    place.write("here/lenspool.toml", DEFAULT_FILE);
    assert_eq!(
        place.load().rows(),
        Place::new()
            .load()
            .rows()
            .into_iter()
            .map(|mut row| {
                // Only where the home directory is differs.
                if row.key == "hub.cache" {
                    row.value = json!(place.path("home/.cache/huggingface/hub"));
                }
                row
            })
            .collect::<Vec<_>>(),
        "commented out, it changes nothing"
    );

    place.write("here/lenspool.toml", &uncommented(false));
    let loaded = place.load();
    let mut expected = Settings::default();
    expected.hub.cache = Some(place.path("home/.cache/huggingface/hub"));
    assert_eq!(loaded.settings, expected);

    // Every key is in it, as a default or as an example.
    place.write("here/lenspool.toml", &uncommented(true));
    let loaded = place.load();
    let silent: Vec<_> =
        loaded.rows().into_iter().filter(|row| row.origin == "default").map(|row| row.key).collect();
    assert_eq!(silent, Vec::<String>::new(), "missing from deploy/lenspool.toml");
}

#[test]
fn each_layer_goes_over_the_one_before_and_says_so() {
    let mut place = Place::new();
    let user = place.write(
        "home/.config/lenspool/lenspool.toml",
        "[run]\nbatch_size = 1\nmin_chars = 2\nseed = 3\nthreads = 4\n",
    );
    let here = place.write("here/lenspool.toml", "[run]\nmin_chars = 20\nseed = 30\nthreads = 40\n");
    place.set("LENSPOOL_RUN_SEED", "300");
    place.set("LENSPOOL_RUN_THREADS", "400");
    place.sources.flags.0.insert("run.threads".to_owned(), json!(4000));
    let loaded = place.load();
    let run = &loaded.settings.run;
    assert_eq!(
        (run.batch_size.get(), run.min_chars, run.seed, run.threads.unwrap().get()),
        (1, 20, Some(300), 4000)
    );
    assert_eq!(loaded.origin("run.batch_size"), &Origin::File(user));
    assert_eq!(loaded.origin("run.min_chars"), &Origin::File(here));
    assert_eq!(loaded.origin("run.seed"), &Origin::Environment("LENSPOOL_RUN_SEED".to_owned()));
    assert_eq!(loaded.origin("run.threads"), &Origin::Flag("--threads".to_owned()));
    assert_eq!(loaded.origin("run.max_chars"), &Origin::Default);
}

#[test]
fn a_named_file_stands_alone_and_must_be_there() {
    let mut place = Place::new();
    place.write("here/lenspool.toml", "[run]\nseed = 1\n");
    let named = place.write("other.toml", "[run]\nbatch_size = 5\n");
    place.set("LENSPOOL_CONFIG", named.to_str().unwrap());
    let run = place.load().settings.run;
    assert_eq!((run.seed, run.batch_size.get()), (None, 5));
    place.sources.file = Some(place.path("gone.toml"));
    assert!(place.error().starts_with("could not read the configuration file"), "{}", place.error());
}

#[test]
fn every_setting_can_be_said_in_every_layer() {
    // From the documented file's examples and defaults: in the environment each reads the same.
    let place = Place::new();
    place.write("here/lenspool.toml", &uncommented(true));
    let from_file = place.load();
    let mut place = Place::new();
    let secrets = [("hub.token", "hf_..."), ("queue.password", "...")];
    for row in from_file.rows() {
        let secret = secrets.iter().find(|(key, _)| *key == row.key).map(|(_, value)| json!(value));
        match secret.unwrap_or(row.value) {
            serde_json::Value::String(text) => place.set(&row.variable, &text),
            serde_json::Value::Array(values) if values.is_empty() => {
                place.set(&row.variable, "gpt2,pythia-70m")
            }
            serde_json::Value::Array(values) => {
                let values: Vec<_> = values.iter().filter_map(|value| value.as_str()).collect();
                place.set(&row.variable, &values.join(","));
            }
            other => place.set(&row.variable, &other.to_string()),
        }
    }
    let mut from_env = place.load();
    assert_eq!(from_env.warnings, Vec::<String>::new());
    assert_eq!(from_env.settings.run.model, ["gpt2", "pythia-70m"]);
    from_env.settings.run.model.clear();
    assert_eq!(from_env.settings, from_file.settings);
    assert!(from_env.rows().iter().all(|row| row.origin == format!("environment {}", row.variable)));
}

#[test]
fn variables_of_other_tools_are_heeded_below_ours() {
    let mut place = Place::new();
    place.set("AMQP_URL", "amqp://me:sesame@broker/v");
    place.set("HF_ENDPOINT", "http://mirror");
    place.set("HF_HUB_OFFLINE", "ON");
    place.set("HF_HOME", "/shared/hf");
    place.set("HF_TOKEN", "hf_x");
    let loaded = place.load();
    let Settings { queue, hub, .. } = &loaded.settings;
    assert_eq!(queue.amqp.reveal(), "amqp://me:sesame@broker/v");
    assert_eq!((hub.endpoint.as_str(), hub.offline), ("http://mirror", true));
    assert_eq!(hub.cache, Some(PathBuf::from("/shared/hf/hub")));
    assert_eq!(loaded.origin("hub.cache").to_string(), "environment HF_HOME");
    assert_eq!(loaded.origin("hub.offline").to_string(), "environment HF_HUB_OFFLINE");
    let options = hub.options();
    assert_eq!((options.endpoint.as_str(), options.offline), ("http://mirror", true));
    assert_eq!(options.token.unwrap().reveal(), "hf_x");

    place.set("LENSPOOL_HUB_OFFLINE", "false");
    place.set("LENSPOOL_QUEUE_AMQP", "amqp://other");
    place.set("HF_ENDPOINT", "");
    let Settings { queue, hub, .. } = place.load().settings;
    assert_eq!(
        (queue.amqp.reveal(), hub.offline, hub.endpoint.as_str()),
        ("amqp://other", false, "https://huggingface.co")
    );
}

#[test]
fn a_stored_token_is_found_and_named_by_its_file() {
    let mut place = Place::new();
    let file = place.write("hf/token", "hf_stored\n");
    let home = place.path("hf").to_str().unwrap().to_owned();
    place.set("HF_HOME", &home);
    let loaded = place.load();
    assert_eq!(loaded.settings.hub.token.as_ref().unwrap().reveal(), "hf_stored");
    assert_eq!(loaded.origin("hub.token"), &Origin::File(file));
}

#[test]
fn secrets_are_shown_nowhere() {
    let mut place = Place::new();
    place.write("here/lenspool.toml", "[hub]\ntoken = \"sesame-1\"\n[queue]\npassword = \"sesame-2\"\n");
    place.set("AMQP_URL", "amqp://me:sesame-3@broker/v");
    let loaded = place.load();
    let shown = format!("{}\n{}\n{loaded:?}\n{:?}", loaded.table(), loaded.json(), loaded.settings);
    assert!(!shown.contains("sesame"), "{shown}");
    assert!(shown.contains("amqp://me:[hidden]@broker/v"));
    assert_eq!(loaded.settings.queue.password.unwrap().reveal(), "sesame-2");
}

#[test]
fn a_secret_of_the_wrong_kind_is_not_repeated_either() {
    let place = Place::new();
    place.write("here/lenspool.toml", "[queue]\npassword = [\"sesame\"]\n");
    let error = place.error();
    assert!(error.contains("queue.password") && !error.contains("sesame"), "{error}");
}

#[test]
fn what_is_wrong_is_named_with_its_place_and_a_way_out() {
    let place = Place::new();
    for (text, said) in [
        (
            "[run]\nbatchsize = 3\n",
            "sets run.batchsize, which is no setting (did you mean run.batch_size?); `worker config` lists them all",
        ),
        ("[runs]\nseed = 3\n", "sets runs.seed, which is no setting (did you mean run.seed?)"),
        ("colour = 3\n", "sets colour, which is no setting; `worker config`"),
        ("[run]\nbatch_size = \"many\"\n", "sets run.batch_size to what it cannot be: "),
        ("[run]\nbatch_size = 0\n", "sets run.batch_size to what it cannot be: "),
        ("[run]\nbatch_size = -3\n", "sets run.batch_size to what it cannot be: "),
        ("[run]\nbatch_size = 2.5\n", "sets run.batch_size to what it cannot be: 2.5 is a fraction"),
        ("[run]\nforce = \"perhaps\"\n", "sets run.force to what it cannot be: "),
        ("[run]\nprepend_bos = \"sometimes\"\n", "sets run.prepend_bos to what it cannot be: "),
        ("[run]\nbatch_memory = \"2 parsecs\"\n", "sets run.batch_memory to what it cannot be: "),
        ("[run]\nmodel = 3\n", "sets run.model to what it cannot be: "),
        ("[run]\nrun = 3\n", "sets run.run, which is no setting"),
        ("run = 3\n", "sets run, which is no setting"),
        ("[run\nseed = 1\n", "lenspool.toml is not a configuration file: "),
    ] {
        let path = place.write("here/lenspool.toml", text);
        let error = place.error();
        assert!(error.contains(said), "{text:?}: {error}");
        assert!(error.contains(path.to_str().unwrap()), "{text:?}: {error}");
    }
    let syntax = place.error();
    assert!(syntax.contains("line 1, column") && !syntax.contains('\n'), "{syntax}");
    place.write("here/lenspool.toml", "[queue]\npassword = \"sesame\n");
    let syntax = place.error();
    assert!(syntax.contains("line 2") && !syntax.contains("sesame"), "{syntax}");
}

#[test]
fn a_bad_variable_or_flag_is_named() {
    let mut place = Place::new();
    place.set("LENSPOOL_RUN_BATCH_SIZE", "many");
    let error = place.error();
    assert!(
        error.starts_with("environment LENSPOOL_RUN_BATCH_SIZE sets run.batch_size to what it cannot be: "),
        "{error}"
    );
    place.sources.flags.0.insert("run.batch_size".to_owned(), json!("few"));
    assert!(place.error().starts_with("flag --batch-size sets run.batch_size to what"), "{}", place.error());
}

#[test]
fn unknown_variables_are_warned_of() {
    let mut place = Place::new();
    place.set("LENSPOOL_BATCH_SIZE", "3");
    place.set("LENSPOOL_RUN_BATCHSIZE", "3");
    place.set("LENSPOOL_TEST_ANYTHING", "1");
    place.set("LENSPOOL_RUN_SEED", "");
    let loaded = place.load();
    assert_eq!(
        loaded.warnings,
        [
            "the environment variable LENSPOOL_BATCH_SIZE is no setting and is ignored; did you mean \
             LENSPOOL_RUN_BATCH_SIZE?",
            "the environment variable LENSPOOL_RUN_BATCHSIZE is no setting and is ignored; did you mean \
             LENSPOOL_RUN_BATCH_SIZE?",
        ]
    );
    assert_eq!(loaded.settings.run, Run::default());
}

#[test]
fn a_password_that_everybody_can_read_is_warned_of() {
    for (url, warned) in [("amqp://me:pw@host", true), ("amqp://me@host", false)] {
        let mut place = Place::new();
        place.sources.flags.0.insert("queue.amqp".to_owned(), json!(url));
        let warnings = place.load().warnings;
        assert_eq!(warnings.iter().any(|warning| warning.contains("AMQP_URL")), warned, "{warnings:?}");
        assert!(!warnings.join("").contains("pw@"));
    }
    let mut place = Place::new();
    place.set("AMQP_URL", "amqp://me:pw@host");
    assert!(place.load().warnings.is_empty());
}

#[test]
fn flags_come_as_a_struct_of_options() {
    #[derive(Serialize)]
    struct RunFlags {
        model: Vec<String>,
        batch_size: Option<usize>,
        save_path: Option<PathBuf>,
        batch_memory: Option<String>,
        force: bool,
        shuffle: bool,
        prompts: Option<PathBuf>,
    }
    let given = RunFlags {
        model: vec!["gpt2,pythia".to_owned()],
        batch_size: Some(8),
        save_path: Some("out".into()),
        batch_memory: Some("1 GiB".to_owned()),
        force: true,
        shuffle: false,
        prompts: None,
    };
    let mut place = Place::new();
    place.write("here/lenspool.toml", "[run]\nshuffle = true\nprompts = \"p.jsonl\"\n");
    place.sources.flags = Flags::new().section("run", &given);
    let loaded = place.load();
    let run = &loaded.settings.run;
    assert_eq!(run.model, ["gpt2", "pythia"]);
    assert_eq!((run.batch_size.get(), run.force, run.batch_memory.unwrap().0), (8, true, 1 << 30));
    assert!(run.shuffle, "a flag that was not given leaves the file's value");
    assert_eq!(run.prompts, Some(PathBuf::from("p.jsonl")));
    assert_eq!(loaded.origin("run.save_path").to_string(), "flag --save-path");
}

#[test]
fn the_table_and_the_json_tell_the_same() {
    let mut place = Place::new();
    place.set("LENSPOOL_RUN_SEED", "7");
    let loaded = place.load();
    let table = loaded.table();
    let line = table.lines().find(|line| line.starts_with("run.seed ")).unwrap();
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>(),
        ["run.seed", "7", "environment", "LENSPOOL_RUN_SEED"]
    );
    assert!(table.lines().any(|line| line.split_whitespace().eq(["run.prompts", "-", "default"])), "{table}");
    assert_eq!(
        loaded.json()["run.seed"],
        json!({"value": 7, "origin": "environment LENSPOOL_RUN_SEED", "set": true, "variable": "LENSPOOL_RUN_SEED"})
    );
    assert_eq!(table.lines().count(), loaded.json().as_object().unwrap().len());
}
