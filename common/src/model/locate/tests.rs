use std::{fs, path::PathBuf, time::Duration};

use super::{
    testhub::{COMMIT, Manner, TestHub},
    *,
};
use crate::{job::FailureKind, settings::Secret};

const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// A small file in the safetensors format.
fn safetensors(fill: u8) -> Vec<u8> {
    let header = br#"{"w":{"dtype":"F32","shape":[50],"data_offsets":[0,200]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend([fill; 200]);
    file
}

fn index(shards: &[&str]) -> String {
    let map: Vec<String> =
        shards.iter().enumerate().map(|(i, shard)| format!("\"t{i}\":\"{shard}\"")).collect();
    format!("{{\"metadata\":{{}},\"weight_map\":{{{}}}}}", map.join(","))
}

/// A hub cache in a temporary directory.
struct Cache {
    dir: tempfile::TempDir,
}

impl Cache {
    fn new() -> Cache {
        Cache { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("hub")
    }

    fn snapshot(&self, folder: &str, commit: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let dir = self.path().join(folder).join("snapshots").join(commit);
        fs::create_dir_all(&dir).unwrap();
        for (name, content) in files {
            fs::write(dir.join(name), content).unwrap();
        }
        dir
    }

    fn set_ref(&self, folder: &str, revision: &str, commit: &str) {
        let path = self.path().join(folder).join("refs").join(revision);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, commit).unwrap();
    }

    fn offline(&self) -> HubOptions {
        HubOptions {
            cache: self.path(),
            endpoint: "http://127.0.0.1:1".to_owned(),
            offline: true,
            token: None,
            patience: Duration::from_secs(10),
        }
    }

    fn online(&self, hub: &TestHub) -> HubOptions {
        HubOptions { endpoint: hub.endpoint.clone(), offline: false, ..self.offline() }
    }
}

const CONFIG: (&str, &[u8]) = ("config.json", b"{\"model_type\":\"gpt2\"}");
const TOKENIZER: (&str, &[u8]) = ("tokenizer.json", b"{}");

fn model(text: &str) -> ModelRef {
    ModelRef::parse(text, None).unwrap()
}

fn locate(text: &str, hub: &HubOptions) -> Result<LocatedModel, LocateError> {
    locate_config(&model(text), hub, &mut |_| {})
}

fn weights(located: &LocatedModel, hub: &HubOptions) -> Result<Vec<PathBuf>, LocateError> {
    fetch_weights(located, hub, &mut |_| {})
}

fn names(paths: &[PathBuf]) -> Vec<&str> {
    paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect()
}

// --- the offline cache ---

#[test]
fn an_offline_cache_is_enough() {
    let cache = Cache::new();
    let files = [CONFIG, TOKENIZER, ("model.safetensors", &safetensors(1)), ("tokenizer_config.json", b"{}")];
    let dir = cache.snapshot("models--EleutherAI--pythia-70m", COMMIT, &files);
    cache.set_ref("models--EleutherAI--pythia-70m", "main", &format!("{COMMIT}\n"));

    let found = locate("pythia", &cache.offline()).unwrap();
    assert_eq!((found.name.as_str(), found.origin, &found.dir), ("pythia-70m", Origin::Cache, &dir));
    assert_eq!(
        found.pin(),
        ModelPin { name: "pythia-70m".into(), source: "EleutherAI/pythia-70m".into(), commit: COMMIT.into() }
    );
    assert_eq!(found.config().unwrap()["model_type"], "gpt2");
    assert_eq!(found.tokenizer().unwrap(), TokenizerFiles::Json(dir.join("tokenizer.json")));
    assert_eq!(found.file("tokenizer_config.json"), Some(dir.join("tokenizer_config.json")));
    assert_eq!(found.file("special_tokens_map.json"), None);
    assert_eq!(weights(&found, &cache.offline()).unwrap(), [dir.join("model.safetensors")]);

    let pinned = ModelRef::pinned(&found.pin()).unwrap();
    assert_eq!(locate_config(&pinned, &cache.offline(), &mut |_| {}).unwrap().dir, dir);
}

