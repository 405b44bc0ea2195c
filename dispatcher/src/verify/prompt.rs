//! One committed prompt: its prompt.json and its files of arrays.

use std::{fs, io, path::PathBuf};

use common::{
    capture::ArrayLayout,
    prompt::{Json, Prompt, PromptHash, Record},
    store::ModelLayout,
};
use serde::Serialize;

use super::file::{Expected, check_file};

/// Something that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// The model.
    pub model: String,
    /// The prompt.
    pub hash: PromptHash,
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub what: String,
    /// Which file of arrays has to be made again.
    #[serde(skip)]
    pub layout: ArrayLayout,
}

/// What one prompt came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// What is wrong with it.
    pub broken: Vec<Broken>,
    /// Bytes of its arrays.
    pub bytes: u64,
    /// Whether its hash is another than that of its text, as input files may have it.
    pub carried: bool,
}

/// Which file of arrays is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// That of a run.
    One(ArrayLayout),
    /// Whatever there is.
    All,
}

/// What it means where a prompt has no prompt.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Not committed, so not broken.
    Fine,
    /// A journal says that it was committed.
    Lost,
    /// A repair that was interrupted removed it, and with it these arrays.
    Removed(ArrayLayout),
}

/// Reads a prompt's files.
pub fn check_prompt(
    model: &ModelLayout,
    hash: &PromptHash,
    which: Which,
    expected: &Expected,
    absence: Absence,
) -> Option<Checked> {
    let mut checked = Checked::default();
    let mut layouts = match which {
        Which::One(layout) => vec![layout],
        Which::All => [ArrayLayout::PerLayer, ArrayLayout::Stacked]
            .into_iter()
            .filter(|&layout| model.activations(hash, layout).exists())
            .collect(),
    };
    if layouts.is_empty() {
        layouts.push(match absence {
            Absence::Removed(layout) => layout,
            Absence::Fine | Absence::Lost => ArrayLayout::PerLayer,
        });
    }
    let broken = |path: PathBuf, what: String, layout: ArrayLayout| Broken {
        model: model.name().to_string(),
        hash: hash.clone(),
        path,
        what,
        layout,
    };
    let n_tokens = match read_record(model, hash) {
        Ok(None) => {
            let what = match absence {
                Absence::Fine => return None,
                Absence::Lost => "it is missing, and the run's journal says that it was committed",
                Absence::Removed(_) => "a repair that was interrupted removed it",
            };
            checked.broken.push(broken(model.prompt_json(hash), what.to_owned(), layouts[0]));
            None
        }
        Ok(Some(record)) => match check_record(&record, hash) {
            Ok((n_tokens, text)) => {
                checked.carried = PromptHash::of(text) != *hash;
                Some(n_tokens)
            }
            Err(what) => {
                checked.broken.push(broken(model.prompt_json(hash), what, layouts[0]));
                None
            }
        },
        Err(what) => {
            checked.broken.push(broken(model.prompt_json(hash), what, layouts[0]));
            None
        }
    };
    for layout in layouts {
        let path = model.activations(hash, layout);
        checked.bytes += fs::metadata(&path).map_or(0, |meta| meta.len());
        if let Err(what) = check_file(&path, layout, expected, n_tokens) {
            checked.broken.push(broken(path, what, layout));
        }
    }
    Some(checked)
}

/// A prompt's record as it was committed; none where there is no prompt.json, an error where it is no record.
pub fn read_record(model: &ModelLayout, hash: &PromptHash) -> Result<Option<Record>, String> {
    let text = match fs::read(model.prompt_json(hash)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("it cannot be read: {error}")),
    };
    let text = str::from_utf8(&text).map_err(|error| format!("it is no text: {error}"))?;
    Record::parse(text.trim_end())
        .map(Some)
        .map_err(|error| format!("it is no JSON object: {}", error.message))
}

/// The number of tokens a record tells, and its text.
fn check_record<'r>(record: &'r Record, hash: &PromptHash) -> Result<(usize, &'r str), String> {
    let text = record.get("text").and_then(Json::as_str).ok_or("it has no \"text\"")?;
    let own = record.get("hash").and_then(Json::as_str).ok_or("it has no \"hash\"")?;
    if own != hash.as_str() {
        return Err(format!("its \"hash\" is {own}, not its directory's name"));
    }
    let n_tokens = match record.get("n_tokens") {
        Some(Json::Number(number)) => number.parse::<usize>().ok(),
        _ => None,
    };
    let n_tokens = n_tokens.ok_or("its \"n_tokens\" is no count")?;
    match record.get("tokens") {
        Some(Json::Array(tokens)) if tokens.len() == n_tokens => Ok((n_tokens, text)),
        Some(Json::Array(tokens)) => {
            Err(format!("it has {} tokens, and \"n_tokens\" is {n_tokens}", tokens.len()))
        }
        _ => Err("it has no \"tokens\"".to_owned()),
    }
}

