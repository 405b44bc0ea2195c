//! `dispatcher verify`: reads committed files whole and says, or mends, what is broken.
//!
//! Of each prompt: prompt.json parses, its hash is its directory's name, its tokens are as many as it says; the file
//! of arrays is a whole zip archive (or npy file, in stacked runs), every entry inflates to its CRC, every layer asked
//! for is there, shapes fit the tokens and the model, every row holds finite numbers that are not negative and sum to
//! 1 (see [`array::tolerance`]). A hash that is not that of the text is counted, not broken: input files may carry
//! their own.
//!
//! Prompts are read by all cores, each array as a stream, so memory stays flat but for the prompts' names.
//!
//! What a repair that was interrupted removed and did not publish counts as broken, too: the next one goes on with it.
//!
//! Ends with 0 where everything is good or was repaired, with 65 where something is broken and stays so, with 130 where
//! a repair was stopped. `--json`
//! prints `prompts`, `bytes`, `carried_hashes`, `broken[]` (`model`, `hash`, `path`, `what`) and, with `--repair`,
//! `repaired` (`runs[]`, `prompts`, `left`, `interrupted`).

mod array;
mod file;
mod leftover;
mod prompt;
mod repair;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
    path::Path,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use common::{
    exit::Exit,
    prompt::PromptHash,
    settings::Settings,
    store::{
        JournalReader, ModelLayout, Op, Progress, Store, StoreError,
        runs::{self, RunCard},
    },
    talk::{PROGRESS, View, add_bar, counted, say},
};
use file::Expected;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use leftover::Leftover;
use prompt::{Absence, Broken, Which, check_prompt};
use rayon::prelude::*;
use repair::Repaired;
use serde::Serialize;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::{
    Error,
    cli::VerifyArgs,
    scope::{self, Part, Wanted},
};

/// How often a log hears how far it is.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Reads everything, and mends it where that is wanted.
pub fn run(args: &VerifyArgs, settings: &Settings, runtime: &Runtime) -> Result<Exit, Error> {
    let (model, save_path) = (args.model.as_deref(), args.save_path.as_deref());
    let mut tasks = Vec::new();
    match &args.run {
        Some(run) => {
            for part in scope::find_run(run, model, save_path, settings, runtime)? {
                tasks.push(Task::of_run(&part)?);
            }
        }
        None => {
            let wanted = Wanted::new(None, model, save_path)?;
            for directory in scope::directories(&wanted, settings, runtime)? {
                tasks.extend(of_directory(&directory, &wanted)?);
            }
        }
    }
    let mut report = Report::default();
    for task in &tasks {
        task.verify(&mut report, View::of_stderr(false));
    }
    if args.repair && (!report.broken.is_empty() || tasks.iter().any(|task| !task.leftovers.is_empty())) {
        report.repaired = Some(repair::repair(&tasks, &report.broken, settings, runtime)?);
    }
    if args.json {
        say(format_args!("{}\n", serde_json::to_string_pretty(&report).expect("a report is plain data")));
    } else {
        say(report.text());
    }
    Ok(report.exit())
}

/// What verifying found.
#[derive(Debug, Default, Serialize)]
struct Report {
    prompts: usize,
    bytes: u64,
    carried_hashes: usize,
    broken: Vec<Broken>,
    repaired: Option<Repaired>,
}

impl Report {
    fn exit(&self) -> Exit {
        match &self.repaired {
            _ if self.broken.is_empty() => Exit::Done,
            Some(Repaired { interrupted: true, .. }) => Exit::Interrupted,
            Some(Repaired { left: 0, .. }) => Exit::Done,
            _ => Exit::SomeFailed,
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for Broken { path, what, .. } in &self.broken {
            text.push_str(&format!("{}: {what}\n", path.display()));
        }
        let broken: BTreeSet<_> = self.broken.iter().map(|broken| (&broken.model, &broken.hash)).collect();
        text.push_str(&format!(
            "{} read ({}), {} broken\n",
            counted(self.prompts as u64, "prompt"),
            ByteSize(self.bytes).display().si(),
            broken.len()
        ));
        if self.carried_hashes > 0 {
            text.push_str(&format!(
                "{} named by their input file: the hash is not that of the text\n",
                counted(self.carried_hashes as u64, "prompt")
            ));
        }
        match &self.repaired {
            Some(repaired) => text.push_str(&repaired.text()),
            None if self.broken.is_empty() => {}
            None => text.push_str("--repair removes what is broken and enqueues its prompts again\n"),
        }
        text
    }
}

/// The prompts of one model that are to be read.
#[derive(Debug)]
pub struct Task {
    layout: ModelLayout,
    /// The run that is verified, or the model's newest one.
    card: Option<RunCard>,
    which: Which,
    expected: Expected,
    hashes: Vec<PromptHash>,
    /// Those that must be committed, and why.
    due: HashMap<PromptHash, Absence>,
    /// Repairs that were interrupted.
    leftovers: Vec<Leftover>,
}

impl Task {
    /// What a run committed, as its journals say, and what of it was published and is committed.
    fn of_run(part: &Part) -> Result<Task, Error> {
        let (layout, run) = (part.layout.clone(), &part.run);
        let Some(record) = runs::read_run(&layout, run)? else {
            return Err(Error::Request(format!(
                "{} cannot be seen from this machine; verify where the data directory is mounted, or name it with \
                 --save-path",
                layout.run(run).display()
            )));
        };
        let mut progress = Progress::default();
        JournalReader::new(&layout, Some(run)).poll(|_, line| progress.take(line))?;
        let noted: HashSet<PromptHash> = progress.into_committed().collect();
        let mut hashes: BTreeSet<PromptHash> = runs::published(&layout, run)?.into_iter().collect();
        hashes.extend(noted.iter().cloned());
        let card = record.card;
        let expected = Expected {
            n_layers: Some(card.shape.n_layers),
            n_heads: Some(card.shape.n_heads),
            layers: card.capture.layers.indices(card.shape.n_layers),
            dtype: Some(card.capture.dtype),
        };
        let which = Which::One(card.capture.layout);
        let leftovers = Leftover::of_model(&layout)?;
        let mut due: HashMap<_, _> = noted.into_iter().map(|hash| (hash, Absence::Lost)).collect();
        due.extend(owed(&leftovers).filter(|(hash, _)| hashes.contains(hash)));
        Ok(Task {
            layout,
            card: Some(card),
            which,
            expected,
            hashes: hashes.into_iter().collect(),
            due,
            leftovers,
        })
    }