#[test]
fn a_revision_selects_its_snapshot() {
    let cache = Cache::new();
    let folder = "models--EleutherAI--pythia-70m";
    for (revision, commit, fill) in [("main", COMMIT, 1), ("step1000", OTHER, 2)] {
        let files = [CONFIG, TOKENIZER, ("model.safetensors", &safetensors(fill)[..])];
        cache.snapshot(folder, commit, &files);
        cache.set_ref(folder, revision, commit);
    }
    cache.set_ref(folder, "refs/pr/1", OTHER);
    let commit = |text: &str| locate(text, &cache.offline()).unwrap().commit;
    assert_eq!(commit("pythia-70m"), COMMIT);
    assert_eq!(commit("pythia-70m@step1000"), OTHER);
    assert_eq!(commit("pythia-70m@refs/pr/1"), OTHER);
    assert_eq!(commit(&format!("pythia-70m@{OTHER}")), OTHER);
    let error = locate("pythia-70m@step2000", &cache.offline()).unwrap_err().to_string();
    assert!(error.contains("the cache has these revisions of it: main, refs, step1000, "), "{error}");
}

#[test]
fn gpt2_is_found_under_its_old_id_and_the_fuller_cache_wins() {
    let cache = Cache::new();
    let old = cache.snapshot("models--gpt2", COMMIT, &[CONFIG, TOKENIZER]);
    cache.set_ref("models--gpt2", "main", COMMIT);
    for spelling in ["gpt2", "gpt2-small", "openai-community/gpt2"] {
        let found = locate(spelling, &cache.offline()).unwrap();
        assert_eq!((found.source.as_str(), &found.dir), ("openai-community/gpt2", &old), "{spelling}");
    }
    // Weights of the same commit may lie under the other id.
    let new =
        cache.snapshot("models--openai-community--gpt2", COMMIT, &[("model.safetensors", &safetensors(1))]);
    cache.set_ref("models--openai-community--gpt2", "main", COMMIT);
    let found = locate("gpt2", &cache.offline()).unwrap();
    assert_eq!(found.dir, old, "the new folder has no config");
    assert_eq!(weights(&found, &cache.offline()).unwrap(), [new.join("model.safetensors")]);

    fs::write(new.join("config.json"), "{}").unwrap();
    fs::write(new.join("tokenizer.json"), "{}").unwrap();
    assert_eq!(locate("gpt2", &cache.offline()).unwrap().dir, new);
}

#[test]
fn offline_errors_say_what_where_and_how() {
    let cache = Cache::new();
    let hub = cache.offline();
    let error = locate("gpt2", &hub).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Retryable);
    assert_eq!(
        error.to_string(),
        format!(
            "openai-community/gpt2@main is not in the hub cache {0:?} (looked for main in \
             models--openai-community--gpt2 and models--gpt2) and the network is switched off (HF_HUB_OFFLINE or \
             hub.offline); on a machine with network run `HF_HUB_CACHE={1} hf download openai-community/gpt2 \
             --revision main --include '*.[jst][sax]*'`",
            hub.cache,
            hub.cache.display()
        )
    );

    cache.snapshot("models--someone--my-model", COMMIT, &[CONFIG]);
    cache.set_ref("models--someone--my-model", "main", COMMIT);
    let said = |text: &str| locate(text, &hub).unwrap_err().to_string();
    assert!(said("someone/my-model").contains(&format!("(snapshot {COMMIT} has no tokenizer.json)")));
    assert!(said("My-Model").ends_with("; the cache has someone/my-model, if you meant that"));

    cache.snapshot("models--someone--my-model", COMMIT, &[TOKENIZER]);
    let found = locate("someone/my-model", &hub).unwrap();
    let error = weights(&found, &hub).unwrap_err().to_string();
    assert!(error.contains(&format!("(snapshot {COMMIT} has no model.safetensors)")), "{error}");
}

#[test]
fn a_dangling_link_counts_as_missing() {
    let cache = Cache::new();
    let dir = cache.snapshot("models--a--b", COMMIT, &[CONFIG]);
    cache.set_ref("models--a--b", "main", COMMIT);
    std::os::unix::fs::symlink("../../blobs/gone", dir.join("tokenizer.json")).unwrap();
    let error = locate("a/b", &cache.offline()).unwrap_err().to_string();
    assert!(error.contains("has no tokenizer.json"), "{error}");
}

