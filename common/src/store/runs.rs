//! What was enqueued, as the data directory knows it: `.lenspool/{model}/runs/{run}.jsonl`, a file a model of a run.
//!
//! Its first line is the run's card, written before anything is published; then a line a batch that the broker
//! confirmed; then one that says that all were. So an enqueue that was killed goes on where it stopped, a worker
//! knows that a run was announced by somebody who may write here, and everybody knows how many prompts a run has.
//! Beside it an empty file `{run}.cancelled` calls a run off, and `{run}.indexed` says that its index is built.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    durable,
    error::{Context, Op, StoreError},
    layout::ModelLayout,
    writer::{Liveness, WriterId},
};
use crate::{
    capture::Capture,
    job::{JobId, ModelPin, ModelShape, RunId},
    prompt::PromptHash,
};

/// The version of the lines this build writes. Readers skip lines they do not know.
pub const LEDGER_VERSION: u32 = 1;

/// One model of a run, announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCard {
    /// [`LEDGER_VERSION`].
    pub version: u32,
    /// The run.
    pub run: RunId,
    /// The namespace it was enqueued in.
    pub namespace: String,
    /// The model.
    pub model: ModelPin,
    /// Its shape.
    pub shape: ModelShape,
    /// What is kept of it.
    pub capture: Capture,
    /// Whether what is committed is computed again.
    pub force: bool,
    /// A digest of all that was asked for; the same request has the same one.
    pub request: String,
    /// Prompts the input gave.
    pub prompts: usize,
    /// Prompts that were committed already.
    pub cached: usize,
    /// Prompts that are to be computed.
    pub todo: usize,
    /// When.
    pub at: Timestamp,
    /// Who publishes it.
    pub writer: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Announced(Box<RunCard>),
    /// Somebody else goes on with publishing.
    Resumed {
        writer: String,
        at: Timestamp,
    },
    Published {
        job: JobId,
        prompts: Vec<PromptHash>,
    },
    Complete {
        jobs: usize,
        at: Timestamp,
    },
}

/// What a ledger says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    /// Its card.
    pub card: RunCard,
    /// Jobs that the broker confirmed.
    pub jobs: usize,
    /// Prompts in them.
    pub published: usize,
    /// Whether that was all.
    pub complete: bool,
    /// Whether it was called off.
    pub cancelled: bool,
    /// Whether its index was built after its last job.
    pub indexed: bool,
    /// Who published last.
    writer: String,
}

impl RunRecord {
    /// Whether the process that publishes it runs now; none where it is on another machine.
    pub fn is_being_published(&self) -> Option<bool> {
        if self.complete {
            return Some(false);
        }
        match WriterId::parse(&self.writer).map(|writer| writer.liveness()) {
            Some(Liveness::Alive) => Some(true),
            Some(Liveness::Elsewhere) => None,
            Some(Liveness::Dead) | None => Some(false),
        }
    }
}

/// The ledger of one model of a run, being written.
#[derive(Debug)]
pub struct RunLedger {
    path: PathBuf,
    file: File,
    jobs: usize,
}

impl RunLedger {
    /// Announces a run: durably, before anything of it is published.
    pub fn announce(model: &ModelLayout, card: &RunCard) -> Result<RunLedger, StoreError> {
        durable::ensure_dir(&model.runs())?;
        let path = model.run(&card.run);
        let file = OpenOptions::new().append(true).create_new(true).open(&path).on(Op::Create, &path)?;
        let mut ledger = RunLedger { path, file, jobs: 0 };
        ledger.append(&Line::Announced(Box::new(card.clone())))?;
        ledger.sync()?;
        durable::sync_dir(&model.runs())?;
        Ok(ledger)
    }

    /// Goes on with a run whose publishing was interrupted.
    pub fn resume(model: &ModelLayout, run: &RunId, writer: &WriterId) -> Result<RunLedger, StoreError> {
        let path = model.run(run);
        let mut jobs = 0;
        let torn = read(&path, |line| jobs += usize::from(matches!(line, Line::Published { .. })))?;
        let mut file = OpenOptions::new().append(true).open(&path).on(Op::Write, &path)?;
        if torn {
            file.write_all(b"\n").on(Op::Write, &path)?;
        }
        let mut ledger = RunLedger { path, file, jobs };
        ledger.append(&Line::Resumed { writer: writer.to_string(), at: Timestamp::now() })?;
        ledger.sync()?;
        Ok(ledger)
    }