    /// Every prompt of a model.
    fn of_model(layout: ModelLayout) -> Result<Task, Error> {
        let runs = runs::list_runs(&layout)?;
        let newest = runs.into_iter().map(|record| record.card).max_by_key(|card| card.at);
        let there = Store::new(layout.save().root(), &common::job::RunId::fresh()).read_card(&layout)?;
        let count = |key: &str| {
            let count = there.as_ref()?.get(key).and_then(Value::as_u64)?;
            usize::try_from(count).ok()
        };
        let n_layers = count("n_layers").or_else(|| newest.as_ref().map(|card| card.shape.n_layers));
        let n_heads = count("n_heads").or_else(|| newest.as_ref().map(|card| card.shape.n_heads));
        // Where some run asked for some of the layers, nobody knows which of them a file should have.
        let layers = if layout.partial_mark().exists() { 0 } else { n_layers.unwrap_or(0) };
        let expected = Expected { n_layers, n_heads, layers: (0..layers).collect(), dtype: None };
        let leftovers = Leftover::of_model(&layout)?;
        let due: HashMap<_, _> = owed(&leftovers).collect();
        let mut hashes: BTreeSet<_> = list(&layout)?.into_iter().collect();
        hashes.extend(due.keys().cloned());
        let hashes = hashes.into_iter().collect();
        Ok(Task { layout, card: newest, which: Which::All, expected, hashes, due, leftovers })
    }

    /// Reads the prompts, on all cores.
    fn verify(&self, report: &mut Report, view: View) {
        for leftover in &self.leftovers {
            tracing::warn!(
                "a repair of {} was interrupted and still owes {}, which are in {}; `dispatcher verify --repair` goes \
                 on with it",
                self.layout.name(),
                counted(leftover.owed.len() as u64, "prompt"),
                leftover.copy.display()
            );
        }
        let progress = Progressing::new(view, self.layout.name().as_str(), self.hashes.len());
        let (prompts, carried, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU64::new(0));
        let look = |hash: &PromptHash| {
            let absence = self.due.get(hash).copied().unwrap_or(Absence::Fine);
            let checked = check_prompt(&self.layout, hash, self.which, &self.expected, absence);
            progress.step();
            let Some(checked) = checked else { return Vec::new() };
            prompts.fetch_add(1, Ordering::Relaxed);
            carried.fetch_add(usize::from(checked.carried), Ordering::Relaxed);
            bytes.fetch_add(checked.bytes, Ordering::Relaxed);
            checked.broken
        };
        report.broken.par_extend(self.hashes.par_iter().flat_map_iter(look));
        report.prompts += prompts.into_inner();
        report.carried_hashes += carried.into_inner();
        report.bytes += bytes.into_inner();
        progress.bar.finish_and_clear();
    }
}

/// The prompts that interrupted repairs removed.
fn owed(leftovers: &[Leftover]) -> impl Iterator<Item = (PromptHash, Absence)> {
    let of = |left: &Leftover| {
        let absence = Absence::Removed(left.layout);
        left.owed.keys().map(|hash| (hash.clone(), absence)).collect::<Vec<_>>()
    };
    leftovers.iter().flat_map(of)
}

/// A task for every model of a data directory.
fn of_directory(directory: &Path, wanted: &Wanted) -> Result<Vec<Task>, Error> {
    let models = scope::models_of(directory)?;
    let models = models.into_iter().filter(|model| wanted.takes_model(model.name().as_str()));
    models.map(Task::of_model).collect()
}

/// The names in a model's directory of prompts.
fn list(layout: &ModelLayout) -> Result<Vec<PromptHash>, StoreError> {
    let dir = layout.prompts();
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::new(Op::List, dir, error)),
    };
    let mut hashes = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| StoreError::new(Op::List, &dir, error))?.file_name();
        hashes.extend(name.into_string().ok().and_then(|name| PromptHash::try_from(name).ok()));
    }
    Ok(hashes)
}