#[test]
fn a_ref_cannot_lead_out_of_the_cache() {
    let cache = Cache::new();
    cache.snapshot("models--a--b", COMMIT, &[CONFIG, TOKENIZER]);
    cache.set_ref("models--a--b", "main", &format!("../snapshots/{COMMIT}"));
    assert!(matches!(locate("a/b", &cache.offline()), Err(LocateError::NotCached { .. })));
}

// --- directories ---

fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

fn locate_dir(dir: &tempfile::TempDir) -> Result<LocatedModel, LocateError> {
    locate(dir.path().to_str().unwrap(), &Cache::new().offline())
}

#[test]
fn a_directory_is_pinned_by_a_fingerprint() {
    let files = [CONFIG, TOKENIZER, ("model.safetensors", &safetensors(1)[..])];
    let one = locate_dir(&directory(&files)).unwrap();
    assert!(one.commit.starts_with("sha256:") && one.commit.len() == 7 + 64, "{}", one.commit);
    assert_eq!(one.origin, Origin::Directory);
    let same = directory(&files);
    let two = locate_dir(&same).unwrap();
    assert_eq!(one.commit, two.commit, "the same files elsewhere are the same model");
    assert_eq!(ModelRef::pinned(&two.pin()).unwrap().spelling(), two.source);

    for (change, content) in [
        ("config.json", b"{\"model_type\":\"gpt2\",\"n_layer\":2}".to_vec()),
        ("model.safetensors", safetensors(2)),
    ] {
        let other = directory(&files);
        fs::write(other.path().join(change), content).unwrap();
        assert_ne!(locate_dir(&other).unwrap().commit, one.commit, "{change} was changed");
    }
    fs::write(same.path().join("README.md"), "words").unwrap();
    assert_eq!(locate_dir(&same).unwrap().commit, one.commit, "a README is no part of a model");
}

#[test]
fn shards_are_those_the_index_names() {
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let weight = safetensors(1);
    let dir = directory(&[
        CONFIG,
        TOKENIZER,
        ("model.safetensors.index.json", index(&shards).as_bytes()),
        (shards[0], &weight),
        (shards[1], &weight),
        ("adapter.safetensors", b"not part of it"),
    ]);
    let hub = Cache::new().offline();
    let found = locate_dir(&dir).unwrap();
    assert_eq!(names(&weights(&found, &hub).unwrap()), shards);

    fs::remove_file(dir.path().join(shards[1])).unwrap();
    let error = weights(&found, &hub).unwrap_err().to_string();
    assert!(error.contains(" has no model-00002-of-00002.safetensors; "), "{error}");

    for bad in ["../../etc/passwd", "sub/x.safetensors", "pytorch_model.bin", ".x.safetensors"] {
        fs::write(dir.path().join("model.safetensors.index.json"), index(&[bad])).unwrap();
        let error = weights(&found, &hub).unwrap_err().to_string();
        assert!(error.contains("which is no safetensors file beside it"), "{bad}: {error}");
    }
    fs::write(dir.path().join("model.safetensors.index.json"), "{}").unwrap();
    assert!(weights(&found, &hub).unwrap_err().to_string().contains("has no object \"weight_map\""));
}

#[test]
fn a_cut_off_file_is_told() {
    let hub = Cache::new().offline();
    for (content, problem) in [
        (&safetensors(1)[..100], "is 100 bytes long where its header says"),
        (&safetensors(1)[..20], "is not a safetensors file, or the start of one"),
        (&b""[..], "is not a safetensors file, or the start of one"),
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"[..], "is not a safetensors file"),
    ] {
        let dir = directory(&[CONFIG, TOKENIZER, ("model.safetensors", content)]);
        let found = locate_dir(&dir).unwrap();
        let error = weights(&found, &hub).unwrap_err().to_string();
        assert!(error.contains(problem) && error.contains("model.safetensors"), "{error}");
    }
}

