//! Whether memory grows over a long run: batches of mixed length through the engine, fed as a run feeds it, their
//! patterns looked at and dropped as they come.
//!
//! Every tenth of the run has the same mix of lengths, and memory is read while nothing is in flight, so that figures
//! of two tenths can be compared. By the end of the second all that is made once has been made.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    num::NonZeroUsize,
    sync::mpsc::{Receiver, Sender, channel},
    time::{Duration, Instant},
};

use common::{
    model::spec::ModelSpec,
    plan::memory::default_batch_memory,
    settings::Settings,
    talk::{peak_memory, resident_memory},
};
use serde::Serialize;

use super::{Failed, Report, opened::Opened};
use crate::{
    engine::{Engine, EngineError, Pattern, PatternSink, SinkClosed, TokenBatch},
    model::device::{DeviceChoice, DeviceMemory},
    serve::split::split,
};

/// Parts of batches that the engine may have at once: as many as a run holds jobs.
const IN_FLIGHT: usize = 3;
/// How often memory is looked at.
const TENTHS: u64 = 10;

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) batches: u64,
    pub(super) batch_size: NonZeroUsize,
    pub(super) seed: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct SoakReport {
    model: String,
    device: String,
    batches: u64,
    batch_size: NonZeroUsize,
    seed: u64,
    prompts: u64,
    tokens: u64,
    /// Passes through the engine: more than batches where some were split to fit the device.
    parts: u64,
    /// Parts that the device had no memory for after all; their halves were tried again.
    out_of_memory: u64,
    load_seconds: f64,
    /// Compiling and tuning kernels, of `seconds`.
    warm_up_seconds: f64,
    /// Without loading.
    seconds: f64,
    /// Without loading and warming up, as the next one.
    batches_per_s: f64,
    prompts_per_s: f64,
    /// Where the device tells.
    device_total_bytes: Option<u64>,
    tenths: Vec<Mark>,
    host_peak_bytes: Option<u64>,
    /// Resident memory's, from the second tenth's end to the last's.
    host_growth_bytes: Option<i64>,
    device_growth_bytes: Option<i64>,
}

/// Memory after some of the batches.
#[derive(Clone, Copy, Debug, Serialize)]
struct Mark {
    batches: u64,
    seconds: f64,
    host_bytes: Option<u64>,
    /// Of the whole device, other processes' included.
    device_bytes: Option<u64>,
}

pub(super) fn measure(
    name: &str,
    device: Option<&str>,
    plan: Plan,
    settings: &Settings,
) -> Result<SoakReport, Failed> {
    let Opened { name, spec, device, mut engine, load } = Opened::open(name, device, settings)?;
    let batch_bytes =
        settings.run.batch_memory.map_or_else(|| default_batch_memory().batch_bytes, |size| size.as_u64());
    let feed = Feed::new(&mut *engine, &spec, usize::try_from(batch_bytes).unwrap_or(usize::MAX));
    let mut report =
        soak(feed, &spec, plan, device).map_err(|error| Failed::new(format_args!("{name}: {error}")))?;
    report.model = name;
    report.load_seconds = load.as_secs_f64();
    Ok(report)
}

