//! The models, in burn: a checkpoint and its [`ModelSpec`] in, an [`Engine`](crate::engine::Engine) out.
//!
//! Owns weights, devices and the forward pass. Which file is which model, and what a config.json means, is
//! decided in [`common::model`]; what happens to patterns is the sink's business.

mod batch;
mod checkpoint;
pub mod device;
mod embed;
mod ops;
mod rotary;
mod transformer;
mod values;
mod weights;

use std::path::{Path, PathBuf};

use common::model::{
    spec::ModelSpec,
    weights::{Plan, WeightsError},
};

pub use self::transformer::Transformer;
use self::{
    batch::Packing,
    checkpoint::Checkpoint,
    device::{DeviceChoice, DeviceError},
    embed::Embedding,
    ops::{Heads, Ops},
    rotary::RotaryTables,
    weights::Loader,
};

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A directory without weights.
    #[error(
        "no weights in {dir}: no model.safetensors, no pytorch_model.bin and no index of shards; \
         give a directory that holds a whole checkpoint"
    )]
    NoWeights {
        /// The directory.
        dir: PathBuf,
    },
    /// A file that cannot be read.
    #[error("cannot read {path}: {reason}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file that is not what it should be.
    #[error("{path} is damaged: {reason}; fetch it again")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A number type that is not supported.
    #[error("tensor {tensor} is stored as {found}; supported are F32, F16 and BF16, so no quantized weights")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// What it is stored as.
        found: String,
    },
    /// A tensor that cannot be read.
    #[error("cannot read tensor {tensor}: {reason}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What went wrong.
        reason: String,
    },
    /// The tensors are not those the configuration calls for.
    #[error("{dir}: {error}")]
    Tensors {
        /// The checkpoint.
        dir: PathBuf,
        /// Which.
        error: WeightsError,
    },
    /// No such device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A layer the model does not have.
    #[error("layer {asked} was asked for; the model has {n_layers}, counted from 0")]
    NoSuchLayer {
        /// The layer.
        asked: usize,
        /// How many there are.
        n_layers: usize,
    },
}

/// Loads the checkpoint in `dir` onto `device`, as far as `highest_layer`'s softmax.
pub fn load(
    dir: &Path,
    spec: &ModelSpec,
    device: &DeviceChoice,
    highest_layer: usize,
) -> Result<Transformer, LoadError> {
    let choice = device.resolve();
    let (ops, packing) = match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => {
            (Ops::Native, Packing::Unpadded { max_rows: transformer::CPU_ROWS })
        }
        DeviceChoice::Cuda(_) => (Ops::Composed, Packing::Padded),
    };
    load_as(dir, spec, choice, highest_layer, ops, packing)
}

/// As [`load`], with a choice of how to compute.
fn load_as(
    dir: &Path,
    spec: &ModelSpec,
    device: DeviceChoice,
    highest_layer: usize,
    ops: Ops,
    packing: Packing,
) -> Result<Transformer, LoadError> {
    let n_layers = spec.n_layers();
    if highest_layer >= n_layers {
        return Err(LoadError::NoSuchLayer { asked: highest_layer, n_layers });
    }
    let checkpoint = Checkpoint::open(dir)?;
    let plan = Plan::new(spec, &checkpoint.header())
        .map_err(|error| LoadError::Tensors { dir: dir.to_owned(), error })?;
    let device = device.open()?;
    let loader = Loader { checkpoint: &checkpoint, spec, device: &device, ops };
    let projection = plan.embedding_projection.as_ref().map(|plan| loader.linear(&[plan]));
    Ok(Transformer {
        ops,
        packing,
        embedding: Embedding::new(&checkpoint, spec, &plan)?,
        embedding_projection: projection.transpose()?,
        embedding_norm: plan.embedding_norm.as_ref().map(|norm| loader.norm(norm)).transpose()?,
        layers: loader.layers(&plan, highest_layer)?,
        rules: transformer::rules(spec),
        rotary: RotaryTables::new(spec, &device),
        heads: Heads { query: spec.n_heads, key: spec.n_kv_heads, width: spec.d_head },
        activation: spec.activation,
        d_model: spec.d_model,
        n_layers,
        device,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use common::model::family::read_spec;

    use super::*;
    use crate::engine::{Engine, EngineError, Pattern, PatternSink, SinkClosed, TokenBatch};

    #[derive(Default)]
    struct Collect(BTreeMap<(usize, usize), Vec<f32>>);

    impl PatternSink for Collect {
        fn take(&mut self, pattern: Pattern) -> Result<(), SinkClosed> {
            assert_eq!(pattern.values.len(), pattern.n_heads * pattern.n * pattern.n);
            self.0.insert((pattern.prompt, pattern.layer), pattern.values);
            Ok(())
        }
    }

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models").join(name)
    }

    fn open(name: &str, ops: Ops, packing: Packing) -> Transformer {
        let dir = fixture(name);
        let spec = read_spec(&dir.join("config.json")).expect("a fixture's configuration");
        load_as(&dir, &spec, DeviceChoice::Cpu, spec.n_layers() - 1, ops, packing).expect("a fixture")
    }

    fn patterns(engine: &mut Transformer, batch: &TokenBatch) -> BTreeMap<(usize, usize), Vec<f32>> {
        let mut sink = Collect::default();
        let layers: Vec<usize> = (0..engine.n_layers).collect();
        engine.forward(batch, &layers, &mut sink).expect("forward");
        sink.0
    }

    /// The GPU's way (burn's operations, one padded group) and the CPU's (our kernels, no padding, several
    /// passes) agree; the goldens of tests/parity.rs say that both are right.
    #[test]
    fn composed_and_padded_equals_native_and_unpadded() {
        let batch = TokenBatch {
            prompts: [33, 20, 7, 1].map(|n| (0..n).map(|t| (t * 37 + n) % 256).collect()).to_vec(),
        };
        let mut names: Vec<String> = std::fs::read_dir(fixture(""))
            .expect("fixtures")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
            .collect();
        names.sort();
        for name in names {
            let native = Packing::Unpadded { max_rows: 40 };
            let ours = patterns(&mut open(&name, Ops::Native, native), &batch);
            let burns = patterns(&mut open(&name, Ops::Composed, Packing::Padded), &batch);
            assert_eq!(ours.keys().collect::<Vec<_>>(), burns.keys().collect::<Vec<_>>());
            for (place, ours) in &ours {
                let pairs = ours.iter().zip(&burns[place]);
                let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 3e-5, "{name} {place:?}: {off:e}");
            }
        }
    }

    #[test]
    fn input_the_model_cannot_read_is_refused_with_the_reason() {
        let mut engine = open("gpt2-tiny", Ops::Native, Packing::Padded);
        let mut refused = |prompts: Vec<Vec<u32>>, layers: &[usize]| {
            let batch = TokenBatch { prompts };
            match engine.forward(&batch, layers, &mut Collect::default()) {
                Err(EngineError::Input(reason)) => reason,
                other => panic!("{other:?}"),
            }
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

    #[test]
    fn a_closed_sink_stops_the_batch() {
        struct Closed;
        impl PatternSink for Closed {
            fn take(&mut self, _: Pattern) -> Result<(), SinkClosed> {
                Err(SinkClosed)
            }
        }
        let mut engine = open("gpt2-tiny", Ops::Native, Packing::Padded);
        let batch = TokenBatch { prompts: vec![vec![1, 2]] };
        assert_eq!(engine.forward(&batch, &[0], &mut Closed), Err(EngineError::Stopped));
        assert_eq!(engine.forward(&batch, &[], &mut Closed), Ok(()), "no layer, nothing to take");
    }
}