#[test]
fn pickled_weights_are_refused_with_the_command_that_converts_them() {
    let dir = directory(&[CONFIG, TOKENIZER, ("pytorch_model.bin", b"PK")]);
    let hub = Cache::new().offline();
    let found = locate_dir(&dir).unwrap();
    let error = weights(&found, &hub).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Permanent);
    let (error, path) = (error.to_string(), dir.path().canonicalize().unwrap());
    assert!(error.contains("has its weights only as pytorch_model.bin"), "{error}");
    assert!(error.contains(&format!("c.from_pretrained('{}').save_pretrained(", path.display())), "{error}");
    assert_eq!(check_weights(&found, &hub).unwrap_err().to_string(), error);
}

#[test]
fn a_directory_without_a_tokenizer_is_told() {
    let error = locate_dir(&directory(&[CONFIG])).unwrap_err().to_string();
    assert!(
        error.contains("has no tokenizer.json (nor vocab.json with merges.txt); make one with"),
        "{error}"
    );
    let old = directory(&[CONFIG, ("vocab.json", b"{}"), ("merges.txt", b"")]);
    assert!(matches!(locate_dir(&old).unwrap().tokenizer(), Ok(TokenizerFiles::Bpe { .. })));
}

// --- the hub ---

fn tiny_hub() -> TestHub {
    let hub = TestHub::start();
    hub.put("config.json", CONFIG.1);
    hub.put("tokenizer.json", TOKENIZER.1);
    hub.put("model.safetensors", &safetensors(1));
    hub
}

#[test]
fn a_model_is_fetched_once_in_two_stages() {
    let (hub, cache) = (tiny_hub(), Cache::new());
    let options = cache.online(&hub);
    let mut done = Vec::new();
    let found = locate_config(&model("org/tiny"), &options, &mut |event| {
        if let FetchEvent::Done { file } = event {
            done.push(file.to_owned());
        }
    });
    let found = found.unwrap();
    assert_eq!((found.commit.as_str(), found.origin), (COMMIT, Origin::Hub));
    assert_eq!(done, ["config.json", "tokenizer.json"]);
    assert!(!hub.requests().contains(&"GET model.safetensors".to_owned()), "weights before their turn");

    let mut bytes = Vec::new();
    let files = fetch_weights(&found, &options, &mut |event| {
        if let FetchEvent::Bytes { file, done, total } = event {
            bytes.push((file.to_owned(), done, total));
        }
    });
    assert_eq!(fs::read(&files.unwrap()[0]).unwrap(), safetensors(1));
    let length = safetensors(1).len() as u64;
    assert_eq!(bytes.last(), Some(&("model.safetensors".to_owned(), length, length)));

    // From here on the network is not needed, for the branch or for the commit.
    let offline = HubOptions { offline: true, ..options.clone() };
    for text in ["org/tiny".to_owned(), format!("org/tiny@{COMMIT}")] {
        let again = locate(&text, &offline).unwrap();
        assert_eq!((again.origin, &again.dir), (Origin::Cache, &found.dir));
        weights(&again, &offline).unwrap();
    }
    let before = hub.requests().len();
    let again = locate("org/tiny", &options).unwrap();
    weights(&again, &options).unwrap();
    assert_eq!(hub.requests().len(), before, "a cached model asks the hub nothing");
}

#[test]
fn what_the_cache_lacks_is_fetched_into_it() {
    let (hub, cache) = (tiny_hub(), Cache::new());
    cache.snapshot("models--org--tiny", COMMIT, &[CONFIG]);
    cache.set_ref("models--org--tiny", "main", COMMIT);
    let found = locate("org/tiny", &cache.online(&hub)).unwrap();
    assert!(found.file("tokenizer.json").is_some());
}

#[test]
fn a_revision_of_the_hub_is_resolved_to_its_commit() {
    let (hub, cache) = (tiny_hub(), Cache::new());
    assert_eq!(locate("org/tiny@v1", &cache.online(&hub)).unwrap().commit, COMMIT);
    let error = locate("org/tiny@v2", &cache.online(&hub)).unwrap_err();
    assert!(matches!(error, LocateError::NoSuchRevision { .. }), "{error}");
    assert!(error.to_string().contains("has no revision \"v2\""));
}