    /// Notes a job that the broker confirmed. It survives a kill of this process at once.
    pub fn published(&mut self, job: &JobId, prompts: Vec<PromptHash>) -> Result<(), StoreError> {
        self.jobs += 1;
        self.append(&Line::Published { job: job.clone(), prompts })
    }

    /// Notes that everything is published.
    pub fn complete(mut self) -> Result<(), StoreError> {
        self.append(&Line::Complete { jobs: self.jobs, at: Timestamp::now() })?;
        self.sync()
    }

    /// Jobs published so far, those before an interruption included.
    pub fn jobs(&self) -> usize {
        self.jobs
    }

    /// Makes everything noted so far durable.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        self.file.sync_data().on(Op::Sync, &self.path)
    }

    fn append(&mut self, line: &Line) -> Result<(), StoreError> {
        let mut bytes = serde_json::to_vec(line).map_err(io::Error::from).on(Op::Write, &self.path)?;
        bytes.push(b'\n');
        self.file.write_all(&bytes).on(Op::Write, &self.path)
    }
}

/// Calls a line's reader for every whole line of a ledger. True where the last line is torn.
fn read(path: &Path, mut take: impl FnMut(Line)) -> Result<bool, StoreError> {
    let mut reader = BufReader::new(File::open(path).on(Op::Read, path)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).on(Op::Read, path)? == 0 {
            return Ok(false);
        }
        if line.last() != Some(&b'\n') {
            return Ok(true);
        }
        if let Ok(line) = serde_json::from_slice(&line) {
            take(line);
        }
    }
}

/// The prompts of `run` that the broker confirmed.
pub fn published(model: &ModelLayout, run: &RunId) -> Result<HashSet<PromptHash>, StoreError> {
    let mut published = HashSet::new();
    read(&model.run(run), |line| {
        if let Line::Published { prompts, .. } = line {
            published.extend(prompts);
        }
    })?;
    Ok(published)
}

/// What one model's ledger of `run` says; none where the run was not announced.
pub fn read_run(model: &ModelLayout, run: &RunId) -> Result<Option<RunRecord>, StoreError> {
    match read_file(model, &model.run(run)) {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
        // Two ids may share a file's name; the card knows.
        result => result.map(|record| record.filter(|record| record.card.run == *run)),
    }
}

/// What was enqueued for a model, in the order of the file names.
pub fn list_runs(model: &ModelLayout) -> Result<Vec<RunRecord>, StoreError> {
    let dir = model.runs();
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).on(Op::List, &dir),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.on(Op::List, &dir)?.path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut runs = Vec::new();
    for path in paths {
        runs.extend(read_file(model, &path)?);
    }
    Ok(runs)
}

fn read_file(model: &ModelLayout, path: &Path) -> Result<Option<RunRecord>, StoreError> {
    let mut record: Option<RunRecord> = None;
    read(path, |line| match (line, &mut record) {
        (Line::Announced(card), none @ None) => {
            let writer = card.writer.clone();
            *none = Some(RunRecord {
                card: *card,
                jobs: 0,
                published: 0,
                complete: false,
                cancelled: false,
                indexed: false,
                writer,
            });
        }
        (Line::Published { prompts, .. }, Some(record)) => {
            record.jobs += 1;
            record.published += prompts.len();
        }
        (Line::Resumed { writer, .. }, Some(record)) => record.writer = writer,
        (Line::Complete { .. }, Some(record)) => record.complete = true,
        _ => {}
    })?;
    if let Some(record) = &mut record {
        record.cancelled = exists(&model.run_cancelled(&record.card.run))?;
        record.indexed = indexed_at(model, &record.card.run)?.is_some();
    }
    Ok(record)
}

/// What was announced for `model` in `run`: its ledger's first line. None where nothing was.
pub fn card(model: &ModelLayout, run: &RunId) -> Result<Option<RunCard>, StoreError> {
    let path = model.run(run);
    let mut line = Vec::new();
    match File::open(&path) {
        Ok(file) => BufReader::new(file).read_until(b'\n', &mut line).on(Op::Read, &path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).on(Op::Read, &path),
    };
    Ok(match serde_json::from_slice(&line) {
        Ok(Line::Announced(card)) if card.run == *run && card.model.name == model.name().as_str() => {
            Some(*card)
        }
        _ => None,
    })
}

/// Calls a run off. Workers drop its jobs as they meet them; what is committed stays.
pub fn cancel_run(model: &ModelLayout, run: &RunId) -> Result<(), StoreError> {
    mark(&model.run_cancelled(run))
}

/// Whether a run was called off.
pub fn is_cancelled(model: &ModelLayout, run: &RunId) -> Result<bool, StoreError> {
    exists(&model.run_cancelled(run))
}

