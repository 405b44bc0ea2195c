//! The engines beside each other, on the committed fixtures. Whether they are right is for tests/parity.rs to say.

use std::{collections::BTreeMap, sync::mpsc};

use common::{capture::MatmulPrecision, model::family::read_spec};

use super::*;
use crate::engine::{EngineError, Pattern, PatternSink, SinkClosed, TokenBatch, run_to_end};

/// A checkpoint of the repository, or of where `LENSPOOL_TEST_FIXTURES` says: this may run on another machine than it
/// was built on.
pub(super) fn fixture(name: &str) -> PathBuf {
    let fixtures = std::env::var_os("LENSPOOL_TEST_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures"), PathBuf::from);
    fixtures.join("models").join(name)
}

fn fixtures() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(fixture(""))
        .expect("fixtures")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    names.sort();
    names
}

fn spec(name: &str) -> ModelSpec {
    read_spec(&fixture(name).join("config.json")).expect("a fixture's configuration")
}

/// The CPU's engine.
fn host(name: &str) -> Box<dyn Engine> {
    let (spec, packing) = (spec(name), Packing::Unpadded { max_rows: 40 });
    let model =
        load_as(&fixture(name), &spec, &Device::flex(), None, spec.n_layers() - 1, Ops::Native, packing);
    Box::new(HostEngine::new(model.expect("a fixture")))
}

