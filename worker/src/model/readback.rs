//! From device memory to the sink, on a thread of its own: reading waits for the device, and the thread that launches
//! kernels must not.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{Builder, JoinHandle},
};

use burn::tensor::{Tensor, TensorData, Transaction};

use super::failure::explain;
use crate::engine::{Buffer, EngineError, Layout, Pattern, PatternSink, Values};

/// Layers whose halves may wait on the device for the one being read: launching goes no further ahead, so device
/// memory holds a few layers' halves, whatever the batch.
pub(super) const LAYERS_AHEAD: usize = 2;

/// The causal halves of one layer of a group, on the device.
pub(super) struct Halves {
    pub(super) layer: usize,
    pub(super) n_heads: usize,
    /// One prompt after the other.
    pub(super) values: Tensor<1>,
    pub(super) spans: Vec<Span>,
}

/// A prompt's part of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) prompt: usize,
    /// Tokens.
    pub(super) n: usize,
    /// Its first value.
    pub(super) start: usize,
}

enum Message {
    Begin { sink: Box<dyn PatternSink>, failed: Arc<AtomicBool> },
    Layer(Box<Halves>),
    End(Result<(), EngineError>),
}

/// The thread. Dropping it waits until everything it was given is read.
pub(super) struct Readback {
    messages: Option<SyncSender<Message>>,
    thread: Option<JoinHandle<()>>,
    out_of_memory: Arc<AtomicBool>,
}

/// A batch whose layers are on their way.
pub(super) struct Open<'a> {
    messages: &'a SyncSender<Message>,
    failed: Arc<AtomicBool>,
}

impl Readback {
    /// `card` describes the device, for errors.
    pub(super) fn start(card: String) -> Self {
        let (messages, taken) = sync_channel(LAYERS_AHEAD);
        let out_of_memory = Arc::new(AtomicBool::new(false));
        let reader = Reader { card, current: None, out_of_memory: Arc::clone(&out_of_memory) };
        let read = move || reader.run(&taken);
        let thread = Builder::new().name("readback".to_owned()).spawn(read);
        let thread = thread.expect("the system gives a thread when a model is opened");
        Readback { messages: Some(messages), thread: Some(thread), out_of_memory }
    }

    /// Whether a batch ran out of memory since this was last asked.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        self.out_of_memory.swap(false, Ordering::Relaxed)
    }

    /// Begins a batch. The one before must have ended.
    pub(super) fn begin(&self, sink: Box<dyn PatternSink>) -> Open<'_> {
        let messages = self.messages.as_ref().expect("there until dropped");
        let failed = Arc::new(AtomicBool::new(false));
        // Where the thread is gone, so is the sink: it tells of itself when it is dropped.
        let _ = messages.send(Message::Begin { sink, failed: Arc::clone(&failed) });
        Open { messages, failed }
    }
}

impl Open<'_> {
    /// Hands a layer over, waiting while too many do. An error means that the batch has failed: its cause is told at
    /// its end.
    pub(super) fn take(&self, halves: Halves) -> Result<(), EngineError> {
        if self.failed.load(Ordering::Relaxed)
            || self.messages.send(Message::Layer(Box::new(halves))).is_err()
        {
            return Err(EngineError::Stopped);
        }
        Ok(())
    }

    /// Ends the batch: with `result`, or with what went wrong in reading before.
    pub(super) fn end(self, result: Result<(), EngineError>) {
        let _ = self.messages.send(Message::End(result));
    }
}

impl Drop for Readback {
    fn drop(&mut self) {
        drop(self.messages.take());
        if let Some(thread) = self.thread.take() {
            // A panic in it was told by the sinks it dropped.
            let _ = thread.join();
        }
    }
}

struct Reader {
    card: String,
    current: Option<Batch>,
    out_of_memory: Arc<AtomicBool>,
}

struct Batch {
    sink: Box<dyn PatternSink>,
    failed: Arc<AtomicBool>,
    result: Result<(), EngineError>,
}

impl Reader {
    fn run(mut self, messages: &Receiver<Message>) {
        for message in messages {
            match (message, &mut self.current) {
                (Message::Begin { sink, failed }, current) => {
                    *current = Some(Batch { sink, failed, result: Ok(()) });
                }
                (Message::Layer(halves), Some(batch)) if batch.result.is_ok() => {
                    batch.result = read(*halves, &mut *batch.sink, &self.card);
                    if let Err(error) = &batch.result {
                        batch.failed.store(true, Ordering::Relaxed);
                        if matches!(error, EngineError::OutOfMemory(_)) {
                            self.out_of_memory.store(true, Ordering::Relaxed);
                        }
                    }
                }
                // What comes after a failure is not worth the bus.
                (Message::Layer(_), _) => {}
                (Message::End(result), current) => {
                    if let Some(batch) = current.take() {
                        batch.sink.end(batch.result.and(result));
                    }
                }
            }
        }
    }
}

