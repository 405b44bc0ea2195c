//! Without network: the hub cache alone.

use super::*;
use crate::job::FailureKind;

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
    assert_eq!(error.kind(), FailureKind::Permanent);
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
    let owned = said("My-Model");
    let both = "; the cache has someone/my-model, if you meant that; if a directory was meant, there is none at \"My-Model\"";
    assert!(owned.ends_with(both), "{owned}");
    let mistyped = said("models/pythia");
    assert!(
        mistyped.ends_with("; if a directory was meant, there is none at \"models/pythia\""),
        "{mistyped}"
    );

    cache.snapshot("models--someone--my-model", COMMIT, &[TOKENIZER]);
    let found = locate("someone/my-model", &hub).unwrap();
    let error = weights(&found, &hub).unwrap_err().to_string();
    assert!(error.contains(&format!("(snapshot {COMMIT} has no model.safetensors (nor ")), "{error}");
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
