//! Reads the layers, lays them over each other, and remembers who said what.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use config::{Config, ConfigError, FileFormat, Map, Source, Value, ValueKind};

use super::{Flags, Hub, Settings, flags, suggest::nearest};
use crate::model::hub;

/// The name of a configuration file.
pub const FILE_NAME: &str = "lenspool.toml";
/// The variable that names a configuration file.
pub const FILE_VARIABLE: &str = "LENSPOOL_CONFIG";
/// What our variables begin with.
const PREFIX: &str = "LENSPOOL_";
/// Variables of our tests, which are no settings.
const TEST_PREFIX: &str = "LENSPOOL_TEST_";

/// Variables of others that mean a setting of ours, the more particular ones last.
const BORROWED: [(&str, &str); 5] = [
    ("AMQP_URL", "queue.amqp"),
    ("HF_ENDPOINT", "hub.endpoint"),
    ("TRANSFORMERS_OFFLINE", "hub.offline"),
    ("HF_HUB_OFFLINE", "hub.offline"),
    ("HF_TOKEN", "hub.token"),
];

/// Where a setting's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Where settings are read from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`: this file alone, and it must be there.
    pub file: Option<PathBuf>,
    /// The flags given.
    pub flags: Flags,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// Where `lenspool.toml` is looked for.
    pub directory: PathBuf,
}

impl Sources {
    /// This process's environment and directory, with its flags.
    pub fn of_process(file: Option<PathBuf>, flags: Flags) -> Sources {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let environment = std::env::vars_os().filter_map(text).collect();
        Sources { file, flags, environment, directory: PathBuf::new() }
    }

    /// A variable's value; an empty one counts as not set.
    fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str).filter(|value| !value.trim().is_empty())
    }
}

/// Why settings could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("could not read the configuration file {path:?}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not TOML.
    #[error("{} is not a configuration file: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What and where.
        reason: String,
    },
    /// A key that nothing reads.
    #[error("{origin} sets {key}, which is no setting{hint}; `worker config` lists them all")]
    UnknownKey {
        /// Who says so.
        origin: Origin,
        /// The key.
        key: String,
        /// What may have been meant.
        hint: String,
    },
    /// A value that cannot be one.
    #[error("{origin} sets {key} to what it cannot be: {reason}")]
    BadValue {
        /// Who says so.
        origin: Origin,
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

/// Settings, and where they come from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What holds.
    pub settings: Settings,
    /// What a user should hear of, a sentence each.
    pub warnings: Vec<String>,
    /// Who set each key that is set; absent: default.
    pub(super) origins: BTreeMap<String, Origin>,
}

impl Loaded {
    /// Who set a key.
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }
}

/// Reads every layer: files, environment, flags, each over the one before.
pub fn load(sources: &Sources) -> Result<Loaded, SettingsError> {
    let known = super::show::keys();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let mut layers = Vec::new();
    for path in files(sources)? {
        layers.extend(read_file(&path)?);
    }
    layers.extend(read_environment(sources, &known));
    layers.extend(
        sources
            .flags
            .0
            .iter()
            .map(|(key, value)| (key.clone(), from_json(value), Origin::Flag(flags::spelling(key)))),
    );

    let mut origins = BTreeMap::new();
    let mut builder = Config::builder();
    for (key, value, origin) in layers {
        if !known.contains(&key.as_str()) {
            let hint = nearest(&key, known.iter().copied());
            let hint = hint.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
            return Err(SettingsError::UnknownKey { origin, key, hint });
        }
        if matches!(value.kind, ValueKind::Float(_)) {
            // config would round it.
            let reason = format!("{value} is a fraction, and no setting is one");
            return Err(SettingsError::BadValue { origin, key, reason });
        }
        origins.insert(key.clone(), origin);
        builder = builder.add_source(Leaf(key, value));
    }
    let settings = builder.build().and_then(Config::try_deserialize::<Settings>);
    let settings = settings.map_err(|error| bad_value(error, &origins))?;
    let mut loaded = Loaded { settings, warnings: unknown_variables(sources, &known), origins };
    loaded.complete(sources);
    loaded.warn_of_shown_password();
    Ok(loaded)
}

/// The files to read, those that matter less first.
fn files(sources: &Sources) -> Result<Vec<PathBuf>, SettingsError> {
    let named = sources.file.clone().or_else(|| sources.variable(FILE_VARIABLE).map(PathBuf::from));
    if let Some(path) = named {
        return Ok(vec![path]);
    }
    let home = |rest: &str| sources.variable("HOME").map(|home| Path::new(home).join(rest));
    let user = sources.variable("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| home(".config"));
    let user = user.map(|dir| dir.join("lenspool").join(FILE_NAME));
    let here = sources.directory.join(FILE_NAME);
    Ok(user.into_iter().chain([here]).filter(|path| path.exists()).collect())
}

/// A key, its value, and who says so.
type Setting = (String, Value, Origin);

fn read_file(path: &Path) -> Result<Vec<Setting>, SettingsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SettingsError::File { path: path.to_owned(), source })?;
    let tables = config::File::from_str(&text, FileFormat::Toml).collect();
    let tables = tables.map_err(|error| SettingsError::Syntax {
        path: path.to_owned(),
        reason: place_and_cause(&error.to_string()),
    })?;
    let mut settings = Vec::new();
    flatten("", tables, &mut |key, value| settings.push((key, value, Origin::File(path.to_owned()))));
    settings.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    Ok(settings)
}

