//! Stories of the pipeline, told with a made-up engine and a made-up store: no model, no disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use common::{
    capture::Capture,
    job::{FailureKind, Job, JobId, JobPrompt, ModelPin, ModelShape, RunId},
    prompt::{PromptHash, Record},
    queue::{Consume, Delivery, Publish, Settled, Settlement, memory},
};
use tokio::sync::watch;
use worker::{
    encode::Compression,
    engine::{Engine, EngineError, Layout, Pattern, PatternSink, TokenBatch, at_once},
    serve::{
        Commit, CommitError, End, Event, Hold, JobEnd, Models, OpenError, OpenModel, Options, Part,
        PromptEnd, Scope, ServeError, Shutdown, serve,
    },
};

const N_LAYERS: usize = 3;
const N_HEADS: usize = 2;

/// How the made-up engine behaves.
#[derive(Clone, Copy, Default)]
struct Behaviour {
    /// More tokens than this at once are out of memory.
    memory: Option<usize>,
    /// A batch with a prompt of this length panics.
    panics_at: Option<usize>,
    /// A prompt of this length cannot be computed.
    refuses: Option<usize>,
    /// Every batch takes this long.
    slow: Duration,
    /// The device fails from this batch on, counted from 0 by each engine opened.
    fails_from: Option<usize>,
    /// Where it fails, it does so for good.
    lost: bool,
    /// Batches end on another thread, while the next one is given already.
    late: bool,
}

struct FakeEngine {
    behaviour: Behaviour,
    batches: usize,
    /// Engines there are.
    live: Arc<AtomicUsize>,
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        // As a device takes a while to give its memory back.
        std::thread::sleep(Duration::from_millis(20));
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Engine for FakeEngine {
    fn forward(&mut self, batch: TokenBatch, layers: &[usize], sink: Box<dyn PatternSink>) {
        at_once(sink, |sink| self.compute(&batch, layers, sink));
    }
}

/// What an engine is given.
type Given = (TokenBatch, Vec<usize>, Box<dyn PatternSink>);

/// The same on a thread of its own, as a GPU works beside the thread that feeds it.
struct LateEngine {
    batches: Option<mpsc::SyncSender<Given>>,
    thread: Option<JoinHandle<()>>,
}

impl LateEngine {
    fn new(mut engine: FakeEngine) -> Self {
        let (batches, taken) = mpsc::sync_channel::<Given>(1);
        let thread = std::thread::spawn(move || {
            for (batch, layers, sink) in taken {
                engine.forward(batch, &layers, sink);
            }
        });
        LateEngine { batches: Some(batches), thread: Some(thread) }
    }
}

impl Engine for LateEngine {
    fn forward(&mut self, batch: TokenBatch, layers: &[usize], sink: Box<dyn PatternSink>) {
        // Where the thread broke, the sink goes down with the message.
        let _ = self.batches.as_ref().unwrap().send((batch, layers.to_vec(), sink));
    }
}

impl Drop for LateEngine {
    fn drop(&mut self) {
        drop(self.batches.take());
        let _ = self.thread.take().unwrap().join();
    }
}

impl FakeEngine {
    fn compute(
        &mut self,
        batch: &TokenBatch,
        layers: &[usize],
        sink: &mut dyn PatternSink,
    ) -> Result<(), EngineError> {
        let Behaviour { slow, panics_at, memory, refuses, fails_from, lost, .. } = self.behaviour;
        std::thread::sleep(slow);
        let lengths: Vec<_> = batch.prompts.iter().map(Vec::len).collect();
        self.batches += 1;
        if fails_from.is_some_and(|from| self.batches > from) {
            return Err(match lost {
                true => EngineError::DeviceLost("made up".into()),
                false => EngineError::Device("made up".into()),
            });
        }
        if panics_at.is_some_and(|n| lengths.contains(&n)) {
            panic!("the engine broke");
        }
        for &layer in layers {
            for (prompt, &n) in lengths.iter().enumerate() {
                // The first layer comes out before anything goes wrong, as on a real device.
                let pattern = Pattern {
                    prompt,
                    layer,
                    n_heads: N_HEADS,
                    n,
                    layout: Layout::Square,
                    values: vec![layer as f32; N_HEADS * n * n].into(),
                };
                sink.take(pattern).map_err(|_| EngineError::Stopped)?;
            }
            if memory.is_some_and(|limit| lengths.iter().sum::<usize>() > limit) {
                return Err(EngineError::OutOfMemory("made up".into()));
            }
            if refuses.is_some_and(|n| lengths.contains(&n)) {
                return Err(EngineError::Input("made up".into()));
            }
        }
        Ok(())
    }
}

struct FakeModels {
    behaviour: Behaviour,
    opened: Arc<Mutex<usize>>,
    live: Arc<AtomicUsize>,
    error: Option<Scope>,
}

impl Models for FakeModels {
    fn open(&mut self, _: &ModelPin, _: &Capture) -> Result<OpenModel, OpenError> {
        *self.opened.lock().unwrap() += 1;
        match self.error {
            Some(scope) => {
                Err(OpenError { kind: FailureKind::Permanent, scope, reason: "no such model".into() })
            }
            None => {
                self.live.fetch_add(1, Ordering::Relaxed);
                let engine =
                    FakeEngine { behaviour: self.behaviour, batches: 0, live: Arc::clone(&self.live) };
                let engine: Box<dyn Engine> = match self.behaviour.late {
                    true => Box::new(LateEngine::new(engine)),
                    false => Box::new(engine),
                };
                Ok(OpenModel { engine, n_layers: N_LAYERS, n_heads: N_HEADS })
            }
        }
    }
}

/// Remembers what was committed, how often and with which arrays.
#[derive(Clone, Default)]
struct FakeStore {
    commits: Arc<Mutex<BTreeMap<PromptHash, Vec<usize>>>>,
    cached: Arc<BTreeSet<PromptHash>>,
    broken: bool,
}

impl Commit for FakeStore {
    fn begin(&self, _: &Job, _: &[usize]) -> Result<Hold, CommitError> {
        Ok(Box::new(()))
    }