/// Runs all of `plan`.
fn soak(
    mut feed: Feed,
    spec: &ModelSpec,
    plan: Plan,
    device: DeviceChoice,
) -> Result<SoakReport, EngineError> {
    let Plan { batches, batch_size, seed } = plan;
    let mut random = Random(seed);
    let phase = random.unit();
    let begin = Instant::now();
    let (mut prompts, mut tokens) = (0, 0);
    let mut tenths = Vec::new();
    for batch in 0..batches {
        let lengths = lengths(longest(batch, phase, spec.n_ctx), batch_size, &mut random);
        prompts += lengths.len() as u64;
        tokens += lengths.iter().sum::<usize>() as u64;
        let ids = |n| (0..n).map(|_| random.below(spec.d_vocab) as u32).collect();
        feed.give(lengths.into_iter().map(ids).collect())?;
        if tenth_ends(batch + 1, batches) {
            feed.drain()?;
            tenths.push(Mark {
                batches: batch + 1,
                seconds: begin.elapsed().as_secs_f64(),
                host_bytes: resident_memory(),
                device_bytes: device.memory().map(|memory| memory.used),
            });
        }
    }
    let took = begin.elapsed();
    let busy = took.saturating_sub(feed.warm_up).as_secs_f64().max(1e-9);
    Ok(SoakReport {
        model: String::new(),
        device: device.to_string(),
        batches,
        batch_size,
        seed,
        prompts,
        tokens,
        parts: feed.parts,
        out_of_memory: feed.out_of_memory,
        load_seconds: 0.0,
        warm_up_seconds: feed.warm_up.as_secs_f64(),
        seconds: took.as_secs_f64(),
        batches_per_s: batches as f64 / busy,
        prompts_per_s: prompts as f64 / busy,
        device_total_bytes: device.memory().map(|DeviceMemory { total, .. }| total),
        host_peak_bytes: peak_memory(),
        host_growth_bytes: growth(&tenths, |mark| mark.host_bytes),
        device_growth_bytes: growth(&tenths, |mark| mark.device_bytes),
        tenths,
    })
}

/// Whether the `done`th of `batches` batches ends a tenth of them.
fn tenth_ends(done: u64, batches: u64) -> bool {
    (1..=TENTHS).any(|tenth| (u128::from(batches) * u128::from(tenth)).div_ceil(10) == u128::from(done))
}

/// How much more there is at the last mark than at the second.
fn growth(tenths: &[Mark], bytes: impl Fn(&Mark) -> Option<u64>) -> Option<i64> {
    let (second, last) = (bytes(tenths.get(1)?)?, bytes(tenths.last()?)?);
    Some(last as i64 - second as i64)
}

/// The longest prompt of a batch: every octave of lengths up to `n_ctx` comes as often, and multiples of the golden
/// ratio spread evenly over any stretch of batches.
fn longest(batch: u64, phase: f64, n_ctx: usize) -> usize {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let place = (phase + batch as f64 * GOLDEN).fract();
    ((n_ctx as f64 + 1.0).powf(place) as usize).clamp(1, n_ctx)
}

/// Lengths of a batch's prompts, longest first, all others anything up to the longest.
fn lengths(longest: usize, batch_size: NonZeroUsize, random: &mut Random) -> Vec<usize> {
    let others = (1..batch_size.get()).map(|_| 1 + random.below(longest));
    let mut lengths: Vec<usize> = std::iter::once(longest).chain(others).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths
}

/// SplitMix64 (Steele, Lea and Flood, 2014): as random as token ids need to be.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Under `n`.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In 0 to 1, without the latter.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Gives batches to an engine without waiting for each, as a run does (see [`crate::serve`]).
struct Feed<'e> {
    engine: &'e mut dyn Engine,
    layers: Vec<usize>,
    n_heads: usize,
    batch_bytes: usize,
    /// What the engine has, the oldest first.
    in_flight: VecDeque<Part>,
    parts: u64,
    out_of_memory: u64,
    warm_up: Duration,
}

/// Prompts that go through the engine together.
struct Part {
    prompts: Vec<Vec<u32>>,
    end: Receiver<Result<(), EngineError>>,
}

impl<'e> Feed<'e> {
    fn new(engine: &'e mut dyn Engine, spec: &ModelSpec, batch_bytes: usize) -> Self {
        Feed {
            engine,
            layers: (0..spec.n_layers()).collect(),
            n_heads: spec.n_heads,
            batch_bytes,
            in_flight: VecDeque::new(),
            parts: 0,
            out_of_memory: 0,
            warm_up: Duration::ZERO,
        }
    }

    /// Gives `prompts` (longest first), in parts that fit, and waits only while too many are in flight.
    fn give(&mut self, prompts: Vec<Vec<u32>>) -> Result<(), EngineError> {
        let mut pending = VecDeque::from([prompts]);
        while let Some(prompts) = pending.pop_front() {
            let indices: Vec<usize> = (0..prompts.len()).collect();
            let fits = |count, longest| self.engine.fits(count, longest);
            let n_patterns = self.layers.len() * self.n_heads;
            let runs = split(&indices, |&p| prompts[p].len(), n_patterns, self.batch_bytes, fits);
            for run in runs {
                while self.in_flight.len() >= IN_FLIGHT {
                    pending.extend(self.settle()?);
                }
                self.begin(run.into_iter().map(|p| prompts[p].clone()).collect());
            }
        }
        Ok(())
    }

