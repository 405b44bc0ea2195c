use std::{collections::BTreeSet, fs};

use super::*;
use crate::{
    capture::Layers,
    store::{
        held::tests::npz,
        layout::{ModelName, SaveLayout},
    },
};

struct Tree {
    tmp: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        Tree { tmp: tempfile::tempdir().unwrap() }
    }

    fn model(&self) -> ModelLayout {
        SaveLayout::new(self.tmp.path()).model(&ModelName::try_from("m").unwrap())
    }

    fn check(&self, capture: &Capture) -> CacheCheck {
        CacheCheck::new(self.model(), capture, 4)
    }

    fn put(&self, text: &str, file: &str, bytes: &[u8]) -> PromptHash {
        let hash = PromptHash::of(text);
        fs::create_dir_all(self.model().prompt(&hash)).unwrap();
        fs::write(self.model().prompt(&hash).join(file), bytes).unwrap();
        hash
    }

    /// A prompt committed with these layers.
    fn commit(&self, text: &str, layers: &[usize], dtype: Dtype) -> PromptHash {
        self.put(text, "activations.npz", &npz(layers, dtype));
        self.put(text, "prompt.json", b"{}")
    }

    fn mark(&self, path: impl AsRef<Path>) {
        fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
}

fn only(layers: &[usize]) -> Capture {
    Capture { layers: Layers::Only(layers.iter().copied().collect::<BTreeSet<_>>()), ..Capture::default() }
}

/// What both ways to ask say.
fn ask(check: &CacheCheck, hash: &PromptHash) -> bool {
    let one = check.is_cached(hash).unwrap();
    assert_eq!(check.check(std::slice::from_ref(hash)).unwrap(), [one]);
    one
}

#[test]
fn cached_means_both_files_exist() {
    let tree = Tree::new();
    let check = tree.check(&Capture::default());
    assert!(!ask(&check, &PromptHash::of("no save path yet")));
    assert!(!ask(&check, &tree.put("json", "prompt.json", b"{}")));
    assert!(!ask(&check, &tree.put("npz", "activations.npz", b"x")));
    assert!(!ask(&check, &PromptHash::of("absent")));
    tree.put("both", "prompt.json", b"{}");
    assert!(ask(&check, &tree.put("both", "activations.npz", b"names are all that is looked at")));
    tree.put("empty", "prompt.json", b"{}");
    assert!(
        !ask(&check, &tree.put("empty", "activations.npz", b"")),
        "torn by a program that writes in place"
    );
    tree.put("dir", "prompt.json", b"{}");
    fs::create_dir(tree.model().prompt(&PromptHash::of("dir")).join("activations.npz")).unwrap();
    assert!(!ask(&check, &PromptHash::of("dir")));
}

#[test]
fn a_listing_and_single_lookups_agree_and_keep_the_order() {
    let tree = Tree::new();
    let mut wanted = Vec::new();
    for i in 0..300 {
        let text = i.to_string();
        match i % 3 {
            0 => drop(tree.commit(&text, &[0, 1, 2, 3], Dtype::Float32)),
            1 => drop(tree.put(&text, "prompt.json", b"{}")),
            _ => {}
        }
        wanted.push(PromptHash::of(&text));
    }
    let expected: Vec<bool> = (0..300).map(|i| i % 3 == 0).collect();
    let check = tree.check(&Capture::default());
    assert_eq!(check.check(&wanted).unwrap(), expected);
    assert!(check.listing.lock().unwrap().is_some());
    // In parts, so that the first are looked up one by one.
    let check = tree.check(&Capture::default());
    let parts: Vec<bool> = wanted.chunks(10).flat_map(|part| check.check(part).unwrap()).collect();
    assert_eq!(parts, expected);
    assert!(check.listing.lock().unwrap().is_some());

    let items: Vec<(usize, PromptHash)> = wanted.into_iter().enumerate().collect();
    let (done, todo) = check.partition(items, |(_, hash)| hash).unwrap();
    assert!(done.iter().map(|(i, _)| *i).eq((0..300).step_by(3)));
    assert_eq!(todo.len(), 200);
    assert!(todo.is_sorted());
}

#[test]
fn a_file_that_lacks_a_layer_asked_for_is_not_cached() {
    let tree = Tree::new();
    let whole = tree.commit("whole", &[0, 1, 2, 3], Dtype::Float32);
    let part = tree.commit("part", &[0, 2], Dtype::Float32);
    for (layers, expected) in [(&[0, 2][..], true), (&[2], true), (&[0, 1], false), (&[3], false)] {
        let check = tree.check(&only(layers));
        assert!(ask(&check, &whole), "{layers:?}");
        assert_eq!(ask(&check, &part), expected, "{layers:?}");
    }
    // A run for all layers looks inside only where partial files were written.
    let check = tree.check(&Capture::default());
    assert!(ask(&check, &part), "nothing says that files here can lack layers");
    tree.mark(tree.model().partial_mark());
    assert!(!ask(&check, &part), "the mark is seen at once");
    assert!(ask(&check, &whole));
    // Torn by another program: computed again.
    tree.put("whole", "activations.npz", b"PK\x03\x04 and no more");
    assert!(!ask(&check, &whole));
}

#[test]
fn half_precision_does_not_satisfy_a_run_in_single() {
    let tree = Tree::new();
    let half = tree.commit("half", &[0, 1, 2, 3], Dtype::Float16);
    let single = tree.commit("single", &[0, 1, 2, 3], Dtype::Float32);
    tree.mark(tree.model().float16_mark());
    let f16 = Capture { dtype: Dtype::Float16, ..Capture::default() };
    assert!(ask(&tree.check(&f16), &half));
    assert!(ask(&tree.check(&f16), &single));
    assert!(!ask(&tree.check(&Capture::default()), &half));
    assert!(ask(&tree.check(&Capture::default()), &single));
}

#[test]
fn a_stacked_run_has_its_own_file() {
    let tree = Tree::new();
    let stacked = Capture { layout: ArrayLayout::Stacked, ..Capture::default() };
    let layers = tree.commit("layers", &[0, 1, 2, 3], Dtype::Float32);
    assert!(!ask(&tree.check(&stacked), &layers));
    tree.put("one", "prompt.json", b"{}");
    let one = tree.put("one", layout::STACKED, &crate::store::held::tests::npy(Dtype::Float16, 4));
    assert!(ask(&tree.check(&stacked), &one));
    assert!(!ask(&tree.check(&Capture::default()), &one), "upstream does not count it either");
    tree.mark(tree.model().float16_mark());
    assert!(!ask(&tree.check(&stacked), &one));
    assert!(ask(&tree.check(&Capture { dtype: Dtype::Float16, ..stacked }), &one));
}

#[test]
fn what_cannot_be_looked_at_is_an_error_not_a_miss() {
    let tree = Tree::new();
    let hash = tree.put("loop", "prompt.json", b"{}");
    let link = tree.model().activations(&hash, ArrayLayout::PerLayer);
    std::os::unix::fs::symlink(&link, &link).unwrap();
    let error = tree.check(&Capture::default()).is_cached(&hash).unwrap_err();
    assert!(error.to_string().contains("activations.npz"), "{error}");
    assert_eq!(error.op, Op::Stat);
}
