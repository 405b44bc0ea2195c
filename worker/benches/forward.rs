//! Tokens per second and GFLOP/s of the forward pass, on a checkpoint of GPT-2 small's size with random weights.
//!
//! `cargo bench -p worker --bench forward -- [--tokens N] [--prompts N] [--repeat N] [--device cpu|cuda]`. Patterns are
//! dropped as they come. The FLOP counted are those of a whole causal model without unembedding: what is skipped
//! (the last layer's rest, the scores above the diagonal) makes the figure higher, not the count lower.

use std::{collections::BTreeMap, path::Path, time::Instant};

use common::{capture::Numerics, model::family::read_spec};
use safetensors::tensor::{Dtype, TensorView};
use worker::{
    engine::{TokenBatch, run_to_end},
    model::{device::DeviceChoice, load},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WIDTH: usize = 768;
const LAYERS: usize = 12;
const CONTEXT: usize = 1024;
const VOCABULARY: usize = 50257;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        arguments.iter().position(|argument| argument == name).and_then(|at| arguments.get(at + 1).cloned())
    };
    let number = |name: &str, usual: usize| value(name).and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (tokens, prompts, repeat) = (number("--tokens", 116), number("--prompts", 16), number("--repeat", 5));
    let device: DeviceChoice = value("--device").unwrap_or("cpu".to_owned()).parse().expect("a device");

    let dir = std::env::temp_dir().join("lenspool-bench-gpt2-small");
    if !dir.join("model.safetensors").exists() {
        write_checkpoint(&dir);
    }
    let spec = read_spec(&dir.join("config.json")).expect("the config written here");
    let start = Instant::now();
    let mut engine =
        load(&dir, &spec, device, Numerics::default(), LAYERS - 1).expect("the checkpoint written here");
    println!("load {:.2} s", start.elapsed().as_secs_f64());

    let prompt = |p: usize| (0..tokens).map(|t| ((p * 7919 + t * 104_729) % VOCABULARY) as u32).collect();
    let batch = TokenBatch { prompts: (0..prompts).map(prompt).collect() };
    let layers: Vec<usize> = (0..LAYERS).collect();
    let mut seconds: Vec<f64> = (0..=repeat)
        .map(|_| {
            let start = Instant::now();
            let taken = |pattern| drop(std::hint::black_box(pattern));
            run_to_end(&mut *engine, batch.clone(), &layers, taken).expect("forward");
            start.elapsed().as_secs_f64()
        })
        .skip(1)
        .collect();
    seconds.sort_by(f64::total_cmp);
    let rows = (tokens * prompts) as f64;
    let flop = LAYERS as f64 * (24.0 * (WIDTH * WIDTH) as f64 + 4.0 * (tokens * WIDTH) as f64) * rows;
    let median = seconds[seconds.len() / 2];
    println!(
        "{prompts} prompts of {tokens} tokens: median {:.1} ms, best {:.1} ms, {:.0} tokens/s, {:.0} GFLOP/s",
        median * 1e3,
        seconds[0] * 1e3,
        rows / median,
        flop / median / 1e9
    );
}

/// GPT-2 small with numbers of no meaning, of the size that training leaves.
fn write_checkpoint(dir: &Path) {
    std::fs::create_dir_all(dir).expect("a temporary directory");
    let config = serde_json::json!({
        "model_type": "gpt2", "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 12, "n_positions": CONTEXT,
        "vocab_size": VOCABULARY,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).expect("config.json");
    let mut shapes = BTreeMap::from([
        ("wte.weight".to_owned(), vec![VOCABULARY, WIDTH]),
        ("wpe.weight".to_owned(), vec![CONTEXT, WIDTH]),
    ]);
    let mut vectors = vec![("ln_f".to_owned(), WIDTH)];
    for layer in 0..LAYERS {
        vectors.extend(["ln_1", "ln_2"].map(|name| (format!("h.{layer}.{name}"), WIDTH)));
        for (name, from, to) in [
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH),
            ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ] {
            shapes.insert(format!("h.{layer}.{name}.weight"), vec![from, to]);
            shapes.insert(format!("h.{layer}.{name}.bias"), vec![to]);
        }
    }
    for (name, width) in vectors {
        shapes.insert(format!("{name}.weight"), vec![width]);
        shapes.insert(format!("{name}.bias"), vec![width]);
    }
    let mut state = 1u32;
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let bytes = (0..shape.iter().product())
                .flat_map(|_: usize| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    ((state as f32 / u32::MAX as f32 - 0.5) * 0.1).to_le_bytes()
                })
                .collect();
            (name, shape, bytes)
        })
        .collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("shapes fit"))
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).expect("model.safetensors");
}