#[test]
fn shards_are_fetched_by_the_index() {
    let (hub, cache) = (TestHub::start(), Cache::new());
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    hub.put("config.json", CONFIG.1);
    hub.put("vocab.json", b"{}");
    hub.put("merges.txt", b"#version: 0.2\n");
    hub.put("model.safetensors.index.json", index(&shards).as_bytes());
    for (fill, shard) in shards.into_iter().enumerate() {
        hub.put(shard, &safetensors(fill as u8));
    }
    let options = cache.online(&hub);
    let found = locate("org/tiny", &options).unwrap();
    assert!(matches!(found.tokenizer().unwrap(), TokenizerFiles::Bpe { .. }));
    check_weights(&found, &options).unwrap();
    assert_eq!(names(&weights(&found, &options).unwrap()), shards);

    // One is lost: only that one is fetched again.
    fs::remove_file(found.dir.join(shards[1])).unwrap();
    let before = hub.requests().len();
    assert_eq!(names(&weights(&found, &options).unwrap()), shards);
    let since = hub.requests().split_off(before);
    assert!(!since.contains(&format!("GET {}", shards[0])), "{since:?}");
}

#[test]
fn a_broken_transfer_is_tried_again() {
    let (hub, cache) = (tiny_hub(), Cache::new());
    hub.put_so("model.safetensors", &safetensors(7), Manner::BreakOff(2));
    let options = cache.online(&hub);
    let found = locate("org/tiny", &options).unwrap();
    let mut retries = 0;
    let files = fetch_weights(&found, &options, &mut |event| {
        retries += usize::from(matches!(event, FetchEvent::Retry { .. }));
    });
    assert_eq!(fs::read(&files.unwrap()[0]).unwrap(), safetensors(7));
    assert_eq!(retries, 2);
}

#[test]
fn a_transfer_that_keeps_breaking_is_an_error_and_leaves_no_file() {
    let (hub, cache) = (tiny_hub(), Cache::new());
    hub.put_so("model.safetensors", &safetensors(7), Manner::BreakOff(99));
    let options = cache.online(&hub);
    let found = locate("org/tiny", &options).unwrap();
    let error = weights(&found, &options).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Retryable);
    let said = error.to_string();
    assert!(
        said.starts_with(&format!("fetching model.safetensors of org/tiny@{COMMIT} from http://")),
        "{said}"
    );
    assert_eq!(found.file("model.safetensors"), None);

    // The hub recovers, and so does the next run.
    hub.put("model.safetensors", &safetensors(7));
    weights(&found, &options).unwrap();
}

#[test]
fn an_error_page_never_becomes_a_file() {
    for manner in [Manner::ErrorPage, Manner::WrongDigest] {
        let (hub, cache) = (tiny_hub(), Cache::new());
        hub.put_so("model.safetensors", &safetensors(7), manner.clone());
        let options = cache.online(&hub);
        let found = locate("org/tiny", &options).unwrap();
        let error = weights(&found, &options).unwrap_err();
        assert!(matches!(error, LocateError::Download { .. }), "{manner:?}: {error}");
        assert_eq!(found.file("model.safetensors"), None, "{manner:?}");
    }
}

#[test]
fn a_silent_hub_is_given_up() {
    let (hub, cache) = (tiny_hub(), Cache::new());
    hub.put_so("config.json", CONFIG.1, Manner::Silence);
    let options = HubOptions { patience: Duration::from_secs(1), ..cache.online(&hub) };
    let error = locate("org/tiny", &options).unwrap_err();
    assert!(matches!(error, LocateError::Unreachable { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains("no answer for 1 seconds") && said.contains("hf download org/tiny"), "{said}");
}

#[test]
fn a_transfer_that_stalls_is_given_up() {
    let (hub, cache) = (tiny_hub(), Cache::new());
    hub.put_so("model.safetensors", &safetensors(7), Manner::Stall);
    let options = HubOptions { patience: Duration::from_secs(1), ..cache.online(&hub) };
    let found = locate("org/tiny", &options).unwrap();
    let said = weights(&found, &options).unwrap_err().to_string();
    assert!(
        said.contains("could not fetch model.safetensors") && said.contains("no answer for 1 seconds"),
        "{said}"
    );
    assert_eq!(found.file("model.safetensors"), None);
}

#[test]
fn several_may_fetch_at_once() {
    let (hub, cache) = (tiny_hub(), Cache::new());
    let options = cache.online(&hub);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let found = locate("org/tiny", &options).unwrap();
                let files = weights(&found, &options).unwrap();
                assert_eq!(fs::read(&files[0]).unwrap(), safetensors(1));
            });
        }
    });
}

