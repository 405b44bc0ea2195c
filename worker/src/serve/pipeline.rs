//! The threads of the pipeline, from the work channel to the channel of notes, and how they are asked to end.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::Instant,
};

use tokio::sync::mpsc;

use super::{
    Commit, Models, Note, Options, Shutdown,
    budget::ByteBudget,
    commit,
    compute::{ModelThread, State, Work},
    encoding,
    part::Outlet,
};

/// How far the pipeline has been asked to end.
#[derive(Debug, Default)]
pub(super) struct Control {
    level: AtomicU8,
}

impl Control {
    const STOP: u8 = 1;
    const LEAVE: u8 = 2;

    pub(super) fn stop(&self) {
        self.level.fetch_max(Self::STOP, Ordering::Relaxed);
    }

    pub(super) fn leave(&self) {
        self.level.fetch_max(Self::LEAVE, Ordering::Relaxed);
    }

    /// Begin no job.
    pub(super) fn stopping(&self) -> bool {
        self.level.load(Ordering::Relaxed) >= Self::STOP
    }

    /// Interrupt the batch.
    pub(super) fn leaving(&self) -> bool {
        self.level.load(Ordering::Relaxed) >= Self::LEAVE
    }
}

/// The threads between the work channel and the channel of notes.
pub(super) struct Pipeline {
    pub(super) work: crossbeam_channel::Sender<Work>,
    pub(super) control: Arc<Control>,
    /// Ends with the pipeline.
    _watch: AbortOnDrop,
}

impl Pipeline {
    pub(super) fn start<M: Models, C: Commit>(
        models: M,
        store: Arc<C>,
        options: &Options,
        shutdown: &Shutdown,
    ) -> (Self, mpsc::UnboundedReceiver<Note>) {
        let (notes, heard) = mpsc::unbounded_channel();
        // As many as may be in hand, so that handing work over never waits.
        let (work, work_taken) = crossbeam_channel::bounded(options.jobs_ahead.max(1));
        let (patterns, patterns_taken) = crossbeam_channel::unbounded();
        let (whole, whole_taken) = crossbeam_channel::unbounded();
        let (spare, spare_taken) = crossbeam_channel::bounded(2 * options.encoders.max(1));
        let control = Arc::new(Control::default());
        let raw = ByteBudget::new(options.raw_bytes);
        let encoded = ByteBudget::new(options.encoded_bytes);

        let (part_ended, ended) = crossbeam_channel::unbounded();
        let model = ModelThread {
            models,
            encoded: Arc::clone(&encoded),
            batch_bytes: options.batch_bytes,
            outlet: Outlet {
                control: Arc::clone(&control),
                raw: Arc::clone(&raw),
                patterns,
                notes: notes.clone(),
                ended: part_ended,
                last_end: Arc::new(Mutex::new(Instant::now())),
            },
            ended,
            state: State::default(),
        };
        spawn("model".to_owned(), move || model.run(work_taken));
        for i in 0..options.encoders.max(1) {
            let stage = encoding::Stage {
                patterns: patterns_taken.clone(),
                encoded: Arc::clone(&encoded),
                spare: spare_taken.clone(),
                whole: whole.clone(),
                notes: notes.clone(),
                compression: options.compression,
            };
            spawn(format!("encode-{i}"), move || stage.run());
        }
        for i in 0..options.committers.max(1) {
            let stage = commit::Stage {
                whole: whole_taken.clone(),
                store: Arc::clone(&store),
                notes: notes.clone(),
                spare: spare.clone(),
            };
            spawn(format!("commit-{i}"), move || stage.run());
        }
        let watch = tokio::spawn({
            let (control, shutdown) = (Arc::clone(&control), shutdown.clone());
            async move {
                shutdown.stop.cancelled().await;
                control.stop();
                shutdown.leave.cancelled().await;
                control.leave();
                // A model thread that waits for room would wait out the disk: wake it.
                raw.close();
                encoded.close();
            }
        });
        (Pipeline { work, control, _watch: AbortOnDrop(watch) }, heard)
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) {
    thread::Builder::new().name(name).spawn(run).expect("the system gives a thread at start");
}