/// How far reading is.
struct Progressing {
    bar: ProgressBar,
    view: View,
    model: String,
    begin: Instant,
    /// Seconds after which a log heard of it last.
    logged: AtomicU64,
}

impl Progressing {
    fn new(view: View, model: &str, total: usize) -> Progressing {
        let template = "{prefix} {wide_bar:.cyan/dim} {pos}/{len} prompts  {per_sec}  ETA {eta}";
        let style = ProgressStyle::with_template(template).expect("the template is well formed");
        let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::hidden());
        bar.set_style(style.progress_chars("━╸─"));
        bar.set_prefix(model.to_owned());
        let bar = if view == View::Bar { add_bar(bar) } else { bar };
        Progressing { bar, view, model: model.to_owned(), begin: Instant::now(), logged: AtomicU64::new(0) }
    }

    fn step(&self) {
        self.bar.inc(1);
        let (now, before) = (self.begin.elapsed().as_secs(), self.logged.load(Ordering::Relaxed));
        let due = self.view == View::Log && now >= before + LOG_EVERY.as_secs();
        if due && self.logged.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let (done, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
            tracing::info!(target: PROGRESS, "{}: {done} of {all} prompts read", self.model);
        }
    }
}

#[cfg(test)]
mod tests {
    use common::{
        job::JobId,
        store::{Event, Journal, runs::RunLedger},
    };

    use super::*;
    use crate::{
        scope::tests::{card, layout},
        verify::prompt::tests::commit,
    };

    fn verified(tasks: &[Task]) -> Report {
        let mut report = Report::default();
        tasks.iter().for_each(|task| task.verify(&mut report, View::Quiet));
        report
    }

    #[test]
    fn a_directory_and_a_run_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, card) = (layout(dir.path(), "gpt2"), card("r", "gpt2", 4));
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|text| commit(&layout, text));
        commit(&layout, "another run's");
        let whole = verified(&of_directory(dir.path(), &Wanted::default()).unwrap());
        assert_eq!((whole.prompts, whole.broken.len(), whole.exit()), (5, 0, Exit::Done));
        assert!(whole.text().starts_with("5 prompts read (") && whole.text().ends_with(" 0 broken\n"));

        let mut ledger = RunLedger::announce(&layout, &card).unwrap();
        let never = PromptHash::of("published and not computed yet");
        ledger.published(&JobId("1".to_owned()), vec![a.clone(), b.clone(), c.clone(), never]).unwrap();
        let journal = Journal::new(&Store::new(dir.path(), &card.run), &layout, &card.run);
        for hash in [&a, &c, &d] {
            journal.note(Event::Committed { hash: hash.clone(), bytes: 1 }).unwrap();
        }
        let part = Part { run: card.run.clone(), layout: layout.clone(), at: card.at, entry: None };
        assert_eq!(verified(&[Task::of_run(&part).unwrap()]).prompts, 4);

        let arrays = |hash| layout.activations(hash, common::capture::ArrayLayout::PerLayer);
        let mut bytes = fs::read(arrays(&b)).unwrap();
        let at = bytes.len() / 3;
        bytes[at] ^= 1;
        fs::write(arrays(&b), bytes).unwrap();
        fs::remove_file(layout.prompt_json(&c)).unwrap();
        let report = verified(&[Task::of_run(&part).unwrap()]);
        let broken: Vec<_> = report.broken.iter().map(|broken| broken.path.clone()).collect();
        assert_eq!(report.exit(), Exit::SomeFailed);
        assert!(broken.contains(&arrays(&b)) && broken.contains(&layout.prompt_json(&c)), "{broken:?}");
        assert_eq!(broken.len(), 2);
        assert!(report.text().contains("4 prompts read") && report.text().contains("--repair"));
    }

    #[test]
    fn some_layers_do_where_some_were_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path(), "gpt2");
        commit(&layout, "a");
        fs::write(layout.model_cfg(), r#"{"n_layers": 3, "n_heads": 2}"#).unwrap();
        let report = verified(&of_directory(dir.path(), &Wanted::default()).unwrap());
        assert_eq!(report.broken[0].what, "it lacks layers 2");
        fs::create_dir_all(layout.bookkeeping()).unwrap();
        fs::write(layout.partial_mark(), "").unwrap();
        let report = verified(&of_directory(dir.path(), &Wanted::default()).unwrap());
        assert_eq!(report.broken, []);
    }
}