#[test]
fn a_hub_that_is_not_there_is_told_with_the_way_out() {
    let cache = Cache::new();
    let options = HubOptions { offline: false, ..cache.offline() };
    let error = locate("org/tiny", &options).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Retryable);
    let said = error.to_string();
    assert!(
        said.starts_with("could not fetch config.json of org/tiny@main from http://127.0.0.1:1: "),
        "{said}"
    );
    assert!(said.contains("hf download org/tiny --revision main"), "{said}");
}

#[test]
fn gated_models_need_a_token_which_is_never_shown() {
    let (hub, cache) = (tiny_hub(), Cache::new());
    hub.require_token("hf_right");
    let options = cache.online(&hub);
    let said = locate("org/tiny", &options).unwrap_err().to_string();
    assert!(said.contains("refused org/tiny@main (401: Access to model org/tiny is restricted)"), "{said}");
    assert!(said.contains("set HF_TOKEN or run `hf auth login`"), "{said}");

    let wrong = HubOptions { token: Some(Secret::new("hf_wrong")), ..options.clone() };
    let error = locate("org/tiny", &wrong).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Permanent);
    let said = format!("{error} {error:?} {wrong:?}");
    assert!(said.contains("the token in use") && !said.contains("hf_wrong"), "{said}");

    let right = HubOptions { token: Some(Secret::new("hf_right")), ..options };
    assert_eq!(locate("org/tiny", &right).unwrap().commit, COMMIT);
}

#[test]
fn a_hub_in_trouble_is_retryable() {
    let (hub, cache) = (tiny_hub(), Cache::new());
    hub.put_so("config.json", CONFIG.1, Manner::Refuse(503, "", "maintenance"));
    let error = locate("org/tiny", &cache.online(&hub)).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Retryable);
    assert!(error.to_string().contains("503"), "{error}");
}

#[test]
fn what_is_not_on_the_hub_is_told_apart() {
    let (hub, cache) = (TestHub::start(), Cache::new());
    let options = cache.online(&hub);
    let said = |text: &str| locate(text, &options).unwrap_err().to_string();
    assert!(
        said("org/other").contains(" has no model org/other; check the spelling"),
        "{}",
        said("org/other")
    );
    assert!(
        said("org/tiny").starts_with("org/tiny has no config.json; it is not a model"),
        "{}",
        said("org/tiny")
    );
    hub.put("config.json", CONFIG.1);
    assert!(said("org/tiny").starts_with("org/tiny has no tokenizer.json"), "{}", said("org/tiny"));

    hub.put("tokenizer.json", TOKENIZER.1);
    hub.put("pytorch_model.bin", b"PK");
    let found = locate("org/tiny", &options).unwrap();
    let error = weights(&found, &options).unwrap_err().to_string();
    assert!(error.contains("has its weights only as pytorch_model.bin"), "{error}");
    assert!(error.contains(&format!("from_pretrained('org/tiny', revision='{COMMIT}')")), "{error}");
    assert_eq!(check_weights(&found, &options).unwrap_err().to_string(), error);
    assert!(!hub.requests().contains(&"GET pytorch_model.bin".to_owned()));
}

#[tokio::test]
async fn a_download_may_start_inside_a_runtime() {
    let (hub, cache) = (tiny_hub(), Cache::new());
    assert_eq!(locate("org/tiny", &cache.online(&hub)).unwrap().commit, COMMIT);
}

#[test]
fn the_fixtures_are_models() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models");
    let hub = Cache::new().offline();
    for (name, count) in [("gpt2-tiny", 1), ("gpt2-sharded", 2), ("gpt2-bf16", 1), ("neox-tiny", 1)] {
        let found = locate(models.join(name).to_str().unwrap(), &hub).unwrap();
        let files = weights(&found, &hub).unwrap();
        assert!(files.len() >= count, "{name}: {files:?}");
        assert_eq!(found.name.as_str(), name);
    }
}
