//! The tokenizer files of a model directory, as transformers reads them.
//!
//! tokenizer.json alone does not say everything: tokenizer_config.json adds and changes added tokens,
//! names the special ones, and older repositories leave those to the tokenizer class's defaults.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{AddedToken, PreTokenizerWrapper, Tokenizer};

/// Why a model directory gives no tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// There is no tokenizer.json.
    #[error("{} has no tokenizer.json{found}", dir.display())]
    Missing {
        /// The model directory.
        dir: PathBuf,
        /// What is there instead and what to do.
        found: &'static str,
    },
    /// A file could not be read.
    #[error("could not read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is not a tokenizer file this build understands: {reason}; fetch it again, or save it anew with \
             AutoTokenizer.from_pretrained(...).save_pretrained(...)", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The tokenizer cannot be used with this model and these options.
    #[error("the tokenizer in {} cannot be used: {reason}", dir.display())]
    Unusable {
        /// The model directory.
        dir: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
}

/// The special tokens that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SpecialTokens {
    pub(super) bos: Option<String>,
    pub(super) eos: Option<String>,
    /// Whether transformers makes this tokenizer prepend BOS, whatever its post-processor says.
    pub(super) adds_bos: bool,
}

/// tokenizer_config.json or special_tokens_map.json, as far as it matters.
#[derive(Debug, Default, Deserialize)]
struct Config {
    tokenizer_class: Option<String>,
    add_bos_token: Option<bool>,
    add_prefix_space: Option<bool>,
    #[serde(default)]
    added_tokens_decoder: BTreeMap<u32, AddedTokenConfig>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Deserialize)]
struct AddedTokenConfig {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl AddedTokenConfig {
    fn token(&self, special: bool) -> AddedToken {
        AddedToken::from(self.content.clone(), special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized.unwrap_or(!special))
    }
}

/// The names under which configurations keep special tokens.
const SPECIAL_KEYS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Reads the tokenizer of a model directory with its special tokens.
pub(super) fn read(dir: &Path) -> Result<(Tokenizer, SpecialTokens), TokenizerError> {
    let path = dir.join("tokenizer.json");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(TokenizerError::Missing { dir: dir.to_path_buf(), found: found_instead(dir) });
        }
        Err(source) => return Err(TokenizerError::Read { path, source }),
    };
    let mut tokenizer = Tokenizer::from_bytes(&bytes)
        .map_err(|error| TokenizerError::Invalid { path: path.clone(), reason: error.to_string() })?;
    // What the file says of these is for its author's batches.
    tokenizer
        .with_truncation(None)
        .map_err(|error| TokenizerError::Invalid { path: path.clone(), reason: error.to_string() })?
        .with_padding(None);

    let config: Config = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
    let map: Config = read_json(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
    let model: Value = read_json(&dir.join("config.json"))?.unwrap_or_default();
    let class = Class::find(config.tokenizer_class.as_deref(), model["model_type"].as_str());
    let special = apply(&mut tokenizer, &config, &map, class).map_err(|error| TokenizerError::Invalid {
        path: dir.join("tokenizer_config.json"),
        reason: error.to_string(),
    })?;
    Ok((tokenizer, special))
}

fn found_instead(dir: &Path) -> &'static str {
    if dir.join("vocab.json").exists() && dir.join("merges.txt").exists() {
        ", only the older vocab.json and merges.txt; make one with \
         AutoTokenizer.from_pretrained(dir).save_pretrained(dir) in Python"
    } else if dir.join("tokenizer.model").exists() {
        ", only a SentencePiece tokenizer.model; make one with \
         AutoTokenizer.from_pretrained(dir).save_pretrained(dir) in Python"
    } else {
        "; copy the tokenizer's files there, or fetch the whole repository"
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, TokenizerError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| TokenizerError::Invalid { path: path.to_path_buf(), reason: error.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read { path: path.to_path_buf(), source }),
    }
}

/// Changes `tokenizer` as transformers does after reading tokenizer.json.
fn apply(
    tokenizer: &mut Tokenizer,
    config: &Config,
    map: &Config,
    class: Class,
) -> tokenizers::Result<SpecialTokens> {
    let special = special_tokens(tokenizer, config, map, class);
    // First those that are listed, by id; then special ones that no list has. In one call, because each
    // builds the search for all of them anew, and Gemma 3 lists six thousand.
    let is_special = |content: &str| special.values().any(|token| token.content == content);
    let listed = config.added_tokens_decoder.values();
    let mut added: Vec<AddedToken> =
        listed.map(|token| token.token(token.special || is_special(&token.content))).collect();
    for token in special.values() {
        let known = tokenizer.get_added_vocabulary().get_vocab().contains_key(&token.content)
            || added.iter().any(|listed| listed.content == token.content);
        if !known {
            added.push(token.token(true));
        }
    }
    tokenizer.add_tokens(added)?;
    if let Some(PreTokenizerWrapper::ByteLevel(byte_level)) = tokenizer.get_pre_tokenizer()
        && class.sets_prefix_space()
    {
        let changed = byte_level.add_prefix_space(config.add_prefix_space.unwrap_or(false));
        tokenizer.with_pre_tokenizer(Some(changed));
    }
    let content = |key: &str| special.get(key).map(|token| token.content.clone());
    let adds_bos = config.add_bos_token == Some(true) || class.always_adds_bos();
    Ok(SpecialTokens { bos: content("bos_token"), eos: content("eos_token"), adds_bos })
}

