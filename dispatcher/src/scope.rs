//! Which runs a command is about, and where their files lie: as the broker's registry says, or as a data directory
//! itself shows.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use common::{
    job::RunId,
    model::reference::{ModelName, ModelRef},
    queue::rabbitmq::{Broker, Observer, RunEntry},
    settings::Settings,
    store::{
        ModelLayout, Op, SaveLayout, StoreError,
        runs::{self, RunRecord},
    },
};
use jiff::Timestamp;
use tokio::runtime::Runtime;

use crate::{Error, cli::Scope};

/// A model as the user named it: by its directory, or in any other way that leads to it.
#[derive(Clone, Debug)]
pub struct ModelFilter(Vec<ModelName>);

impl ModelFilter {
    /// Reads what the user typed.
    pub fn parse(text: &str) -> Result<ModelFilter, Error> {
        let directory = ModelName::try_from(text).ok();
        let named = ModelRef::parse(text, None).map(|model| model.name);
        match (directory, named) {
            (None, Err(error)) => Err(error.into()),
            (directory, named) => Ok(ModelFilter(directory.into_iter().chain(named).collect())),
        }
    }

    /// Whether it means the model of this name.
    pub fn takes(&self, name: &str) -> bool {
        self.0.iter().any(|model| model.as_str() == name)
    }
}

/// What a command was asked to look at.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// One run.
    pub run: Option<RunId>,
    /// One model.
    pub model: Option<ModelFilter>,
    /// One data directory, absolute.
    pub save_path: Option<PathBuf>,
}

impl Wanted {
    /// Reads the flags.
    pub fn new(run: Option<&str>, model: Option<&str>, save_path: Option<&Path>) -> Result<Wanted, Error> {
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|error| Error::Request(format!("--save-path: {error}")))
        };
        Ok(Wanted {
            run: run.map(|run| RunId(run.to_owned())),
            model: model.map(ModelFilter::parse).transpose()?,
            save_path: save_path.map(absolute).transpose()?,
        })
    }

    /// Reads the flags most commands share.
    pub fn of(scope: &Scope) -> Result<Wanted, Error> {
        Wanted::new(scope.run.as_deref(), scope.model.as_deref(), scope.save_path.as_deref())
    }

    /// Whether a model is among them.
    pub fn takes_model(&self, name: &str) -> bool {
        self.model.as_ref().is_none_or(|model| model.takes(name))
    }

    fn takes(&self, part: &Part) -> bool {
        self.run.as_ref().is_none_or(|run| *run == part.run)
            && self.takes_model(part.model())
            && self.save_path.as_deref().is_none_or(|path| path == part.layout.save().root())
    }
}

/// One model of one run.
#[derive(Clone, Debug)]
pub struct Part {
    /// The run.
    pub run: RunId,
    /// Where the model's files lie.
    pub layout: ModelLayout,
    /// When it was enqueued.
    pub at: Timestamp,
    /// What the registry says of it; none where it was found in the data directory alone.
    pub entry: Option<RunEntry>,
}

impl Part {
    /// The model's name.
    pub fn model(&self) -> &str {
        self.layout.name().as_str()
    }

    fn of_entry(entry: RunEntry) -> Option<Part> {
        // A name that could not be a directory is not lenspool's.
        let name = ModelName::try_from(entry.model.name.as_str()).ok()?;
        let layout = SaveLayout::new(&entry.save_path).model(&name);
        Some(Part { run: entry.run.clone(), layout, at: entry.at, entry: Some(entry) })
    }

    fn of_record(layout: &ModelLayout, record: RunRecord) -> Part {
        Part { run: record.card.run, layout: layout.clone(), at: record.card.at, entry: None }
    }

    /// Whether both are the same model of the same run.
    pub fn is(&self, other: &Part) -> bool {
        self.run == other.run && self.layout == other.layout
    }
}

/// The registry's part of what is wanted, oldest first.
pub fn registered(entries: Vec<RunEntry>, wanted: &Wanted) -> Vec<Part> {
    entries.into_iter().filter_map(Part::of_entry).filter(|part| wanted.takes(part)).collect()
}

