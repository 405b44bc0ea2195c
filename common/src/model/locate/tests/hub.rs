//! With a hub that answers, in various manners.

use super::{testhub::Manner, *};
use crate::{job::FailureKind, settings::Secret};

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
    let found = locate("org/tiny", &options).unwrap();
    let error = weights(&found, &options).unwrap_err().to_string();
    assert!(error.starts_with("org/tiny has no model.safetensors (nor pytorch_model.bin); "), "{error}");
    assert_eq!(check_weights(&found, &options).unwrap_err().to_string(), error);
    // An old repository has its weights as a pickle alone.
    hub.put("pytorch_model.bin", b"PK");
    check_weights(&found, &options).unwrap();
    assert!(!hub.requests().contains(&"GET pytorch_model.bin".to_owned()), "nothing is fetched to look");
    assert_eq!(names(&weights(&found, &options).unwrap()), ["pytorch_model.bin"]);
}

#[tokio::test]
async fn a_download_may_start_inside_a_runtime() {
    let (hub, cache) = (tiny_hub(), Cache::new());
    assert_eq!(locate("org/tiny", &cache.online(&hub)).unwrap().commit, COMMIT);
}

#[test]
fn redirects_are_followed_and_the_token_stays_with_the_hub() {
    let (hub, store, cache) = (tiny_hub(), TestHub::start(), Cache::new());
    hub.require_token("hf_right");
    hub.put_so("config.json", b"", Manner::Moved("the-real-config"));
    hub.put("the-real-config", CONFIG.1);
    hub.put_so("model.safetensors", &safetensors(3), Manner::Elsewhere(store.endpoint.clone()));
    store.put("model.safetensors", &safetensors(3));
    let options = HubOptions { token: Some(Secret::new("hf_right")), ..cache.online(&hub) };
    let found = locate("org/tiny", &options).unwrap();
    assert_eq!(found.config().unwrap()["model_type"], "gpt2");
    let files = weights(&found, &options).unwrap();
    assert_eq!(fs::read(&files[0]).unwrap(), safetensors(3));
    assert_eq!(hub.authorizations()[0], "Bearer hf_right");
    assert_eq!(store.requests(), ["GET model.safetensors"]);
    assert_eq!(store.authorizations(), Vec::<String>::new());
}