/// What a record was before it was tokenized: a prompt to enqueue again.
pub fn prompt_of(record: Record, hash: &PromptHash) -> Option<Prompt> {
    let prompt = Prompt::from_record(record).ok()?;
    (prompt.hash() == hash).then_some(prompt)
}

#[cfg(test)]
pub mod tests {
    use common::capture::Dtype;

    use super::*;
    use crate::{scope::tests::layout, verify::file::tests::npz};

    /// Commits a prompt of five tokens, whole, for a model of two layers of two heads.
    pub fn commit(model: &ModelLayout, text: &str) -> PromptHash {
        let (mut record, hash) = Prompt::from_text(text).into_parts();
        record.insert("n_tokens", 5);
        record.insert("tokens", Json::Array(vec![Json::from("t"); 5]));
        fs::create_dir_all(model.prompt(&hash)).unwrap();
        fs::write(model.activations(&hash, ArrayLayout::PerLayer), npz(&[0, 1], Dtype::Float32, 6)).unwrap();
        fs::write(model.prompt_json(&hash), record.to_python_json()).unwrap();
        hash
    }

    fn expected() -> Expected {
        Expected { n_layers: Some(2), n_heads: Some(2), layers: vec![0, 1], dtype: None }
    }

    #[test]
    fn a_whole_prompt_and_what_can_be_wrong_with_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let model = layout(dir.path(), "gpt2");
        let hash = commit(&model, "a");
        let check = |absence| check_prompt(&model, &hash, Which::All, &expected(), absence);
        let good = check(Absence::Fine).unwrap();
        assert_eq!((good.broken.len(), good.carried), (0, false));
        assert!(good.bytes > 0);

        let text = fs::read_to_string(model.prompt_json(&hash)).unwrap();
        for (from, to, said) in [
            ("\"n_tokens\": 5", "\"n_tokens\": 4", "it has 5 tokens, and \"n_tokens\" is 4"),
            ("\"n_tokens\": 5", "\"n_tokens\": \"5\"", "is no count"),
            (hash.as_str(), "other", "its \"hash\" is other"),
            ("\"text\"", "\"txet\"", "no \"text\""),
            ("}", "", "no JSON object"),
        ] {
            fs::write(model.prompt_json(&hash), text.replacen(from, to, 1)).unwrap();
            let broken = check(Absence::Fine).unwrap().broken;
            assert!(
                broken[0].what.contains(said) && broken[0].path.ends_with("prompt.json"),
                "{said}: {broken:?}"
            );
        }
        fs::write(model.prompt_json(&hash), text.replacen("\"text\": \"a\"", "\"text\": \"b\"", 1)).unwrap();
        let carried = check(Absence::Fine).unwrap();
        assert!(carried.carried && carried.broken.is_empty(), "input files may name their prompts");

        fs::remove_file(model.prompt_json(&hash)).unwrap();
        assert_eq!(check(Absence::Fine), None, "not committed, so not broken");
        assert!(check(Absence::Lost).unwrap().broken[0].what.starts_with("it is missing"));
        fs::remove_file(model.activations(&hash, ArrayLayout::PerLayer)).unwrap();
        let removed = check(Absence::Removed(ArrayLayout::Stacked)).unwrap().broken;
        assert!(removed[0].what.contains("interrupted") && removed[0].layout == ArrayLayout::Stacked);
    }

    #[test]
    fn arrays_are_missed_and_the_length_is_the_records() {
        let dir = tempfile::tempdir().unwrap();
        let model = layout(dir.path(), "gpt2");
        let hash = commit(&model, "a");
        let arrays = model.activations(&hash, ArrayLayout::PerLayer);
        let check = |which| check_prompt(&model, &hash, which, &expected(), Absence::Fine).unwrap().broken;
        let stacked = check(Which::One(ArrayLayout::Stacked));
        assert!(stacked.len() == 1 && stacked[0].what == "it is missing", "{stacked:?}");
        fs::write(&arrays, npz(&[0, 1], Dtype::Float32, 4)).unwrap();
        assert!(check(Which::All)[0].what.contains("its shape is [1, 2, 4, 4]"));
        fs::remove_file(&arrays).unwrap();
        assert_eq!(check(Which::All)[0].what, "it is missing");
    }

    #[test]
    fn a_record_leads_back_to_its_prompt() {
        let dir = tempfile::tempdir().unwrap();
        let model = layout(dir.path(), "gpt2");
        let hash = commit(&model, "some text");
        let record = read_record(&model, &hash).unwrap().unwrap();
        assert_eq!(prompt_of(record.clone(), &hash).unwrap().text(), "some text");
        assert!(prompt_of(record, &PromptHash::of("other")).is_none());
    }
}