/// Notes that a run's index holds all that it had computed at `as_of`.
pub fn mark_indexed(model: &ModelLayout, run: &RunId, as_of: Timestamp) -> Result<(), StoreError> {
    let path = model.run_indexed(run);
    let mut file = File::create(&path).on(Op::Create, &path)?;
    file.write_all(as_of.to_string().as_bytes()).on(Op::Write, &path)?;
    file.sync_all().on(Op::Sync, &path)?;
    durable::sync_dir(&model.runs())
}

/// As of when a run is indexed; none where it is not, or where the note is torn.
pub fn indexed_at(model: &ModelLayout, run: &RunId) -> Result<Option<Timestamp>, StoreError> {
    let path = model.run_indexed(run);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).on(Op::Read, &path),
    }
}

fn mark(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => file.sync_all().on(Op::Sync, path)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error).on(Op::Create, path),
    }
    durable::sync_dir(durable::parent(path).unwrap_or(Path::new(".")))
}

fn exists(path: &Path) -> Result<bool, StoreError> {
    path.try_exists().on(Op::Stat, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ModelName, SaveLayout};

    fn layout(dir: &Path) -> ModelLayout {
        SaveLayout::new(dir).model(&ModelName::try_from("m").unwrap())
    }

    fn card(run: &str) -> RunCard {
        let run = RunId(run.to_owned());
        RunCard {
            version: LEDGER_VERSION,
            writer: WriterId::this_process(&run).to_string(),
            run,
            namespace: "lenspool".into(),
            model: ModelPin { name: "m".into(), source: "m".into(), commit: "0".into() },
            shape: ModelShape { n_layers: 2, n_heads: 2 },
            capture: Capture::default(),
            force: false,
            request: "r".into(),
            prompts: 3,
            cached: 0,
            todo: 3,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    fn job(name: &str) -> JobId {
        JobId(name.to_owned())
    }

    #[test]
    fn an_interrupted_ledger_tells_what_was_published_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let model = layout(dir.path());
        let card = card("20261123T101112-node-7");
        let [a, b, c] = ["a", "b", "c"].map(PromptHash::of);
        assert_eq!(read_run(&model, &card.run).unwrap(), None);
        assert_eq!(super::card(&model, &card.run).unwrap(), None);
        let mut ledger = RunLedger::announce(&model, &card).unwrap();
        assert_eq!(super::card(&model, &card.run).unwrap().as_ref(), Some(&card));
        assert!(RunLedger::announce(&model, &card).is_err(), "a run is announced once");
        ledger.published(&job("1"), vec![a.clone(), b.clone()]).unwrap();
        assert_eq!(read_run(&model, &card.run).unwrap().unwrap().is_being_published(), Some(true));
        drop(ledger);

        // A kill in the middle of a line.
        let path = model.run(&card.run);
        let mut text = fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"event\":\"published\",\"job\":\"2\",\"prom");
        fs::write(&path, text).unwrap();

        assert_eq!(published(&model, &card.run).unwrap(), HashSet::from([a, b]));
        let mut ledger = RunLedger::resume(&model, &card.run, &WriterId::this_process(&card.run)).unwrap();
        ledger.published(&job("2"), vec![c]).unwrap();
        ledger.complete().unwrap();
        let record = read_run(&model, &card.run).unwrap().unwrap();
        assert_eq!((record.jobs, record.published, record.complete), (2, 3, true));
        assert_eq!(record.is_being_published(), Some(false));
        assert_eq!(list_runs(&model).unwrap(), [record]);
    }

    #[test]
    fn a_run_is_called_off_and_marked_without_touching_its_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let model = layout(dir.path());
        let card = card("r");
        drop(RunLedger::announce(&model, &card).unwrap());
        for _ in 0..2 {
            cancel_run(&model, &card.run).unwrap();
            mark_indexed(&model, &card.run, Timestamp::UNIX_EPOCH).unwrap();
        }
        let record = read_run(&model, &card.run).unwrap().unwrap();
        assert!(record.cancelled && record.indexed && is_cancelled(&model, &card.run).unwrap());
    }

    #[test]
    fn a_runs_name_from_a_message_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let model = layout(dir.path());
        for bad in ["../../../etc/passwd", "/etc/passwd", "", "..", &"x".repeat(300)] {
            let run = RunId(bad.to_owned());
            assert_eq!(model.run(&run).parent(), Some(model.runs().as_path()), "{bad:?}");
            assert_eq!(super::card(&model, &run).unwrap(), None);
        }
    }
}