/// A syntax error's first and last line. Between them TOML's reader shows the line at fault, which may hold
/// a secret.
fn place_and_cause(error: &str) -> String {
    let mut lines = error.lines().map(str::trim).filter(|line| !line.is_empty());
    let place = lines.next().unwrap_or_default();
    lines.next_back().map_or(place.to_owned(), |cause| format!("{place}: {cause}"))
}

fn flatten(prefix: &str, table: Map<String, Value>, leaf: &mut impl FnMut(String, Value)) {
    for (key, value) in table {
        let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match value.kind {
            ValueKind::Table(table) => flatten(&key, table, leaf),
            _ => leaf(key, value),
        }
    }
}

fn read_environment(sources: &Sources, known: &[&str]) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut take = |variable: &str, key: &str| {
        if let Some(value) = sources.variable(variable) {
            let value = Value::new(None, ValueKind::String(value.to_owned()));
            settings.push((key.to_owned(), value, Origin::Environment(variable.to_owned())));
        }
    };
    BORROWED.iter().for_each(|(variable, key)| take(variable, key));
    known.iter().for_each(|key| take(&variable_of(key), key));
    settings
}

/// The variable of a key: `LENSPOOL_RUN_BATCH_SIZE` for `run.batch_size`.
pub(super) fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_uppercase())
}

/// Variables that look like settings and are none. They may be meant for another version, so no error.
fn unknown_variables(sources: &Sources, known: &[&str]) -> Vec<String> {
    let ours: Vec<String> =
        known.iter().map(|key| variable_of(key)).chain([FILE_VARIABLE.to_owned()]).collect();
    let strange = sources
        .environment
        .keys()
        .filter(|name| name.starts_with(PREFIX) && !name.starts_with(TEST_PREFIX) && !ours.contains(name));
    let warn = |name: &String| {
        let near = nearest(name, ours.iter().map(String::as_str));
        let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        format!("the environment variable {name} is no setting and is ignored{hint}")
    };
    strange.map(warn).collect()
}

/// One setting as a layer of its own.
#[derive(Clone, Debug)]
struct Leaf(String, Value);

impl Source for Leaf {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(Map::from([(self.0.clone(), self.1.clone())]))
    }
}

fn from_json(value: &serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => ValueKind::Nil,
        serde_json::Value::Bool(value) => ValueKind::Boolean(*value),
        serde_json::Value::String(text) => ValueKind::String(text.clone()),
        serde_json::Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => ValueKind::U64(number),
            (None, Some(number)) => ValueKind::I64(number),
            (None, None) => ValueKind::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::Array(values) => ValueKind::Array(values.iter().map(from_json).collect()),
        serde_json::Value::Object(fields) => {
            ValueKind::Table(fields.iter().map(|(key, value)| (key.clone(), from_json(value))).collect())
        }
    };
    Value::new(None, kind)
}

/// Names the culprit, and never repeats a secret's text.
fn bad_value(error: ConfigError, origins: &BTreeMap<String, Origin>) -> SettingsError {
    let (key, reason) = match error {
        ConfigError::Type { key, unexpected, expected, .. } => {
            (key, format!("it must be {expected}, not {unexpected}"))
        }
        ConfigError::At { key, error, .. } => (key, error.to_string()),
        other => (None, other.to_string()),
    };
    let reason = in_words(reason);
    let key = key.unwrap_or_default();
    // Of an array's element the setting itself is to blame.
    let key = key.split('[').next().unwrap_or_default().to_owned();
    let origin = origins.get(&key).cloned().unwrap_or(Origin::Default);
    SettingsError::BadValue { origin, key, reason }
}

/// A reader's reason, where it names types, in a user's words.
fn in_words(reason: String) -> String {
    const WORDS: [(&str, &str); 3] = [
        ("expected parsable string", "expected a size, as in 512MiB or 2GB"),
        ("expected a nonzero usize", "expected a whole number from 1 on"),
        ("expected a nonzero u16", "expected a whole number from 1 to 65535"),
    ];
    WORDS.iter().fold(reason, |reason, (types, words)| reason.replace(types, words))
}

impl Loaded {
    /// A flag is in every process list of the machine.
    fn warn_of_shown_password(&mut self) {
        let from_flag = matches!(self.origin("queue.amqp"), Origin::Flag(_));
        if from_flag && self.settings.queue.amqp.holds_password() {
            self.warnings.push(
                "everybody on this machine can read the password in --amqp: give it in AMQP_URL, or name a file with \
                 queue.password_file"
                    .to_owned(),
            );
        }
    }

    /// Fills in what Hugging Face's tools would find by themselves, so that what is shown is what holds.
    fn complete(&mut self, sources: &Sources) {
        let var = |name: &str| sources.variable(name).map(str::to_owned);
        let Hub { cache, token, .. } = &mut self.settings.hub;
        if cache.is_none() {
            let by = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"];
            let by = by.into_iter().find(|name| var(name).is_some());
            let origin = by.map_or(Origin::Default, |name| Origin::Environment(name.to_owned()));
            *cache = Some(hub::default_cache(&var));
            self.origins.insert("hub.cache".to_owned(), origin);
        }
        if token.is_none()
            && let Some((path, found)) = hub::stored_token(&var)
        {
            *token = Some(found);
            self.origins.insert("hub.token".to_owned(), Origin::File(path));
        }
    }
}