/// The special tokens by name. special_tokens_map.json has the word over tokenizer_config.json, unless
/// that is of the newer kind that lists its added tokens. What neither names, the class does, as long as
/// the vocabulary has it.
fn special_tokens(
    tokenizer: &Tokenizer,
    config: &Config,
    map: &Config,
    class: Class,
) -> BTreeMap<&'static str, AddedTokenConfig> {
    let no_map = Config::default();
    let map = if config.added_tokens_decoder.is_empty() { map } else { &no_map };
    let named = |source: &Config, key| source.rest.get(key).and_then(special_token);
    let default = |key| {
        let (_, content) = class.defaults().iter().find(|(name, _)| *name == key)?;
        // A null says that there is none, whatever the class would have.
        let denied = config.rest.contains_key(key);
        (!denied && tokenizer.token_to_id(content).is_some()).then(|| plain(content))
    };
    SPECIAL_KEYS
        .into_iter()
        .filter_map(|key| {
            Some((key, named(map, key).or_else(|| named(config, key)).or_else(|| default(key))?))
        })
        .collect()
}

fn plain(content: &str) -> AddedTokenConfig {
    AddedTokenConfig {
        content: content.to_owned(),
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: None,
        special: true,
    }
}

/// A special token is written as its text, or as an object with its matching rules.
fn special_token(value: &Value) -> Option<AddedTokenConfig> {
    match value {
        Value::String(content) => Some(plain(content)),
        Value::Object(_) => serde_json::from_value(value.clone()).ok(),
        _ => None,
    }
}

/// The tokenizer classes whose defaults matter: their repositories often leave them unsaid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Gpt2,
    GptNeoX,
    CodeGen,
    Qwen2,
    Bloom,
    Llama,
    Gemma,
    Other,
}

impl Class {
    /// From tokenizer_config.json's class, or else from config.json's model type.
    fn find(tokenizer_class: Option<&str>, model_type: Option<&str>) -> Self {
        let class = tokenizer_class.map(|name| name.strip_suffix("Fast").unwrap_or(name));
        match (class, model_type) {
            (Some("GPT2Tokenizer"), _) => Class::Gpt2,
            (Some("GPTNeoXTokenizer"), _) => Class::GptNeoX,
            (Some("CodeGenTokenizer"), _) => Class::CodeGen,
            (Some("Qwen2Tokenizer"), _) => Class::Qwen2,
            (Some("BloomTokenizer"), _) => Class::Bloom,
            (Some("LlamaTokenizer" | "CodeLlamaTokenizer"), _) => Class::Llama,
            (Some("GemmaTokenizer"), _) => Class::Gemma,
            (Some(_), _) => Class::Other,
            (None, Some("gpt2" | "gpt_neo" | "gptj" | "opt")) => Class::Gpt2,
            (None, Some("gpt_neox" | "stablelm" | "olmo2")) => Class::GptNeoX,
            (None, Some("phi")) => Class::CodeGen,
            (None, Some("qwen2" | "qwen3")) => Class::Qwen2,
            (None, Some("bloom")) => Class::Bloom,
            (None, Some("llama" | "mistral" | "phi3")) => Class::Llama,
            (None, Some("gemma" | "gemma2" | "gemma3" | "gemma3_text")) => Class::Gemma,
            (None, _) => Class::Other,
        }
    }

    /// Its special tokens where the files name none.
    fn defaults(self) -> &'static [(&'static str, &'static str)] {
        const END: &str = "<|endoftext|>";
        match self {
            Class::Gpt2 | Class::GptNeoX | Class::CodeGen => {
                &[("bos_token", END), ("eos_token", END), ("unk_token", END)]
            }
            Class::Qwen2 => &[("eos_token", END), ("unk_token", END), ("pad_token", END)],
            Class::Bloom => {
                &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")]
            }
            Class::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
            Class::Gemma => &[
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
            ],
            Class::Other => &[],
        }
    }

    /// These classes put in front of a text a space, or none, as tokenizer_config.json says and whatever
    /// tokenizer.json does.
    fn sets_prefix_space(self) -> bool {
        matches!(self, Class::Gpt2 | Class::GptNeoX | Class::CodeGen | Class::Qwen2)
    }

    /// TransformerLens loads every tokenizer with `add_bos_token=True`; these classes obey.
    fn always_adds_bos(self) -> bool {
        matches!(self, Class::Llama | Class::Gemma)
    }
}