/// What a data directory shows of what is wanted, oldest first.
pub fn announced(save_path: &Path, wanted: &Wanted) -> Result<Vec<Part>, StoreError> {
    let mut parts = Vec::new();
    for layout in models_of(save_path)? {
        let records = runs::list_runs(&layout)?;
        parts.extend(records.into_iter().map(|record| Part::of_record(&layout, record)));
    }
    parts.retain(|part| wanted.takes(part));
    parts.sort_by_key(|part| part.at);
    Ok(parts)
}

/// Both; what the registry knows goes first.
pub fn merged(registered: Vec<Part>, announced: Vec<Part>) -> Vec<Part> {
    let mut parts = registered;
    for part in announced {
        if !parts.iter().any(|known| known.is(&part)) {
            parts.push(part);
        }
    }
    parts.sort_by_key(|part| part.at);
    parts
}

/// Every model that has a place in a data directory.
pub fn models_of(save_path: &Path) -> Result<Vec<ModelLayout>, StoreError> {
    let save = SaveLayout::new(save_path);
    let mut names = BTreeSet::new();
    for dir in [save_path.to_owned(), save.bookkeeping()] {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound && dir != save_path => continue,
            Err(error) => return Err(StoreError::new(Op::List, dir, error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| StoreError::new(Op::List, &dir, error))?;
            names.extend(entry.file_name().to_str().and_then(|name| ModelName::try_from(name).ok()));
        }
    }
    let layouts = names.into_iter().map(|name| save.model(&name));
    Ok(layouts.filter(|layout| layout.prompts().is_dir() || layout.runs().is_dir()).collect())
}

/// The runs that are wanted, from the data directory where one was given, else from the broker.
pub fn find(wanted: &Wanted, settings: &Settings, runtime: &Runtime) -> Result<Vec<Part>, Error> {
    match &wanted.save_path {
        Some(path) => Ok(announced(path, wanted)?),
        None => Ok(registered(registry(settings, runtime)?, wanted)),
    }
}

/// The parts of the run that is wanted, or an error that names the runs there are.
pub fn find_run(
    run: &str,
    model: Option<&str>,
    save_path: Option<&Path>,
    settings: &Settings,
    runtime: &Runtime,
) -> Result<Vec<Part>, Error> {
    let all = find(&Wanted::new(None, model, save_path)?, settings, runtime)?;
    let known = known(&all);
    let parts: Vec<Part> = all.into_iter().filter(|part| part.run.0 == run).collect();
    if parts.is_empty() { Err(Error::Request(format!("there is no run {run:?}{known}"))) } else { Ok(parts) }
}

/// The data directories of what is wanted, each once.
pub fn directories(
    wanted: &Wanted,
    settings: &Settings,
    runtime: &Runtime,
) -> Result<BTreeSet<PathBuf>, Error> {
    if let Some(path) = &wanted.save_path {
        return Ok([path.clone()].into());
    }
    let parts = registered(registry(settings, runtime)?, wanted);
    let all: BTreeSet<PathBuf> = parts.iter().map(|part| part.layout.save().root().to_owned()).collect();
    let (visible, hidden): (BTreeSet<_>, BTreeSet<_>) = all.into_iter().partition(|path| path.is_dir());
    for path in &hidden {
        tracing::warn!("{} cannot be seen from this machine; it is left out", path.display());
    }
    if visible.is_empty() {
        let why =
            if hidden.is_empty() { "nothing was enqueued" } else { "none of them can be seen from here" };
        return Err(Error::Request(format!(
            "no data directory to look at: {why}; name one with --save-path"
        )));
    }
    Ok(visible)
}

fn registry(settings: &Settings, runtime: &Runtime) -> Result<Vec<RunEntry>, Error> {
    let broker = Broker::new(&settings.queue)?;
    runtime.block_on(async {
        let observer = Observer::connect(&broker).await?;
        let entries = observer.runs().await?;
        observer.close().await;
        Ok(entries)
    })
}

