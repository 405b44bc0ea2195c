//! Every fixture's patterns against the float64 oracle's, alone and batched, whole and by layers.

use std::{
    collections::HashMap,
    io::Cursor,
    path::{Path, PathBuf},
    sync::mpsc,
};

use common::{capture::Numerics, model::family::read_spec};
use ndarray::Array3;
use ndarray_npy::ReadNpyExt;
use serde::Deserialize;
use worker::{
    engine::{Engine, Pattern, TokenBatch, run_to_end},
    model::{device::DeviceChoice, load},
};

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<GoldenPrompt>,
    float32_error: f64,
}

#[derive(Deserialize)]
struct GoldenPrompt {
    text: String,
    input_ids: Vec<u32>,
}

/// The repository's, or where `LENSPOOL_TEST_FIXTURES` says: this may run on another machine than it was built on.
fn fixtures() -> PathBuf {
    std::env::var_os("LENSPOOL_TEST_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures"), PathBuf::from)
}

/// Fixture names, those whose name contains `LENSPOOL_FIXTURE` where it is set.
fn names() -> Vec<String> {
    let only = std::env::var("LENSPOOL_FIXTURE").unwrap_or_default();
    let mut names: Vec<String> = std::fs::read_dir(fixtures().join("goldens"))
        .expect("goldens")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".json").map(str::to_owned))
        .filter(|name| name.contains(&only))
        .collect();
    names.sort();
    assert!(!names.is_empty());
    names
}

fn device() -> DeviceChoice {
    std::env::var("LENSPOOL_TEST_DEVICE").map_or(DeviceChoice::Cpu, |name| name.parse().expect("a device"))
}

/// A pattern as the goldens have it.
struct Square {
    n_heads: usize,
    n: usize,
    /// `[n_heads, n, n]`
    values: Vec<f32>,
}

impl From<&Pattern> for Square {
    fn from(pattern: &Pattern) -> Self {
        Square { n_heads: pattern.n_heads, n: pattern.n, values: pattern.to_square() }
    }
}

fn run(engine: &mut dyn Engine, prompts: &[&[u32]], layers: &[usize]) -> HashMap<(usize, usize), Square> {
    let batch = TokenBatch { prompts: prompts.iter().map(|ids| ids.to_vec()).collect() };
    let (taken, patterns) = mpsc::channel();
    let take = move |pattern| taken.send(pattern).expect("received below");
    run_to_end(engine, batch, layers, take).expect("forward");
    let mut collected = HashMap::new();
    for pattern in patterns {
        let old = collected.insert((pattern.prompt, pattern.layer), Square::from(&pattern));
        assert!(old.is_none(), "a pattern came twice");
    }
    collected
}

fn max_abs(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| {
        assert!(a.is_finite() && b.is_finite());
        f64::from((a - b).abs())
    });
    differences.fold(0.0, f64::max)
}

/// Largest difference from the goldens, or why there is none.
fn check(name: &str) -> Result<f64, String> {
    let root = fixtures();
    let golden: Golden = serde_json::from_str(
        &std::fs::read_to_string(root.join("goldens").join(format!("{name}.json"))).expect("golden"),
    )
    .expect("golden JSON");
    let npz = std::fs::File::open(root.join("goldens").join(format!("{name}.npz"))).expect("npz");
    let mut npz = zip::ZipArchive::new(npz).expect("npz");
    let dir = root.join("models").join(name);
    let spec = read_spec(&dir.join("config.json")).map_err(|error| error.to_string())?;
    let n_layers = spec.n_layers();
    let numerics = Numerics::default();
    let mut engine =
        load(&dir, &spec, device(), numerics, n_layers - 1).map_err(|error| error.to_string())?;
    let all: Vec<usize> = (0..n_layers).collect();
    let tolerance = 1e-5f64.max(3.0 * golden.float32_error);
    // A GPU multiplies batches of other sizes by other kernels, which sum in another order.
    let alike = if device().resolve() == DeviceChoice::Cpu { 1e-6 } else { tolerance };

    let prompts: Vec<&[u32]> = golden.prompts.iter().map(|prompt| &prompt.input_ids[..]).collect();
    let batched = run(&mut *engine, &prompts, &all);
    assert_eq!(batched.len(), prompts.len() * n_layers);
    let mut worst = 0f64;
    for (p, prompt) in prompts.iter().enumerate() {
        let single = run(&mut *engine, &[prompt], &all);
        for layer in 0..n_layers {
            let mut bytes = Vec::new();
            let mut entry = npz.by_name(&format!("prompt{p}.blocks.{layer}.npy")).expect("an entry");
            std::io::Read::read_to_end(&mut entry, &mut bytes).expect("npy");
            let expected = Array3::<f32>::read_npy(Cursor::new(bytes)).expect("npy");
            let got = &single[&(0, layer)];
            assert_eq!(expected.dim(), (got.n_heads, got.n, got.n), "{name} shape");
            let off = max_abs(&got.values, expected.as_slice().expect("contiguous"));
            let text = &golden.prompts[p].text;
            if off > tolerance {
                return Err(format!("layer {layer} of {text:?} is off by {off:e}, allowed {tolerance:e}"));
            }
            worst = worst.max(off);
            let zeros = got.values.chunks_exact(got.n * got.n).all(|head| {
                (0..got.n).all(|i| head[i * got.n + i + 1..(i + 1) * got.n].iter().all(|v| v.to_bits() == 0))
            });
            assert!(zeros, "{name}: the future is exactly +0.0");
            let off = max_abs(&got.values, &batched[&(p, layer)].values);
            if off > alike {
                return Err(format!("layer {layer} of {text:?}: batched is off single by {off:e}"));
            }
        }
    }

    // A subset of layers is the same patterns, also from a model loaded no further than it needs.
    let some = [n_layers / 2];
    let mut partial = load(&dir, &spec, device(), numerics, some[0]).map_err(|error| error.to_string())?;
    for engine in [&mut engine, &mut partial] {
        let subset = run(&mut **engine, &prompts[..1], &some);
        assert_eq!(subset.keys().collect::<Vec<_>>(), [&(0, some[0])]);
        assert!(max_abs(&subset[&(0, some[0])].values, &batched[&(0, some[0])].values) <= alike, "{name}");
    }
    Ok(worst)
}

#[test]
fn every_fixture_equals_its_golden() {
    let mut failures = Vec::new();
    for name in names() {
        match check(&name) {
            Ok(worst) => println!("{name:24} {worst:.1e}"),
            Err(reason) => failures.push(format!("{name}: {reason}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
