use super::*;

fn hub(text: &str) -> (String, String, String) {
    let model = ModelRef::parse(text, None).unwrap_or_else(|error| panic!("{text}: {error}"));
    match model.source {
        Source::Hub { repo, revision, .. } => (model.name.to_string(), repo.to_string(), revision),
        Source::Directory(path) => panic!("{text} is read as the directory {path:?}"),
    }
}

#[test]
fn every_spelling_of_a_model_leads_to_one_repo_and_one_directory() {
    for (spellings, name, repo) in [
        (&["gpt2", "GPT2", "gpt2-small", "openai-community/gpt2"][..], "gpt2", "openai-community/gpt2"),
        (
            &["pythia-70m", "EleutherAI/pythia-70m", "eleutherai/Pythia-70M", "pythia", "pythia-19m"],
            "pythia-70m",
            "EleutherAI/pythia-70m",
        ),
        (
            &["tiny-stories-1M", "TinyStories-1M", "roneneldan/TinyStories-1M"],
            "tiny-stories-1M",
            "roneneldan/TinyStories-1M",
        ),
        (&["Llama-3.2-1B", "meta-llama/Llama-3.2-1B"], "meta-llama-Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        (&["someone/a.model_7"], "someone-a.model_7", "someone/a.model_7"),
        (&["not-in-the-table"], "not-in-the-table", "not-in-the-table"),
    ] {
        for spelling in spellings {
            assert_eq!(hub(spelling), (name.into(), repo.into(), "main".into()), "{spelling}");
        }
    }
}

#[test]
fn a_revision_comes_with_the_name_or_beside_it_and_changes_no_directory() {
    assert_eq!(hub("pythia-70m@step1000").2, "step1000");
    assert_eq!(hub("EleutherAI/pythia-70m@refs/pr/3").2, "refs/pr/3");
    assert_eq!(hub("pythia-70m@step1000").0, "pythia-70m");
    let beside = ModelRef::parse("pythia-70m", Some("step1000")).unwrap();
    assert_eq!(beside, ModelRef::parse("pythia-70m@step1000", None).unwrap());
    assert_eq!(beside, ModelRef::parse("pythia-70m@step1000", Some("step1000")).unwrap());
    assert_eq!(beside.to_string(), "pythia-70m (EleutherAI/pythia-70m@step1000)");
}

#[test]
fn former_repos_are_places_to_look_in_a_cache() {
    let Source::Hub { former_repos, .. } = ModelRef::parse("gpt2", None).unwrap().source else { panic!() };
    assert_eq!(former_repos, [RepoId::parse("gpt2").unwrap()]);
}

#[test]
fn a_directory_is_named_by_its_last_component() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("tiny gpt2 (mine)");
    std::fs::create_dir(&model).unwrap();
    std::fs::write(model.join("config.json"), "{}").unwrap();
    for typed in [model.to_str().unwrap().to_owned(), format!("{}/", model.display())] {
        let parsed = ModelRef::parse(&typed, None).unwrap();
        assert_eq!(parsed.name.as_str(), "tiny_gpt2__mine_");
        assert_eq!(parsed.source, Source::Directory(model.canonicalize().unwrap()));
        assert_eq!(ModelRef::parse(parsed.spelling(), None).unwrap(), parsed);
    }
}

#[test]
fn a_snapshot_directory_is_named_by_its_repo() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("models--EleutherAI--pythia-70m/snapshots").join("a".repeat(40));
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(snapshot.join("config.json"), "{}").unwrap();
    assert_eq!(ModelRef::parse(snapshot.to_str().unwrap(), None).unwrap().name.as_str(), "pythia-70m");
}

#[test]
fn a_pin_leads_back_to_its_model() {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let pin = ModelPin { name: "gpt2".into(), source: "openai-community/gpt2".into(), commit: commit.into() };
    assert_eq!(ModelRef::pinned(&pin).unwrap(), ModelRef::parse(&format!("gpt2@{commit}"), None).unwrap());
}

#[test]
fn what_means_nothing_is_told_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().to_str().unwrap();
    let say = |text: &str| ModelRef::parse(text, None).unwrap_err().to_string();
    assert!(say("  ").starts_with("no model was named"));
    assert!(say("./no/such").starts_with("\"./no/such\" is not a directory"));
    assert!(say("a/b/c").starts_with("\"a/b/c\" is not a directory"));
    assert!(say(empty).contains("holds no config.json"));
    assert!(say("gpt 2").starts_with("\"gpt 2\" is neither a directory nor a possible hub id"));
    assert!(say("-rf").contains("neither"));
    assert!(say("gpt2@").starts_with("\"\" cannot be a revision"));
    assert!(say("gpt2@../../etc").starts_with("\"../../etc\" cannot be a revision"));
    let two = ModelRef::parse("gpt2@a", Some("b")).unwrap_err().to_string();
    assert_eq!(two, "\"gpt2@a\" names a revision, and --revision \"b\" another; give one of them");

    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    let local = ModelRef::parse(empty, Some("main")).unwrap_err();
    assert!(matches!(local, ModelRefError::DirectoryRevision { .. }), "{local}");
}

#[test]
fn a_sanitized_name_is_always_a_directory_of_its_own() {
    for (text, name) in [
        ("a/b", "a-b"),
        ("naïve model@1", "na_ve_model_1"),
        (".hidden", "_.hidden"),
        ("", "_"),
        ("..", "_.."),
        ("models.jsonl", "_models.jsonl"),
    ] {
        assert_eq!(ModelName::sanitize(text).as_str(), name, "{text:?}");
    }
    assert!(ModelName::try_from(ModelName::sanitize(&"x".repeat(500)).as_str().to_owned()).is_ok());
    for bad in ["", ".", "..", "a/b", ".lenspool", "a b", "é", "index.html"] {
        assert!(ModelName::try_from(bad.to_owned()).is_err(), "{bad:?} was accepted");
    }
}