    fn begin(&mut self, prompts: Vec<Vec<u32>>) {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        self.warm_up += self.engine.warm_up(prompts.len(), longest).unwrap_or_default();
        let (told, end) = channel();
        let sink = Dropping { open: prompts.len() * self.layers.len(), told };
        let batch = TokenBatch { prompts: prompts.clone() };
        self.engine.forward(batch, &self.layers, Box::new(sink));
        self.parts += 1;
        self.in_flight.push_back(Part { prompts, end });
    }

    /// Waits for the oldest part, and gives back the halves of one that the device had no memory for.
    fn settle(&mut self) -> Result<Vec<Vec<Vec<u32>>>, EngineError> {
        let Some(Part { mut prompts, end }) = self.in_flight.pop_front() else { return Ok(Vec::new()) };
        let dropped = || Err(EngineError::Bug("the engine dropped a batch".to_owned()));
        match end.recv().unwrap_or_else(|_| dropped()) {
            Ok(()) => Ok(Vec::new()),
            Err(EngineError::OutOfMemory(_)) if prompts.len() > 1 => {
                self.out_of_memory += 1;
                let back = prompts.split_off(prompts.len() / 2);
                Ok(vec![prompts, back])
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until nothing is in flight.
    fn drain(&mut self) -> Result<(), EngineError> {
        while !self.in_flight.is_empty() {
            for half in self.settle()? {
                self.give(half)?;
            }
        }
        Ok(())
    }
}

/// Looks at patterns and drops them.
struct Dropping {
    /// Patterns that have not come yet.
    open: usize,
    told: Sender<Result<(), EngineError>>,
}

impl PatternSink for Dropping {
    fn take(&mut self, pattern: Pattern) -> Result<(), SinkClosed> {
        // The first query sees one key and gives it everything; memory that nobody wrote would show here.
        let one = pattern.values.as_slice().first().is_some_and(|value| (value - 1.0).abs() < 1e-3);
        if one && self.open > 0 {
            self.open -= 1;
            return Ok(());
        }
        let Pattern { layer, n, .. } = pattern;
        let said =
            format!("a pattern of layer {layer}, {n} tokens, is one too many or does not begin with 1");
        let _ = self.told.send(Err(EngineError::Bug(said)));
        Err(SinkClosed)
    }

    fn end(self: Box<Self>, result: Result<(), EngineError>) {
        let incomplete = || Err(EngineError::Bug(format!("a batch ended without {} patterns", self.open)));
        let result = if result.is_ok() && self.open > 0 { incomplete() } else { result };
        // Whoever fed the batch has gone after an error.
        let _ = self.told.send(result);
    }
}

impl Report for SoakReport {
    fn text(&self) -> String {
        let megabytes = |bytes: Option<u64>| match bytes {
            Some(bytes) => format!("{:.1}", bytes as f64 / 1e6),
            None => "-".to_owned(),
        };
        let grown = |bytes: Option<i64>| match bytes {
            Some(bytes) => format!("{:+.1} MB", bytes as f64 / 1e6),
            None => "not known".to_owned(),
        };
        let mut out = format!(
            "{} on {}, loaded in {:.2} s: {} batches of {} in {} parts, {:.1} s, of which {:.1} s warm-up\n\
             without warm-up {:.1} batches/s, {:.1} prompts/s\n",
            self.model,
            self.device,
            self.load_seconds,
            self.batches,
            self.batch_size,
            self.parts,
            self.seconds,
            self.warm_up_seconds,
            self.batches_per_s,
            self.prompts_per_s
        );
        let _ = writeln!(out, "{:>8}  {:>9}  {:>9}  {:>9}", "batches", "seconds", "host MB", "device MB");
        for Mark { batches, seconds, host_bytes, device_bytes } in &self.tenths {
            let (host, device) = (megabytes(*host_bytes), megabytes(*device_bytes));
            let _ = writeln!(out, "{batches:8}  {seconds:9.1}  {host:>9}  {device:>9}");
        }
        if self.out_of_memory > 0 {
            let _ = writeln!(out, "{} parts were halved: out of device memory", self.out_of_memory);
        }
        let _ = writeln!(
            out,
            "growth from the second tenth to the last: host {}, device {}; host at most {} MB, device of {} MB",
            grown(self.host_growth_bytes),
            grown(self.device_growth_bytes),
            megabytes(self.host_peak_bytes),
            megabytes(self.device_total_bytes)
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
    };

    use common::model::family::read_spec;

    use super::*;
    use crate::engine::{Layout, at_once};

    const BATCHES: Plan = Plan { batches: 43, batch_size: NonZeroUsize::new(5).unwrap(), seed: 7 };

    fn model() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/gpt2-tiny")
    }

    fn spec() -> ModelSpec {
        read_spec(&model().join("config.json")).expect("a fixture")
    }

    fn pattern(prompt: usize, layer: usize, first: f32) -> Pattern {
        Pattern { prompt, layer, n_heads: 1, n: 1, layout: Layout::Causal, values: vec![first].into() }
    }

    /// Gives the patterns of `batch` as a model would.
    fn give(batch: &TokenBatch, layers: &[usize], sink: &mut dyn PatternSink) -> Result<(), EngineError> {
        let places = layers.iter().flat_map(|&layer| (0..batch.prompts.len()).map(move |p| (p, layer)));
        places
            .into_iter()
            .try_for_each(|(p, layer)| sink.take(pattern(p, layer, 1.0)).map_err(|_| EngineError::Stopped))
    }

    /// Has room for `room` prompts, says so beforehand or not, and computes nothing.
    struct Small {
        room: usize,
        tells: bool,
    }

    impl Engine for Small {
        fn forward(&mut self, batch: TokenBatch, layers: &[usize], sink: Box<dyn PatternSink>) {
            at_once(sink, |sink| match batch.prompts.len() > self.room {
                true => Err(EngineError::OutOfMemory("no room".to_owned())),
                false => give(&batch, layers, sink),
            });
        }

        fn fits(&self, prompts: usize, _: usize) -> bool {
            !self.tells || prompts <= self.room
        }
    }

    fn run(engine: &mut dyn Engine) -> Result<SoakReport, EngineError> {
        let spec = spec();
        soak(Feed::new(engine, &spec, usize::MAX), &spec, BATCHES, DeviceChoice::Cpu)
    }

    #[test]
    fn a_soak_of_a_model_looks_at_memory_ten_times() {
        let plan = Plan { batches: 20, ..BATCHES };
        let report = measure(model().to_str().unwrap(), Some("cpu"), plan, &Settings::default()).unwrap();
        let at: Vec<u64> = report.tenths.iter().map(|mark| mark.batches).collect();
        assert_eq!(at, (1..=10).map(|tenth| 2 * tenth).collect::<Vec<_>>());
        assert_eq!((report.model.as_str(), report.prompts, report.parts), ("gpt2-tiny", 100, 20));
        assert!(report.tenths.iter().all(|mark| mark.host_bytes > Some(1 << 20)));
        assert!(report.host_growth_bytes.is_some() && report.device_growth_bytes.is_none());
        let text = report.text();
        assert!(text.contains("20 batches of 5 in 20 parts"), "{text}");
        assert!(text.contains("device not known"), "{text}");
    }

    #[test]
    fn tenths_end_ten_times_however_many_batches() {
        for batches in [10, 11, 19, 43, 10_000] {
            let ends: Vec<u64> = (1..=batches).filter(|&done| tenth_ends(done, batches)).collect();
            assert_eq!((ends.len(), ends.last()), (10, Some(&batches)), "{batches}");
        }
        let mark = |host| Mark { batches: 0, seconds: 0.0, host_bytes: Some(host), device_bytes: None };
        assert_eq!(growth(&[mark(1), mark(9), mark(3), mark(5)], |mark| mark.host_bytes), Some(-4));
    }

    #[test]
    fn every_tenth_has_short_and_long_prompts_and_mostly_short_ones() {
        let of = |batches: std::ops::Range<u64>| -> Vec<usize> {
            batches.map(|batch| longest(batch, 0.3, 1024)).collect()
        };
        for tenth in 0..10 {
            let longest = of(tenth * 1000..(tenth + 1) * 1000);
            let short = longest.iter().filter(|&&n| n <= 32).count();
            let long = longest.iter().filter(|&&n| n > 512).count();
            assert!((450..=550).contains(&short) && (80..=120).contains(&long), "{short} {long}");
            assert!(longest.iter().all(|n| (1..=1024).contains(n)));
        }
        let lengths = lengths(300, NonZeroUsize::new(100).unwrap(), &mut Random(1));
        assert!(lengths.is_sorted_by(|a, b| a >= b) && lengths[0] == 300);
        assert!(lengths[99] >= 1 && lengths[99] < 30, "{lengths:?}");
    }

    #[test]
    fn what_does_not_fit_is_split_beforehand_or_after_the_device_said_so() {
        let told = run(&mut Small { room: 2, tells: true }).unwrap();
        assert_eq!((told.parts, told.out_of_memory), (43 * 3, 0));
        // Five are tried, then two and three, of which three are too many again: one and two.
        let tried = run(&mut Small { room: 2, tells: false }).unwrap();
        assert_eq!((tried.parts, tried.out_of_memory), (43 * 5, 43 * 2));
        let error = run(&mut Small { room: 0, tells: false }).err();
        assert_eq!(error, Some(EngineError::OutOfMemory("no room".to_owned())));
    }

    #[test]
    fn patterns_that_are_missing_or_wrong_are_an_error() {
        struct Wrong(f32, usize);
        impl Engine for Wrong {
            fn forward(&mut self, batch: TokenBatch, layers: &[usize], sink: Box<dyn PatternSink>) {
                at_once(sink, |sink| {
                    let places =
                        layers.iter().flat_map(|&layer| (0..batch.prompts.len()).map(move |p| (p, layer)));
                    for (p, layer) in places.skip(self.1) {
                        sink.take(pattern(p, layer, self.0)).map_err(|_| EngineError::Stopped)?;
                    }
                    Ok(())
                });
            }
        }
        let said = |first, missing| run(&mut Wrong(first, missing)).unwrap_err().to_string();
        assert!(run(&mut Wrong(1.0, 0)).is_ok());
        assert!(said(f32::NAN, 0).contains("does not begin with 1"));
        assert!(said(1.0, 2).contains("ended without 2 patterns"));
    }

    #[test]
    fn an_engine_that_returns_early_has_a_few_batches_at_once_and_no_more() {
        /// Ends batches on another thread, a little later.
        struct Beside {
            at_once: Arc<AtomicUsize>,
            most: usize,
            batches: Sender<(TokenBatch, Vec<usize>, Box<dyn PatternSink>)>,
        }
        impl Engine for Beside {
            fn forward(&mut self, batch: TokenBatch, layers: &[usize], sink: Box<dyn PatternSink>) {
                self.most = self.most.max(self.at_once.fetch_add(1, Ordering::SeqCst) + 1);
                self.batches.send((batch, layers.to_vec(), sink)).unwrap();
            }
        }
        let at_once = Arc::new(AtomicUsize::new(0));
        let (batches, taken) = channel::<(TokenBatch, Vec<usize>, Box<dyn PatternSink>)>();
        let ending = thread::spawn({
            let at_once = Arc::clone(&at_once);
            move || {
                for (batch, layers, mut sink) in taken {
                    thread::sleep(Duration::from_millis(2));
                    let result = give(&batch, &layers, &mut *sink);
                    at_once.fetch_sub(1, Ordering::SeqCst);
                    sink.end(result);
                }
            }
        });
        let mut engine = Beside { at_once, most: 0, batches };
        assert_eq!(run(&mut engine).unwrap().parts, BATCHES.batches);
        assert_eq!(engine.most, IN_FLIGHT);
        drop(engine);
        ending.join().unwrap();
    }
}
