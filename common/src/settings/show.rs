//! The settings as a person or a script reads them: every key, its value, and who said so.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Loaded, Settings,
    load::{Origin, variable_of},
};

/// One line of `worker config`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// As in the file, with its section: `run.batch_size`.
    pub key: String,
    /// What holds; null where nothing is set. Secrets are not shown.
    pub value: Value,
    /// Who said so.
    pub origin: String,
    /// The environment variable that would say otherwise.
    pub variable: String,
}

/// Every key there is, in the order of the sections.
pub(super) fn keys() -> Vec<String> {
    leaves(&Settings::default()).into_iter().map(|(key, _)| key).collect()
}

fn leaves(settings: &Settings) -> Vec<(String, Value)> {
    let tree = serde_json::to_value(settings).expect("settings are plain data");
    let sections = tree.as_object().into_iter().flatten();
    let fields = sections.flat_map(|(section, fields)| {
        let fields = fields.as_object().into_iter().flatten();
        fields.map(move |(key, value)| (format!("{section}.{key}"), value.clone()))
    });
    fields.collect()
}

impl Loaded {
    /// Every setting with its origin.
    pub fn rows(&self) -> Vec<Row> {
        let row = |(key, value): (String, Value)| Row {
            origin: self.origin(&key).to_string(),
            variable: variable_of(&key),
            key,
            value,
        };
        leaves(&self.settings).into_iter().map(row).collect()
    }

    /// The rows as aligned columns.
    pub fn table(&self) -> String {
        let rows: Vec<[String; 3]> =
            self.rows().into_iter().map(|row| [row.key, plain(&row.value), row.origin]).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let (keys, values) = (width(0), width(1).min(48));
        rows.iter().map(|[key, value, origin]| format!("{key:keys$}  {value:values$}  {origin}\n")).collect()
    }

    /// The rows as one JSON object by key.
    pub fn json(&self) -> Value {
        let mut object = Map::new();
        for row in self.rows() {
            let set = *self.origin(&row.key) != Origin::Default;
            let entry = serde_json::json!({
                "value": row.value, "origin": row.origin, "set": set, "variable": row.variable
            });
            object.insert(row.key, entry);
        }
        Value::Object(object)
    }
}

/// A value as a person writes it.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