/// The device `LENSPOOL_TEST_DEVICE` names, else the CPU.
pub(super) fn device() -> Device {
    let name = std::env::var("LENSPOOL_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    name.parse::<DeviceChoice>().expect("a device").open().expect("the device")
}

/// The GPU's engine: on a GPU where `LENSPOOL_TEST_DEVICE` names one, else on the CPU with the kernels of ops::device
/// as plain loops.
fn device_engine(name: &str, numerics: Numerics) -> Box<dyn Engine> {
    let (spec, packing) = (spec(name), Packing::Padded { n_ctx: spec(name).n_ctx });
    let ops = Ops::Composed(numerics);
    let model = load_as(&fixture(name), &spec, &device(), None, spec.n_layers() - 1, ops, packing);
    Box::new(DeviceEngine::new(model.expect("a fixture"), Footprint::new(&spec, None)))
}

fn patterns(
    engine: &mut dyn Engine,
    batch: &TokenBatch,
    n_layers: usize,
) -> BTreeMap<(usize, usize), Vec<f32>> {
    let (taken, patterns) = mpsc::channel::<Pattern>();
    let layers: Vec<usize> = (0..n_layers).collect();
    let take = move |pattern| taken.send(pattern).expect("received below");
    run_to_end(engine, batch.clone(), &layers, take).expect("forward");
    patterns.iter().map(|pattern| ((pattern.prompt, pattern.layer), pattern.to_square())).collect()
}

fn batch(lengths: &[u32]) -> TokenBatch {
    TokenBatch { prompts: lengths.iter().map(|n| (0..*n).map(|t| (t * 37 + n) % 256).collect()).collect() }
}

/// The largest difference between two batches' patterns, which must be of the same prompts and layers.
fn distance(a: &BTreeMap<(usize, usize), Vec<f32>>, b: &BTreeMap<(usize, usize), Vec<f32>>) -> f32 {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let pairs = a.iter().flat_map(|(place, values)| {
        assert_eq!(values.len(), b[place].len());
        values.iter().zip(&b[place])
    });
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn what_a_gpu_computes_equals_what_the_cpu_computes() {
    let batch = batch(&[33, 20, 7, 1]);
    for name in fixtures() {
        let n_layers = spec(&name).n_layers();
        let cpu = patterns(&mut *host(&name), &batch, n_layers);
        let gpu = patterns(&mut *device_engine(&name, Numerics::default()), &batch, n_layers);
        let off = distance(&cpu, &gpu);
        assert!(off < 3e-5, "{name}: {off:e}");
    }
}

#[test]
fn warming_up_is_done_once_a_shape_and_changes_nothing() {
    let (batch, n_layers) = (batch(&[20, 7]), spec("gpt2-tiny").n_layers());
    let mut engine = device_engine("gpt2-tiny", Numerics::default());
    let before = patterns(&mut *engine, &batch, n_layers);
    assert!(engine.warm_up(2, 20).is_some());
    assert!(engine.warm_up(2, 32).is_none(), "both are padded to 32");
    assert!(engine.warm_up(2, 33).is_some());
    assert_eq!(distance(&before, &patterns(&mut *engine, &batch, n_layers)), 0.0);
    assert!(host("gpt2-tiny").warm_up(2, 20).is_none());
}

/// The errors README.md and the docs of `ComputeDtype` speak of, as they are on models whose weights are spread out
/// more than trained ones are.
#[test]
fn half_precision_is_off_by_what_its_mantissa_leaves() {
    let batch = batch(&[30, 12]);
    for name in ["gpt2-tiny", "neox-tiny", "llama-tiny"] {
        let n_layers = spec(name).n_layers();
        let exact = patterns(&mut *host(name), &batch, n_layers);
        let off = |compute_dtype| {
            let numerics = Numerics { compute_dtype, matmul_precision: MatmulPrecision::Float32 };
            distance(&exact, &patterns(&mut *device_engine(name, numerics), &batch, n_layers))
        };
        let (bf16, f16) = (off(ComputeDtype::Bf16), off(ComputeDtype::F16));
        println!("{name}: bf16 {bf16:.1e}, f16 {f16:.1e}");
        assert!(
            bf16 > f16 && f16 > 1e-5,
            "{name}: bf16 {bf16:e}, f16 {f16:e}: were operands rounded at all?"
        );
        assert!(bf16 < 0.1 && f16 < 0.01, "{name}: bf16 {bf16:e}, f16 {f16:e}");
    }
}

#[test]
fn half_precision_on_the_cpu_is_the_same() {
    let name = "gpt2-tiny";
    let numerics = Numerics { compute_dtype: ComputeDtype::Bf16, matmul_precision: MatmulPrecision::Float32 };
    let (batch, spec) = (batch(&[30, 12]), spec(name));
    let mut cpu =
        load(&fixture(name), &spec, DeviceChoice::Cpu, numerics, spec.n_layers() - 1).expect("a fixture");
    let cpu = patterns(&mut *cpu, &batch, spec.n_layers());
    let gpu = patterns(&mut *device_engine(name, numerics), &batch, spec.n_layers());
    // Rounding turns a difference in a sum's last bit into one of a half's, now and then.
    assert!(distance(&cpu, &gpu) < 0.02);
}

/// What a device must have free is computed from the plan of the checkpoint, and must be what the weights then are.
#[test]
fn a_model_that_does_not_fit_its_device_is_refused_before_its_weights_are_read() {
    let open = |name: &str, compute_dtype, highest: usize, free: u64| {
        let (spec, packing) = (spec(name), Packing::Padded { n_ctx: spec(name).n_ctx });
        let ops = Ops::Composed(Numerics { compute_dtype, matmul_precision: MatmulPrecision::Float32 });
        let room = Room { name: "a card".to_owned(), total: 1 << 30, free };
        load_as(&fixture(name), &spec, &device(), Some(&room), highest, ops, packing)
    };
    for name in ["gpt2-tiny", "llama-tiny", "neox-tiny"] {
        for (compute_dtype, size) in [(ComputeDtype::Float32, 4), (ComputeDtype::Bf16, 2)] {
            for highest in [0, spec(name).n_layers() - 1] {
                let model = open(name, compute_dtype, highest, 1 << 30).expect("it fits");
                let matrices = model.layers.iter().flat_map(|layer| {
                    let rest = layer.rest.iter().flat_map(|rest| [&rest.out, &rest.mlp.up, &rest.mlp.down]);
                    [&layer.qkv].into_iter().chain(rest)
                });
                let matrices = matrices.chain(&model.embedding_projection);
                let taken: usize =
                    matrices.map(|matrix| size * matrix.weight.dims().iter().product::<usize>()).sum();
                assert!(open(name, compute_dtype, highest, taken as u64).is_ok(), "{name}");
                let error = open(name, compute_dtype, highest, taken as u64 - 1).err().expect("refused");
                assert!(matches!(&error, LoadError::Device(DeviceError::NoRoom(_))), "{error}");
                assert_eq!(error.kind(), FailureKind::Permanent);
            }
        }
    }
}

#[test]
fn input_the_model_cannot_read_is_refused_with_the_reason() {
    for mut engine in [host("gpt2-tiny"), device_engine("gpt2-tiny", Numerics::default())] {
        let mut refused = |prompts: Vec<Vec<u32>>, layers: &[usize]| match run_to_end(
            &mut *engine,
            TokenBatch { prompts },
            layers,
            drop,
        ) {
            Err(EngineError::Input(reason)) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(vec![vec![]], &[0]), "a prompt without tokens has no attention pattern");
        assert_eq!(
            refused(vec![vec![0; 65]], &[0]),
            "the prompt has 65 tokens, the model's context 64; truncate it"
        );
        assert_eq!(
            refused(vec![vec![1, 307]], &[0]),
            "token id 307 is outside the model's vocabulary of 307; tokenizer and model do not belong together"
        );
        assert_eq!(
            refused(vec![vec![1]], &[3]),
            "layer 3 was asked for; of the model's 3 layers, the first 3 are loaded"
        );
    }
}

#[test]
fn a_closed_sink_stops_the_batch() {
    struct Closed(mpsc::Sender<Result<(), EngineError>>);
    impl PatternSink for Closed {
        fn take(&mut self, _: Pattern) -> Result<(), SinkClosed> {
            Err(SinkClosed)
        }

        fn end(self: Box<Self>, result: Result<(), EngineError>) {
            self.0.send(result).expect("received below");
        }
    }
    let batch = TokenBatch { prompts: vec![vec![1, 2]] };
    for mut engine in [host("gpt2-tiny"), device_engine("gpt2-tiny", Numerics::default())] {
        let (ended, results) = mpsc::channel();
        engine.forward(batch.clone(), &[0, 1, 2], Box::new(Closed(ended.clone())));
        assert_eq!(results.recv().expect("an end"), Err(EngineError::Stopped));
        engine.forward(batch.clone(), &[], Box::new(Closed(ended)));
        assert_eq!(results.recv().expect("an end"), Ok(()), "no layer, nothing to take");
    }
}
