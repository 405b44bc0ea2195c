//! Prompts to tokens, as TransformerLens's `to_tokens` and transformers' `tokenizer.tokenize` give them.
//!
//! Owns what is put in front (BOS), what is cut off (`n_ctx`), and what prompt.json says of it.
//! Reading a model directory's tokenizer files is [`files`]'s; many prompts at once are [`set`]'s.

mod bos;
mod files;
mod set;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

pub use bos::BosFacts;
pub use files::TokenizerError;
pub use set::{TokenizeReport, TokenizedSet};

use crate::{
    job::{Failure, FailureKind, JobPrompt},
    prompt::{Json, Prompt, PromptHash},
};
use bos::Frame;

/// `--prepend-bos`: whether the model reads a beginning-of-sequence token first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrependBos {
    /// As TransformerLens 2 does for the model's family.
    #[default]
    Auto,
    /// Yes.
    Always,
    /// No, and what the tokenizer itself adds is taken off.
    Never,
}

/// `--on-too-long`: what becomes of a prompt of more than `n_ctx` tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTooLong {
    /// Its first `n_ctx` tokens are used, BOS counted.
    #[default]
    Truncate,
    /// It is left out and counted.
    Skip,
    /// It fails; the others go on.
    Fail,
}

/// A word that names none of an option's values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is none of {allowed}")]
pub struct UnknownWord {
    given: String,
    allowed: &'static str,
}

macro_rules! words {
    ($type:ty, $allowed:literal, $($word:literal => $value:expr),+) => {
        impl FromStr for $type {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text {
                    $($word => Ok($value),)+
                    _ => Err(UnknownWord { given: text.to_owned(), allowed: $allowed }),
                }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(if *self == $value { return f.write_str($word); })+
                Ok(())
            }
        }
    };
}

words!(PrependBos, "auto, always, never",
    "auto" => PrependBos::Auto, "always" => PrependBos::Always, "never" => PrependBos::Never);
words!(OnTooLong, "truncate, skip, fail",
    "truncate" => OnTooLong::Truncate, "skip" => OnTooLong::Skip, "fail" => OnTooLong::Fail);

/// How to tokenize for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenizeOptions {
    /// `--prepend-bos`.
    pub prepend_bos: PrependBos,
    /// What [`PrependBos::Auto`] means: whether the model's family prepends BOS by default.
    pub family_prepends: bool,
    /// The longest sequence the model takes.
    pub n_ctx: usize,
    /// The rows of the model's embedding; a token beyond them cannot be read. Models often have more
    /// rows than the tokenizer has tokens, which is fine.
    pub d_vocab: Option<usize>,
    /// `--on-too-long`.
    pub on_too_long: OnTooLong,
}

impl TokenizeOptions {
    /// Whether BOS is wanted.
    pub fn wants_bos(&self) -> bool {
        match self.prepend_bos {
            PrependBos::Auto => self.family_prepends,
            PrependBos::Always => true,
            PrependBos::Never => false,
        }
    }
}

/// A prompt that could not be tokenized.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("prompt {hash}: {reason}")]
pub struct TokenizeFailure {
    /// The prompt.
    pub hash: PromptHash,
    /// Why.
    pub reason: TokenizeReason,
}

/// Why a prompt could not be tokenized.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenizeReason {
    /// Nothing for the model to read.
    #[error("its text has no tokens and no BOS is prepended; remove it, or use --prepend-bos always")]
    Empty,
    /// Too long, and `--on-too-long fail` or `skip` was asked for.
    #[error(
        "{n} tokens are more than the model's {n_ctx}; shorten it, or use --on-too-long truncate or skip"
    )]
    TooLong {
        /// Its length, BOS counted.
        n: usize,
        /// The model's limit.
        n_ctx: usize,
    },
    /// A token the model has no embedding for.
    #[error(
        "token {token:?} has id {id}, but the model embeds only {d_vocab}; do tokenizer and model belong together?"
    )]
    OutOfVocab {
        /// The token's text.
        token: String,
        /// Its id.
        id: u32,
        /// The model's embedding rows.
        d_vocab: usize,
    },
    /// The tokenizer gave up.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
}

impl From<TokenizeFailure> for Failure {
    fn from(failure: TokenizeFailure) -> Self {
        let reason = failure.reason.to_string();
        Failure { hash: Some(failure.hash), kind: FailureKind::Permanent, reason }
    }
}

/// A text as the model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// What the model reads, BOS included where one is prepended.
    pub ids: Vec<u32>,
    /// The text's token strings that were used, without BOS.
    pub strings: Vec<String>,
    /// The length before truncation, where that cut something off.
    pub truncated_from: Option<usize>,
}

/// A model's tokenizer with what to put in front and where to cut.
pub struct PromptTokenizer {
    tokenizer: Tokenizer,
    /// Each id's string: the tokenizer itself would copy one for every question.
    vocabulary: Vec<Box<str>>,
    frame: Frame,
    options: TokenizeOptions,
}

impl fmt::Debug for PromptTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromptTokenizer").field("frame", &self.frame).field("options", &self.options).finish()
    }
}