    fn is_committed(&self, _: &Job, prompt: &JobPrompt) -> bool {
        self.cached.contains(&prompt.hash)
    }

    fn commit(
        &self,
        _: &Job,
        prompt: &JobPrompt,
        layers: &[usize],
        parts: &mut Vec<Part>,
    ) -> Result<u64, CommitError> {
        if self.broken {
            return Err(CommitError { kind: FailureKind::Retryable, reason: "no space left".into() });
        }
        assert_eq!(layers.len(), parts.len());
        let before = self.commits.lock().unwrap().insert(prompt.hash.clone(), layers.to_vec());
        assert_eq!(before, None, "{} was committed twice", prompt.hash);
        Ok(1)
    }
}

fn prompt(i: usize, n: usize) -> JobPrompt {
    let hash = PromptHash::of(&format!("prompt {i}"));
    JobPrompt { hash, record: Record::new(), ids: vec![0; n] }
}

fn job(prompts: Vec<JobPrompt>) -> Job {
    let model = ModelPin { name: "fake".into(), source: "fake".into(), commit: "0".into() };
    let shape = ModelShape { n_layers: N_LAYERS, n_heads: N_HEADS };
    Job::new(RunId("run".into()), model, shape, Capture::default(), PathBuf::from("/nowhere"), false, prompts)
}

fn options() -> Options {
    Options {
        jobs_ahead: 2,
        batch_bytes: usize::MAX,
        raw_bytes: 1 << 20,
        encoded_bytes: 1 << 20,
        encoders: 2,
        committers: 2,
        compression: Compression::default(),
    }
}

/// What a story ends with.
struct Told {
    end: Result<End, ServeError>,
    commits: BTreeMap<PromptHash, Vec<usize>>,
    failed: Vec<(FailureKind, String)>,
    cached: usize,
    unfinished: usize,
    handed_back: usize,
    opened: usize,
}

struct Story {
    behaviour: Behaviour,
    store: FakeStore,
    open_error: Option<Scope>,
    options: Options,
    shutdown: Shutdown,
    /// Asks for a stop once so many batches have begun.
    stop_after: Option<usize>,
}

impl Default for Story {
    fn default() -> Self {
        Story {
            behaviour: Behaviour::default(),
            store: FakeStore::default(),
            open_error: None,
            options: options(),
            shutdown: Shutdown::default(),
            stop_after: None,
        }
    }
}

impl Story {
    async fn tell(self, jobs: Vec<Job>) -> Told {
        let (mut publisher, consumer) = memory::queue(jobs.len());
        for job in jobs {
            publisher.publish(job).await.unwrap();
        }
        drop(publisher);
        let opened = Arc::new(Mutex::new(0));
        let live = Arc::new(AtomicUsize::new(0));
        let models = FakeModels {
            behaviour: self.behaviour,
            opened: Arc::clone(&opened),
            live: Arc::clone(&live),
            error: self.open_error,
        };
        let (mut failed, mut cached, mut unfinished, mut handed_back, mut begun) = (Vec::new(), 0, 0, 0, 0);
        let stop = self.shutdown.stop.clone();
        let observe = |event: &Event| match event {
            Event::BatchBegan { .. } => {
                begun += 1;
                if self.stop_after == Some(begun) {
                    stop.cancel();
                }
            }
            Event::PromptEnded { end: PromptEnd::Failed(f), .. } => failed.push((f.kind, f.reason.clone())),
            Event::PromptEnded { end: PromptEnd::Cached, .. } => cached += 1,
            Event::PromptEnded { end: PromptEnd::Unfinished, .. } => unfinished += 1,
            Event::JobSettled { how: JobEnd::HandedBack, .. } => handed_back += 1,
            _ => {}
        };
        let served = serve(consumer, models, self.store.clone(), &self.options, self.shutdown, observe);
        let end = tokio::time::timeout(Duration::from_secs(30), served)
            .await
            .expect("the pipeline came to its end");
        assert_eq!(live.load(Ordering::Relaxed), 0, "an engine outlives serving");
        let commits = std::mem::take(&mut *self.store.commits.lock().unwrap());
        let opened = *opened.lock().unwrap();
        Told { end, commits, failed, cached, unfinished, handed_back, opened }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_prompt_of_every_job_is_committed_with_every_layer() {
    for late in [false, true] {
        let jobs: Vec<_> =
            (0..20).map(|j| job((0..5).map(|p| prompt(j * 5 + p, 10 + p)).collect())).collect();
        let told = Story { behaviour: Behaviour { late, ..Behaviour::default() }, ..Story::default() }
            .tell(jobs)
            .await;
        assert_eq!(told.end.unwrap(), End::Drained);
        assert_eq!(told.commits.len(), 100);
        assert!(told.commits.values().all(|layers| layers == &[0, 1, 2]));
        assert_eq!((told.failed.len(), told.opened), (0, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_budgets_are_slow_and_never_stuck() {
    for late in [false, true] {
        let options = Options {
            batch_bytes: 0,
            raw_bytes: 1,
            encoded_bytes: 1,
            jobs_ahead: 1,
            encoders: 1,
            committers: 1,
            ..options()
        };
        let jobs: Vec<_> = (0..4).map(|j| job((0..4).map(|p| prompt(j * 4 + p, 12)).collect())).collect();
        let told = Story {
            options: options.clone(),
            behaviour: Behaviour { late, ..Behaviour::default() },
            ..Story::default()
        }
        .tell(jobs)
        .await;
        assert_eq!(told.commits.len(), 16);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_already_is_not_computed_and_its_model_not_opened() {
    let prompts: Vec<_> = (0..3).map(|p| prompt(p, 4)).collect();
    let cached = Arc::new(prompts.iter().map(|p| p.hash.clone()).collect());
    let store = FakeStore { cached, ..FakeStore::default() };
    let told = Story { store, ..Story::default() }.tell(vec![job(prompts)]).await;
    assert_eq!((told.cached, told.commits.len(), told.opened), (3, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory_halves_the_batch_and_at_last_fails_one_prompt_alone() {
    for late in [false, true] {
        let behaviour = Behaviour { memory: Some(20), late, ..Behaviour::default() };
        let prompts = vec![prompt(0, 25), prompt(1, 10), prompt(2, 10), prompt(3, 10), prompt(4, 3)];
        let told = Story { behaviour, ..Story::default() }.tell(vec![job(prompts)]).await;
        assert_eq!(told.commits.len(), 4);
        let [(kind, reason)] = &told.failed[..] else { panic!("{:?}", told.failed) };
        assert_eq!(*kind, FailureKind::Retryable);
        assert!(reason.contains("(25 tokens): out of device memory"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_cannot_be_computed_costs_only_itself() {
    for late in [false, true] {
        let behaviour = Behaviour { refuses: Some(7), late, ..Behaviour::default() };
        let prompts = (0..9).map(|i| prompt(i, i + 1)).collect();
        let told = Story { behaviour, ..Story::default() }.tell(vec![job(prompts)]).await;
        assert_eq!(told.commits.len(), 8);
        assert_eq!(told.failed.len(), 1);
        assert_eq!(told.failed[0].0, FailureKind::Permanent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_costs_the_prompt_that_causes_it_and_the_model_is_opened_again() {
    let behaviour = Behaviour { panics_at: Some(7), ..Behaviour::default() };
    let jobs = vec![job(vec![prompt(0, 7), prompt(1, 2)]), job(vec![prompt(2, 3)])];
    let told = Story { behaviour, ..Story::default() }.tell(jobs).await;
    assert_eq!(told.commits.len(), 2);
    assert_eq!(told.opened, 3, "for the halves of the batch, and after the prompt");
    assert!(
        told.failed
            .iter()
            .all(|(kind, reason)| *kind == FailureKind::Bug && reason.contains("the engine broke"))
    );
    assert_eq!(told.failed.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_breaks_with_batches_in_its_hands_costs_the_prompt_that_breaks_it() {
    let behaviour = Behaviour { panics_at: Some(7), late: true, ..Behaviour::default() };
    let jobs: Vec<_> =
        (0..6).map(|j| job(vec![prompt(2 * j, if j == 2 { 7 } else { 5 }), prompt(2 * j + 1, 2)])).collect();
    let told = Story { behaviour, ..Story::default() }.tell(jobs).await;
    assert_eq!(told.commits.len() + told.failed.len(), 12);
    assert!(told.failed.iter().all(|(kind, _)| *kind == FailureKind::Bug));
    // A batch that was with the engine when it broke counts as suspect once, and is tried again in halves.
    assert_eq!(told.failed.len(), 1, "{:?}", told.failed);
    assert!(told.opened > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_fails_once_costs_one_job_a_try_and_one_that_keeps_failing_stops_the_worker() {
    for late in [false, true] {
        // Each engine computes one batch and fails at the next: never three failures in a row.
        let behaviour = Behaviour { fails_from: Some(1), late, ..Behaviour::default() };
        let jobs: Vec<_> = (0..8).map(|j| job(vec![prompt(j, 5)])).collect();
        let options = Options { jobs_ahead: 1, ..options() };
        let told = Story { behaviour, options, ..Story::default() }.tell(jobs).await;
        assert_eq!(told.end.unwrap(), End::Drained);
        assert_eq!((told.commits.len(), told.failed.len()), (4, 4));
        assert!(told.failed.iter().all(|(kind, _)| *kind == FailureKind::Retryable));

        let behaviour = Behaviour { fails_from: Some(0), late, ..Behaviour::default() };
        let jobs: Vec<_> = (0..20).map(|j| job(vec![prompt(j, 5)])).collect();
        let told = Story { behaviour, ..Story::default() }.tell(jobs).await;
        let error = told.end.unwrap_err();
        assert!(matches!(error, ServeError::Device { failures: 3, .. }), "{error}");
        assert!(told.failed.len() < 8, "{} jobs lost a try", told.failed.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_lost_stops_the_worker_at_once() {
    for late in [false, true] {
        let behaviour = Behaviour { fails_from: Some(1), lost: true, late, ..Behaviour::default() };
        let jobs: Vec<_> = (0..20).map(|j| job(vec![prompt(j, 5)])).collect();
        let told = Story { behaviour, ..Story::default() }.tell(jobs).await;
        let error = told.end.unwrap_err();
        assert!(matches!(error, ServeError::DeviceLost(_)), "{error}");
        assert_eq!((told.commits.len(), told.opened), (1, 1), "nothing is opened on it again");
        // Those it had in hand: the one that it failed at and, where batches overlap, the one after.
        assert!((1..=4).contains(&told.failed.len()), "{} jobs lost a try", told.failed.len());
        assert!(told.failed.iter().all(|(kind, _)| *kind == FailureKind::Retryable));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_the_job_in_hand_and_hands_the_others_back() {
    let behaviour = Behaviour { slow: Duration::from_millis(50), ..Behaviour::default() };
    let jobs: Vec<_> = (0..10).map(|j| job(vec![prompt(j, 5)])).collect();
    let told = Story { behaviour, stop_after: Some(2), ..Story::default() }.tell(jobs).await;
    assert_eq!(told.end.unwrap(), End::Stopped);
    assert!((1..=3).contains(&told.commits.len()), "{} committed", told.commits.len());
    assert_eq!(told.unfinished, told.handed_back);
    assert!(told.failed.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_interrupts_the_batch() {
    let shutdown = Shutdown::default();
    shutdown.leave.cancel();
    shutdown.stop.cancel();
    let told = Story { shutdown, ..Story::default() }.tell(vec![job(vec![prompt(0, 5)])]).await;
    assert_eq!(told.end.unwrap(), End::Stopped);
    assert_eq!(told.commits.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_the_run_instead_of_heating_the_device() {
    let store = FakeStore { broken: true, ..FakeStore::default() };
    let behaviour = Behaviour { slow: Duration::from_millis(2), ..Behaviour::default() };
    let jobs: Vec<_> = (0..200).map(|j| job(vec![prompt(j, 5)])).collect();
    let told = Story { store, behaviour, ..Story::default() }.tell(jobs).await;
    let error = told.end.unwrap_err();
    assert!(matches!(error, ServeError::Storage { .. }), "{error}");
    assert!(error.to_string().contains("no space left"), "{error}");
    assert!(told.failed.len() < 100, "{} prompts were computed for nothing", told.failed.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_nobody_can_open_fails_its_jobs_one_that_only_we_cannot_hands_them_back() {
    let told =
        Story { open_error: Some(Scope::Job), ..Story::default() }.tell(vec![job(vec![prompt(0, 5)])]).await;
    assert_eq!((told.end.unwrap(), told.handed_back), (End::Drained, 0));

    let told = Story { open_error: Some(Scope::Worker), ..Story::default() }
        .tell(vec![job(vec![prompt(0, 5)])])
        .await;
    assert!(matches!(told.end, Err(ServeError::Model(_))));
    assert_eq!(told.handed_back, 1);
}

/// A queue that settles nothing that failed before so many other jobs are done, as a broker short of memory.
struct Stalled {
    queue: memory::Consumer,
    done: watch::Sender<usize>,
    until: usize,
}

impl Consume for Stalled {
    type Tag = JobId;
    type Error = Infallible;
    type Settling = Pin<Box<dyn Future<Output = Result<Settled, Infallible>> + Send>>;

    async fn next(&mut self) -> Result<Option<Delivery<JobId>>, Infallible> {
        self.queue.next().await
    }

    fn settle(&mut self, tag: JobId, settlement: Settlement) -> Self::Settling {
        let failed = matches!(settlement, Settlement::Failed(_));
        let settled = self.queue.settle(tag, settlement);
        if !failed {
            self.done.send_modify(|done| *done += 1);
            return Box::pin(settled);
        }
        let (mut done, until) = (self.done.subscribe(), self.until);
        Box::pin(async move {
            done.wait_for(|done| *done >= until).await.expect("the queue is there");
            settled.await
        })
    }

    async fn stop(&mut self) {
        self.queue.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_that_takes_long_holds_up_no_other() {
    let jobs: Vec<_> = (0..6).map(|j| job(vec![prompt(j, if j == 0 { 9 } else { 5 })])).collect();
    let (mut publisher, consumer) = memory::queue(jobs.len());
    for job in jobs {
        publisher.publish(job).await.unwrap();
    }
    drop(publisher);
    let mut queue = Stalled { queue: consumer, done: watch::Sender::default(), until: 5 };
    let behaviour = Behaviour { refuses: Some(9), ..Behaviour::default() };
    let models = FakeModels { behaviour, opened: Arc::default(), live: Arc::default(), error: None };
    let (options, mut settled) = (options(), Vec::new());
    let observe = |event: &Event| {
        if let Event::JobSettled { failures, .. } = event {
            settled.push(failures.len());
        }
    };
    let served = serve(&mut queue, models, FakeStore::default(), &options, Shutdown::default(), observe);
    let end = tokio::time::timeout(Duration::from_secs(30), served).await.expect("nothing was held up");
    assert_eq!(end.unwrap(), End::Drained);
    assert_eq!((settled.len(), queue.queue.failed.len()), (6, 1));
    assert_eq!(settled.iter().sum::<usize>(), 1, "the failed job is told of, too");
}
