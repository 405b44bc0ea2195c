//! What the queue costs, without a model: prompts a second into the broker, jobs a second out of it, and the seconds
//! of a run that finds everything done.
//!
//! ```text
//! cargo build --release --workspace --bins
//! cargo run --release -p tests --example queue_cost -- [--prompts 1000000] [--jobs 100000] [--workers 64]
//! ```
//!
//! A real broker and the real `dispatcher`; workers are the real pipeline and queue with an engine that computes
//! nothing and a store that writes nothing, each with connections of its own, in one process. Prints a table.

use std::{
    fmt::Write as _,
    fs,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use clap::Parser;
use common::{
    capture::Capture,
    job::{Job, JobPrompt, ModelPin, ModelShape, RunId},
    model::reference::ModelName,
    prompt::{PromptHash, Record},
    queue::{
        Publish,
        rabbitmq::{Broker, ConsumeOptions, Consumer, Leave, Publisher, Wanted},
    },
    settings::{self, BrokerUrl, Settings},
    store::layout::SaveLayout,
};
use serde_json::{Value, json};
use tests::{broker, fixture, site::MODEL};
use worker::{
    encode::Compression,
    engine::{Engine, EngineError, Layout, Pattern, PatternSink, TokenBatch, at_once},
    serve::{self, Commit, CommitError, Hold, Models, OpenError, OpenModel, Part, Shutdown},
};

/// What to measure.
#[derive(Parser)]
struct Args {
    /// Prompts to enqueue, and to find cached
    #[arg(long, default_value_t = 1_000_000)]
    prompts: usize,
    /// Jobs to drain
    #[arg(long, default_value_t = 100_000)]
    jobs: usize,
    /// Workers that drain them
    #[arg(long, default_value_t = 64)]
    workers: usize,
}

/// Gives one empty-handed pattern a layer: a single number.
struct NullEngine;

impl Engine for NullEngine {
    fn forward(&mut self, batch: TokenBatch, layers: &[usize], sink: Box<dyn PatternSink>) {
        at_once(sink, |sink| {
            for &layer in layers {
                for (prompt, ids) in batch.prompts.iter().enumerate() {
                    let (n, layout) = (ids.len(), Layout::Square);
                    let values = vec![0.0; n * n].into();
                    let pattern = Pattern { prompt, layer, n_heads: 1, n, layout, values };
                    sink.take(pattern).map_err(|_| EngineError::Stopped)?;
                }
            }
            Ok(())
        });
    }
}

struct NullModels;

impl Models for NullModels {
    fn open(&mut self, _: &ModelPin, _: &Capture) -> Result<OpenModel, OpenError> {
        Ok(OpenModel { engine: Box::new(NullEngine), n_layers: 1, n_heads: 1 })
    }
}

struct NullStore;

impl Commit for NullStore {
    fn begin(&self, _: &Job, _: &[usize]) -> Result<Hold, CommitError> {
        Ok(Box::new(()))
    }

    fn is_committed(&self, _: &Job, _: &JobPrompt) -> bool {
        false
    }

    fn commit(&self, _: &Job, _: &JobPrompt, _: &[usize], _: &mut Vec<Part>) -> Result<u64, CommitError> {
        Ok(0)
    }
}

fn main() {
    let args = Args::parse();
    let site = Site::new();
    let mut table = String::new();
    site.enqueue_and_rerun(args.prompts, &mut table);
    site.drain(args.jobs, args.workers, &mut table);
    println!("{table}");
}

struct Site {
    broker: broker::Broker,
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Site {
        let broker = broker::Broker::builder().memory("4GB").start();
        Site { broker, dir: tempfile::tempdir().expect("a temporary directory can be made") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn enqueue_and_rerun(&self, count: usize, table: &mut String) {
        let prompts = self.path("prompts.jsonl");
        let hashes = write_prompts(&prompts, count);
        let first = self.enqueue(&prompts);
        let model = &first["models"][0];
        let number = |value: &Value| value.as_f64().expect("a number");
        let prepare = number(&model["prepare_seconds"]);
        let publish = number(&model["total_seconds"]) - prepare;
        let _ = writeln!(
            table,
            "enqueue {count} prompts in {} jobs: {prepare:.1} s to read, look and tokenize, {publish:.1} s to \
             publish: {:.0} prompts/s; peak memory {:.0} MB",
            model["jobs"],
            number(&model["published"]) / publish,
            number(&first["peak_memory"]) / 1e6
        );

        let model = ModelName::try_from(MODEL.to_owned()).expect("a model's name");
        let layout = SaveLayout::new(self.path("attn_data")).model(&model);
        for hash in &hashes {
            fs::create_dir_all(layout.prompt(hash)).expect("the disk has room");
            fs::write(layout.prompt_json(hash), "{}").expect("the disk has room");
            fs::write(layout.activations(hash, Default::default()), "x").expect("the disk has room");
        }
        let begin = Instant::now();
        let again = self.enqueue(&prompts);
        let took = begin.elapsed().as_secs_f64();
        assert_eq!(again["models"][0]["cached"], count, "{again:#}");
        let _ = writeln!(
            table,
            "the same again, all cached: {took:.1} s in all, reading and hashing included: {:.0} prompts/s; peak \
             memory {:.0} MB",
            count as f64 / took,
            number(&again["peak_memory"]) / 1e6
        );
    }

    fn enqueue(&self, prompts: &Path) -> Value {
        let dispatcher = std::env::current_exe().expect("this program has a path");
        let dispatcher =
            dispatcher.parent().and_then(Path::parent).expect("it lies in target").join("dispatcher");
        let mut command = Command::new(dispatcher);
        command.args(["enqueue", "--json", "--no-index-html", "--model"]).arg(fixture(MODEL));
        command.arg("--prompts").arg(prompts).arg("--save-path").arg(self.path("attn_data"));
        command.env("AMQP_URL", self.broker.url()).env("HF_HUB_OFFLINE", "1");
        let output = command.output().expect("target/release/dispatcher is built");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("a summary is JSON")
    }

    fn drain(&self, jobs: usize, n_workers: usize, table: &mut String) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build()
            .expect("the system gives threads");
        let settings = Settings {
            queue: settings::Queue {
                amqp: BrokerUrl::new(self.broker.url()),
                namespace: "drain".to_owned(),
                ..Default::default()
            },
            ..Default::default()
        };
        let broker = Broker::new(&settings.queue).expect("the settings are right");
        runtime.block_on(async {
            let begin = Instant::now();
            let mut publisher = Publisher::connect(&broker).await.expect("the broker is there");
            for i in 0..jobs {
                publisher.publish(job(i)).await.expect("the broker takes it");
            }
            publisher.flush().await.expect("the broker takes them");
            publisher.close().await;
            let published = begin.elapsed().as_secs_f64();

            let idle = Duration::from_secs(2);
            let options = ConsumeOptions {
                wanted: Wanted::Models(vec![ModelName::try_from("null".to_owned()).expect("a name")]),
                prefetch: 3,
                leave: Leave { idle: Some(idle), retries: None },
            };
            let begin = Instant::now();
            let workers: Vec<_> = (0..n_workers)
                .map(|_| tokio::spawn(one_worker(broker.clone(), options.clone())))
                .collect();
            let mut settled = 0;
            let mut last = begin;
            for worker in workers {
                let (count, at) = worker.await.expect("a worker does not panic");
                settled += count;
                last = last.max(at);
            }
            assert_eq!(settled, jobs);
            let took = (last - begin).as_secs_f64();
            let _ = writeln!(
                table,
                "{jobs} jobs published one by one in {published:.1} s ({:.0} jobs/s), drained by {n_workers} workers in \
                 {took:.1} s: {:.0} jobs/s, {:.2} ms a job over all workers",
                jobs as f64 / published,
                jobs as f64 / took,
                took * 1e3 / jobs as f64
            );
        });
    }
}

/// Serves until the queue is empty; returns the jobs settled and when the last one was.
async fn one_worker(broker: Broker, options: ConsumeOptions) -> (usize, Instant) {
    let mut consumer = Consumer::connect(&broker, options).await.expect("the broker is there");
    let pipeline = serve::Options {
        jobs_ahead: 3,
        batch_bytes: usize::MAX,
        raw_bytes: 1 << 20,
        encoded_bytes: 1 << 20,
        encoders: 1,
        committers: 1,
        compression: Compression::default(),
    };
    let (mut settled, mut last) = (0, Instant::now());
    let observe = |event: &serve::Event| {
        if let serve::Event::JobSettled { .. } = event {
            settled += 1;
            last = Instant::now();
        }
    };
    let served =
        serve::serve(&mut consumer, NullModels, NullStore, &pipeline, Shutdown::default(), observe).await;
    served.expect("nothing fails");
    consumer.close().await;
    (settled, last)
}

/// A job of one prompt of four tokens.
fn job(i: usize) -> Job {
    let prompt = JobPrompt { hash: PromptHash::of(&i.to_string()), record: Record::new(), ids: vec![1; 4] };
    let model = ModelPin { name: "null".into(), source: "null".into(), commit: "0".into() };
    let shape = ModelShape { n_layers: 1, n_heads: 1 };
    Job::new(RunId("null".into()), model, shape, Capture::default(), "/nowhere".into(), false, vec![prompt])
}

/// Writes `count` different prompts of 8 to 40 words.
fn write_prompts(path: &Path, count: usize) -> Vec<PromptHash> {
    const WORDS: [&str; 12] =
        ["the", "queue", "holds", "a", "prompt", "and", "every", "worker", "takes", "its", "turn", "again"];
    let mut file = BufWriter::new(fs::File::create(path).expect("the disk has room"));
    let text = |i: usize| {
        let words = (0..8 + i % 33).map(|at| WORDS[(i / (at + 1) + at) % WORDS.len()]);
        format!("{i} {}", words.collect::<Vec<_>>().join(" "))
    };
    let hashes = (0..count).map(|i| {
        let text = text(i);
        writeln!(file, "{}", json!({"text": text})).expect("the disk has room");
        PromptHash::of(&text)
    });
    hashes.collect()
}