/// The newest runs, for an error about one that is not there.
fn known(parts: &[Part]) -> String {
    const SHOWN: usize = 20;
    let mut runs: Vec<&RunId> = Vec::new();
    for part in parts.iter().rev() {
        if !runs.contains(&&part.run) {
            runs.push(&part.run);
        }
    }
    if runs.is_empty() {
        return "; nothing was enqueued here (--namespace and --save-path say where to look)".to_owned();
    }
    let more = runs.len().saturating_sub(SHOWN);
    let listed: String = runs.iter().take(SHOWN).map(|run| format!("\n  {run}")).collect();
    let more = if more == 0 { String::new() } else { format!("\n  and {more} older ones") };
    format!("; these are known, the newest first:{listed}{more}")
}

#[cfg(test)]
pub mod tests {
    use common::{
        capture::Capture,
        job::{ModelPin, ModelShape},
        store::runs::{LEDGER_VERSION, RunCard, RunLedger},
    };

    use super::*;

    /// A run's card for stories about `model`, which has two layers of two heads.
    pub fn card(run: &str, model: &str, todo: usize) -> RunCard {
        RunCard {
            version: LEDGER_VERSION,
            run: RunId(run.to_owned()),
            namespace: "lenspool".to_owned(),
            model: ModelPin { name: model.to_owned(), source: model.to_owned(), commit: "0".repeat(40) },
            shape: ModelShape { n_layers: 2, n_heads: 2 },
            capture: Capture::default(),
            force: false,
            request: "request".to_owned(),
            prompts: todo,
            cached: 0,
            todo,
            at: Timestamp::UNIX_EPOCH,
            writer: "nobody".to_owned(),
        }
    }

    /// The paths of a model.
    pub fn layout(dir: &Path, model: &str) -> ModelLayout {
        SaveLayout::new(dir).model(&ModelName::try_from(model).unwrap())
    }

    fn entry(run: &str, model: &str, save_path: &Path) -> RunEntry {
        RunEntry {
            run: RunId(run.to_owned()),
            model: card(run, model, 1).model,
            save_path: save_path.to_owned(),
            prompts: 1,
            jobs: 1,
            at: Timestamp::from_second(1).unwrap(),
            host: "login".to_owned(),
        }
    }

    #[test]
    fn registry_and_directory_show_the_same_run_once() {
        let dir = tempfile::tempdir().unwrap();
        for (run, model) in [("one", "gpt2"), ("one", "pythia"), ("two", "gpt2")] {
            drop(RunLedger::announce(&layout(dir.path(), model), &card(run, model, 1)).unwrap());
        }
        let wanted = |run, model| Wanted::new(run, model, None).unwrap();
        let of = |wanted: &Wanted| announced(dir.path(), wanted).unwrap().len();
        assert_eq!(of(&wanted(None, None)), 3);
        assert_eq!(of(&wanted(Some("one"), None)), 2);
        assert_eq!(of(&wanted(Some("one"), Some("gpt2"))), 1);
        assert_eq!(of(&wanted(Some("three"), None)), 0);

        let entries = vec![entry("one", "gpt2", dir.path()), entry("far", "gpt2", Path::new("/elsewhere"))];
        let parts = merged(
            registered(entries, &wanted(None, None)),
            announced(dir.path(), &wanted(None, None)).unwrap(),
        );
        assert_eq!(parts.len(), 4);
        assert_eq!(parts.iter().filter(|part| part.entry.is_some()).count(), 2);
        assert!(known(&parts).contains("the newest first:\n  far\n"), "{}", known(&parts));
    }

    #[test]
    fn a_model_is_named_by_its_directory_or_as_it_was_enqueued() {
        for (text, name) in [("gpt2", "gpt2"), ("EleutherAI/pythia-70m", "pythia-70m"), ("a_b", "a_b")] {
            assert!(ModelFilter::parse(text).unwrap().takes(name), "{text}");
        }
        assert!(ModelFilter::parse("").is_err());
    }
}
