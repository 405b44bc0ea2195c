//! Models in a directory of the user's.

use super::*;
use crate::job::FailureKind;

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
        assert!(error.contains("which is no .safetensors file beside it"), "{bad}: {error}");
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
fn pickled_weights_do_where_there_are_no_others() {
    let whole = b"PK\x03\x04 tensors PK\x05\x06 and 18 bytes more.";
    let dir = directory(&[CONFIG, TOKENIZER, ("pytorch_model.bin", whole)]);
    let hub = Cache::new().offline();
    let found = locate_dir(&dir).unwrap();
    assert_eq!(names(&weights(&found, &hub).unwrap()), ["pytorch_model.bin"]);
    fs::write(dir.path().join("pytorch_model.bin"), &whole[..12]).unwrap();
    let error = weights(&found, &hub).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Permanent);
    assert!(error.to_string().contains("is a zip archive without its end"), "{error}");
    assert_ne!(locate_dir(&dir).unwrap().commit, found.commit, "other files are another model");
    // PyTorch before 1.6 had no archives.
    fs::write(dir.path().join("pytorch_model.bin"), b"\x80\x02 a bare pickle").unwrap();
    weights(&found, &hub).unwrap();
    fs::write(dir.path().join("model.safetensors"), safetensors(1)).unwrap();
    assert_eq!(names(&weights(&found, &hub).unwrap()), ["model.safetensors"]);

    let shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"];
    let index_of_shards = index(&shards);
    let dir = directory(&[
        CONFIG,
        TOKENIZER,
        ("pytorch_model.bin.index.json", index_of_shards.as_bytes()),
        (shards[0], whole),
        (shards[1], whole),
    ]);
    assert_eq!(names(&weights(&locate_dir(&dir).unwrap(), &hub).unwrap()), shards);
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

#[test]
fn the_fixtures_are_models() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models");
    let hub = Cache::new().offline();
    for (name, count) in
        [("gpt2-tiny", 1), ("gpt2-sharded", 2), ("gpt2-bf16", 1), ("neox-tiny", 1), ("gpt-neo-pickle", 1)]
    {
        let found = locate(models.join(name).to_str().unwrap(), &hub).unwrap();
        let files = weights(&found, &hub).unwrap();
        assert!(files.len() >= count, "{name}: {files:?}");
        assert_eq!(found.name.as_str(), name);
    }
}