/// Waits for one layer and gives its prompts to the sink.
fn read(halves: Halves, sink: &mut dyn PatternSink, card: &str) -> Result<(), EngineError> {
    let Halves { layer, n_heads, values, spans } = halves;
    let buffer = Read::new(fetch(values, card)?)?;
    let buffer: Arc<dyn Buffer> = Arc::new(buffer);
    for Span { prompt, n, start } in spans {
        let layout = Layout::Causal;
        let values = Values::part(Arc::clone(&buffer), start..start + layout.len(n_heads, n));
        sink.take(Pattern { prompt, layer, n_heads, n, layout, values }).map_err(|_| EngineError::Stopped)?;
    }
    Ok(())
}

/// Waits for `values` and copies them to the host; `card` describes the device, for errors.
pub(super) fn fetch<const D: usize>(values: Tensor<D>, card: &str) -> Result<TensorData, EngineError> {
    // Not `into_data`, which reads when it is looked at and keeps the device's memory until it is dropped.
    let execute = || Transaction::default().register(values).try_execute();
    let data = match catch_unwind(AssertUnwindSafe(execute)) {
        Ok(Ok(data)) => data.into_iter().next(),
        Ok(Err(error)) => return Err(explain(&error, card)),
        Err(_) => return Err(EngineError::Device(format!("reading a layer's patterns panicked ({card})"))),
    };
    data.ok_or_else(|| EngineError::Bug("a read of one tensor gave none".to_owned()))
}

/// What was read, in whatever memory the device wrote it to: pages that it can write to directly, on a GPU.
struct Read(TensorData);

impl Read {
    fn new(data: TensorData) -> Result<Self, EngineError> {
        match data.as_slice::<f32>() {
            Ok(_) => Ok(Read(data)),
            Err(error) => Err(EngineError::Bug(format!("patterns were read as something else: {error:?}"))),
        }
    }
}

impl Buffer for Read {
    fn values(&self) -> &[f32] {
        self.0.as_slice().expect("checked when it was made")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use burn::tensor::Device;

    use super::*;
    use crate::engine::SinkClosed;

    struct Told {
        takes: usize,
        patterns: mpsc::Sender<Pattern>,
        end: mpsc::Sender<Result<(), EngineError>>,
    }

    impl PatternSink for Told {
        fn take(&mut self, pattern: Pattern) -> Result<(), SinkClosed> {
            if self.takes == 0 {
                return Err(SinkClosed);
            }
            self.takes -= 1;
            self.patterns.send(pattern).map_err(|_| SinkClosed)
        }

        fn end(self: Box<Self>, result: Result<(), EngineError>) {
            self.end.send(result).unwrap();
        }
    }

    fn halves(layer: usize) -> Halves {
        let values = TensorData::new(vec![layer as f32, 1.0, 2.0, 3.0], [4]);
        let values = Tensor::from_data(values, &Device::flex());
        let spans = vec![Span { prompt: 0, n: 1, start: 0 }, Span { prompt: 1, n: 2, start: 1 }];
        Halves { layer, n_heads: 1, values, spans }
    }

    #[test]
    fn batches_end_in_order_each_with_its_own_result() {
        let (patterns, taken) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let readback = Readback::start("a card".to_owned());
        let sink = |takes| Box::new(Told { takes, patterns: patterns.clone(), end: end.clone() });
        // The sink takes one prompt and then no more.
        let open = readback.begin(sink(1));
        while open.take(halves(0)).is_ok() {}
        open.end(Err(EngineError::Stopped));
        let open = readback.begin(sink(9));
        open.take(halves(7)).unwrap();
        open.end(Ok(()));
        readback.begin(sink(9)).end(Err(EngineError::Input("no".to_owned())));
        drop(readback);
        let results = [Err(EngineError::Stopped), Ok(()), Err(EngineError::Input("no".to_owned()))];
        assert_eq!(ended.try_iter().collect::<Vec<_>>(), results);
        let taken: Vec<_> = taken.try_iter().map(|pattern| pattern.values.as_slice().to_vec()).collect();
        assert_eq!(taken, [vec![0.0], vec![7.0], vec![1.0, 2.0, 3.0]]);
    }
}
