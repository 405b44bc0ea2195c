//! The table of models TransformerLens knows by a name of its own: which spellings lead to which repo
//! and directory name.
//!
//! Owns the table (`aliases.txt`) and the lookup. Whether a model can be run is its config's matter,
//! not the table's: see the families.

use std::{collections::HashMap, sync::LazyLock};

/// A model with a name in TransformerLens, as the table gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownModel {
    /// The repo on the hub, as the hub spells it today.
    pub repo: &'static str,
    /// The TransformerLens alias that names the directory, where there is one.
    pub alias: Option<&'static str>,
    /// What else users type for it, the repo's tail excepted.
    pub spellings: Vec<&'static str>,
    /// Repo ids under which the same files may lie in a hub cache.
    pub former_repos: Vec<&'static str>,
}

impl KnownModel {
    /// Everything a user may type for this model, the directory name first.
    pub fn all_spellings(&self) -> impl Iterator<Item = &'static str> + '_ {
        let tail = self.repo.rsplit('/').next();
        let rest = self.spellings.iter().chain(&self.former_repos).copied();
        self.alias.into_iter().chain([self.repo]).chain(tail).chain(rest)
    }
}

/// The known models, in the table's order.
pub fn known_models() -> &'static [KnownModel] {
    &TABLE.models
}

/// The model that `spelling` (alias, hub id or tail of a hub id, any case) stands for.
pub fn find(spelling: &str) -> Option<&'static KnownModel> {
    TABLE.by_spelling.get(&spelling.to_lowercase()).map(|&index| &TABLE.models[index])
}

struct Table {
    models: Vec<KnownModel>,
    by_spelling: HashMap<String, usize>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let models: Vec<KnownModel> = include_str!("aliases.txt").lines().filter_map(parse_line).collect();
    let mut by_spelling = HashMap::new();
    for (index, model) in models.iter().enumerate() {
        for spelling in model.all_spellings() {
            // The test below sees to it that no spelling is in two rows.
            by_spelling.insert(spelling.to_lowercase(), index);
        }
    }
    Table { models, by_spelling }
});

fn parse_line(line: &'static str) -> Option<KnownModel> {
    let mut words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
    let repo = words.next()?;
    let alias = words.next().filter(|&word| word != "-");
    let (former_repos, spellings) = words.partition::<Vec<_>, _>(|word| word.starts_with("hub:"));
    let former_repos = former_repos.into_iter().filter_map(|word| word.strip_prefix("hub:")).collect();
    Some(KnownModel { repo, alias, spellings, former_repos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_leads_to_one_model() {
        let mut seen: HashMap<String, &str> = HashMap::new();
        for model in known_models() {
            for spelling in model.all_spellings() {
                let other = seen.insert(spelling.to_lowercase(), model.repo);
                assert!(other.is_none_or(|repo| repo == model.repo), "{spelling} is in two rows: {other:?}");
                assert_eq!(find(spelling), Some(model), "{spelling}");
                assert_eq!(find(&spelling.to_uppercase()), Some(model), "{spelling} in capitals");
            }
        }
        assert!(known_models().len() > 180, "only {} rows were read", known_models().len());
    }

    #[test]
    fn every_row_is_well_formed_and_every_directory_is_its_own() {
        let mut names = HashMap::new();
        for model in known_models() {
            assert_eq!(model.repo.split('/').count(), 2, "{}: a hub id has an owner", model.repo);
            if let Some(alias) = model.alias {
                assert!(!alias.contains('/'), "{alias} names a directory");
                assert_eq!(
                    names.insert(alias.to_lowercase(), model.repo),
                    None,
                    "{alias} names two directories"
                );
            }
        }
    }

    #[test]
    fn names_users_know() {
        for (spelling, repo, alias) in [
            ("gpt2", "openai-community/gpt2", Some("gpt2")),
            ("gpt2-small", "openai-community/gpt2", Some("gpt2")),
            ("GPT2-XL", "openai-community/gpt2-xl", Some("gpt2-xl")),
            ("distilgpt2", "distilbert/distilgpt2", Some("distilgpt2")),
            ("gpt2-xs", "distilbert/distilgpt2", Some("distilgpt2")),
            ("pythia", "EleutherAI/pythia-70m", Some("pythia-70m")),
            ("eleutherai/pythia-19m", "EleutherAI/pythia-70m", Some("pythia-70m")),
            ("TinyStories-1M", "roneneldan/TinyStories-1M", Some("tiny-stories-1M")),
            ("tiny-stories-1m", "roneneldan/TinyStories-1M", Some("tiny-stories-1M")),
            ("gptj", "EleutherAI/gpt-j-6B", Some("gpt-j-6B")),
            ("opt", "facebook/opt-125m", Some("opt-125m")),
            ("Llama-3.2-1B", "meta-llama/Llama-3.2-1B", None),
            ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B", None),
        ] {
            let model = find(spelling).unwrap_or_else(|| panic!("{spelling} is not in the table"));
            assert_eq!((model.repo, model.alias), (repo, alias), "{spelling}");
        }
        assert_eq!(find("solu-1l"), None);
    }
}