impl PromptTokenizer {
    /// Reads the tokenizer of a model directory: tokenizer.json, and where they exist
    /// tokenizer_config.json, special_tokens_map.json and config.json.
    pub fn from_dir(dir: &Path, options: TokenizeOptions) -> Result<Self, TokenizerError> {
        let (tokenizer, special) = files::read(dir)?;
        let frame = Frame::new(&tokenizer, &special, options.wants_bos())
            .map_err(|reason| TokenizerError::Unusable { dir: dir.to_path_buf(), reason })?;
        if let (Some(&id), Some(d_vocab)) = (frame.first_id(), options.d_vocab)
            && id as usize >= d_vocab
        {
            let reason = format!(
                "its BOS {:?} has id {id}, but the model embeds only {d_vocab} tokens; use --prepend-bos never",
                frame.facts().token
            );
            return Err(TokenizerError::Unusable { dir: dir.to_path_buf(), reason });
        }
        if options.n_ctx <= frame.extra() {
            let reason = format!("the model's {} positions leave no room for a text", options.n_ctx);
            return Err(TokenizerError::Unusable { dir: dir.to_path_buf(), reason });
        }
        let vocabulary = vocabulary(&tokenizer);
        Ok(PromptTokenizer { tokenizer, vocabulary, frame, options })
    }

    /// What model_cfg.json says of BOS.
    pub fn bos(&self) -> &BosFacts {
        self.frame.facts()
    }

    /// What the user should know before the run, in a sentence.
    pub fn warning(&self) -> Option<String> {
        self.frame.warning()
    }

    /// The options it was made with.
    pub fn options(&self) -> &TokenizeOptions {
        &self.options
    }

    /// Tokenizes one text.
    pub fn tokens(&self, text: &str) -> Result<Tokens, TokenizeReason> {
        // A panic in a tokenizer must cost one prompt, not the run. It holds no lock and no state
        // that a panic could leave half changed.
        let framed = catch_unwind(AssertUnwindSafe(|| self.frame.apply(&self.tokenizer, text)))
            .map_err(|_| TokenizeReason::Tokenizer("it panicked on this text".to_owned()))?
            .map_err(|error| TokenizeReason::Tokenizer(error.to_string()))?;
        let n_ctx = self.options.n_ctx;
        let n = framed.len();
        if n == 0 {
            return Err(TokenizeReason::Empty);
        }
        let truncated_from = (n > n_ctx).then_some(n);
        if truncated_from.is_some() && self.options.on_too_long != OnTooLong::Truncate {
            return Err(TokenizeReason::TooLong { n, n_ctx });
        }
        let (ids, strings) = framed.cut(n_ctx);
        if let Some(d_vocab) = self.options.d_vocab
            && let Some(&id) = ids.iter().find(|&&id| id as usize >= d_vocab)
        {
            let token = self.vocabulary.get(id as usize).map(ToString::to_string).unwrap_or_default();
            return Err(TokenizeReason::OutOfVocab { token, id, d_vocab });
        }
        Ok(Tokens { ids, strings, truncated_from })
    }

    /// The vocabulary's strings for the ids of a text, without what stands around it.
    fn strings_of(&self, ids: &[u32]) -> impl Iterator<Item = &str> {
        let ids = self.frame.text_ids(ids).iter();
        ids.map(|&id| self.vocabulary.get(id as usize).map_or("", |string| string))
    }

    /// Makes a prompt ready for a job: its token ids, and in its record "n_tokens" and "tokens",
    /// last or where the input had them.
    pub fn job_prompt(&self, prompt: Prompt) -> Result<JobPrompt, TokenizeFailure> {
        match self.tokens(prompt.text()) {
            Ok(tokens) => Ok(job_prompt(prompt, tokens.ids, tokens.strings)),
            Err(reason) => Err(TokenizeFailure { hash: prompt.into_parts().1, reason }),
        }
    }
}

/// Ids from here on have no place in [`PromptTokenizer::vocabulary`]: a damaged file may have any.
const MAX_IDS: usize = 1 << 22;

fn vocabulary(tokenizer: &Tokenizer) -> Vec<Box<str>> {
    let mut vocabulary = Vec::new();
    for (string, id) in tokenizer.get_vocab(true) {
        let id = id as usize;
        if id >= MAX_IDS {
            continue;
        }
        if id >= vocabulary.len() {
            vocabulary.resize(id + 1, Box::default());
        }
        vocabulary[id] = string.into_boxed_str();
    }
    vocabulary
}

fn job_prompt<S: Into<Json>>(
    prompt: Prompt,
    ids: Vec<u32>,
    strings: impl IntoIterator<Item = S>,
) -> JobPrompt {
    let (mut record, hash) = prompt.into_parts();
    let strings: Vec<Json> = strings.into_iter().map(Into::into).collect();
    record.insert("n_tokens", strings.len());
    record.insert("tokens", Json::Array(strings));
    JobPrompt { hash, record, ids }
}

#[cfg(test)]
mod tests;
