//! What stands around a text's own tokens: the beginning-of-sequence token above all.
//!
//! TransformerLens 2: where BOS is wanted and the tokenizer does not add it, BOS's text is put in front
//! of the prompt and the whole is tokenized; where the tokenizer adds it and it is not wanted, it is
//! taken off. A tokenizer without BOS lends its EOS; one without that either gets `<|endoftext|>`.

use tokenizers::Tokenizer;

use super::files::SpecialTokens;

/// What TransformerLens 2 calls a token nobody defined.
const MISSING_EOS: &str = "<|endoftext|>";

/// What model_cfg.json says of BOS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BosFacts {
    /// BOS's text; a lent one where the tokenizer has none of its own.
    pub token: String,
    /// Whether BOS is prepended in this run (`default_prepend_bos`).
    pub default_prepend_bos: bool,
    /// Whether the tokenizer adds it by itself (`tokenizer_prepends_bos`).
    pub tokenizer_prepends_bos: bool,
}

/// What is put around a text's tokens.
#[derive(Debug)]
pub(super) struct Frame {
    facts: BosFacts,
    /// Ids in front of everything.
    prefix: Vec<u32>,
    /// Ids behind everything.
    suffix: Vec<u32>,
    /// BOS as text in front of the prompt's.
    front: Option<Front>,
}

/// BOS put in front as text.
#[derive(Debug)]
struct Front {
    text: String,
    /// Its ids alone.
    ids: Vec<u32>,
    /// Whether it is one added token, which nothing behind it can change.
    is_token: bool,
}

/// A text's tokens with what stands around them.
#[derive(Debug)]
pub(super) struct Framed<'f> {
    prefix: &'f [u32],
    suffix: &'f [u32],
    /// BOS text's ids, where it was put in front as text, and the text's.
    content: Vec<u32>,
    /// How many of `content` are BOS's.
    front: usize,
    /// The text's own token strings.
    strings: Vec<String>,
}

impl Framed<'_> {
    /// The length for the model.
    pub(super) fn len(&self) -> usize {
        self.prefix.len() + self.content.len() + self.suffix.len()
    }

    /// Ids and strings of at most `n_ctx` tokens; the text is cut, not what stands around it.
    pub(super) fn cut(mut self, n_ctx: usize) -> (Vec<u32>, Vec<String>) {
        self.content.truncate(n_ctx.saturating_sub(self.prefix.len() + self.suffix.len()));
        self.strings.truncate(self.content.len().saturating_sub(self.front));
        let ids = [self.prefix, &self.content, self.suffix].concat();
        (ids, self.strings)
    }
}

impl Frame {
    /// Finds out what `tokenizer` adds, and settles what has to be added or taken off.
    pub(super) fn new(tokenizer: &Tokenizer, special: &SpecialTokens, wanted: bool) -> Result<Self, String> {
        let (processor_prefix, suffix) = added_by_processor(tokenizer).map_err(|error| error.to_string())?;
        let lent = || special.eos.clone().unwrap_or_else(|| MISSING_EOS.to_owned());
        let token = special.bos.clone().unwrap_or_else(lent);
        // Tokenizer classes that honour add_bos_token build the missing processor when transformers
        // loads them, whatever tokenizer.json says.
        let promised = special.adds_bos.then(|| tokenizer.token_to_id(&token)).flatten();
        let own = if processor_prefix.is_empty() { promised.into_iter().collect() } else { processor_prefix };
        let facts = BosFacts {
            token: token.clone(),
            default_prepend_bos: wanted,
            tokenizer_prepends_bos: !own.is_empty(),
        };
        let (prefix, front) = match (wanted, own.is_empty()) {
            (false, _) => (Vec::new(), None),
            (true, false) => (own, None),
            (true, true) => {
                let encoded = tokenizer.encode(token.as_str(), false).map_err(|error| error.to_string())?;
                let ids = encoded.get_ids().to_vec();
                let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
                let is_token = matches!(&ids[..], [id] if added.contains_key(id));
                (Vec::new(), Some(Front { text: token, ids, is_token }))
            }
        };
        Ok(Frame { facts, prefix, suffix, front })
    }

    pub(super) fn facts(&self) -> &BosFacts {
        &self.facts
    }

    /// The first id the model reads of every prompt, where that is known.
    pub(super) fn first_id(&self) -> Option<&u32> {
        self.prefix.first().or_else(|| self.front.as_ref()?.ids.first())
    }

    /// What the user should know of BOS.
    pub(super) fn warning(&self) -> Option<String> {
        let front = self.front.as_ref().filter(|front| !front.is_token)?;
        Some(format!(
            "BOS {:?} is no token of this tokenizer: the model reads it as {} plain tokens in front of each prompt, \
             as in TransformerLens; --prepend-bos never leaves it out",
            front.text,
            front.ids.len()
        ))
    }

    /// How many ids stand around a text.
    pub(super) fn extra(&self) -> usize {
        self.prefix.len() + self.suffix.len() + self.front.as_ref().map_or(0, |front| front.ids.len())
    }

    /// Which of a prompt's ids are the text's own, as long as BOS is a token.
    pub(super) fn text_ids<'i>(&self, ids: &'i [u32]) -> &'i [u32] {
        let before = self.prefix.len() + usize::from(self.front.is_some());
        ids.get(before..ids.len().saturating_sub(self.suffix.len())).unwrap_or_default()
    }

    /// Tokenizes `text` and puts around it what belongs there.
    pub(super) fn apply(&self, tokenizer: &Tokenizer, text: &str) -> tokenizers::Result<Framed<'_>> {
        let (prefix, suffix) = (&self.prefix[..], &self.suffix[..]);
        let Some(front) = &self.front else {
            let encoded = tokenizer.encode(text, false)?;
            let (content, strings) = (encoded.get_ids().to_vec(), encoded.get_tokens().to_vec());
            return Ok(Framed { prefix, suffix, content, front: 0, strings });
        };
        let whole = tokenizer.encode([front.text.as_str(), text].concat(), false)?;
        let content = whole.get_ids().to_vec();
        if front.is_token && content.first() == front.ids.first() {
            // The strings are those of the very tokens the model reads, so n is n_tokens + 1. For a
            // pre-tokenizer that marks the start of a text, they may differ from those of the text alone.
            let strings = whole.get_tokens()[1..].to_vec();
            return Ok(Framed { prefix, suffix, content, front: 1, strings });
        }
        // BOS is no token of this vocabulary: it is read as plain characters, as upstream does, and
        // may even have merged with the text's first. The strings are then the text's alone.
        let strings = tokenizer.encode(text, false)?.get_tokens().to_vec();
        let front = content.len().saturating_sub(strings.len());
        Ok(Framed { prefix, suffix, content, front, strings })
    }
}

/// The ids the post-processor puts before and behind a text.
fn added_by_processor(tokenizer: &Tokenizer) -> tokenizers::Result<(Vec<u32>, Vec<u32>)> {
    let around_nothing = tokenizer.encode("", true)?;
    if around_nothing.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    // Which of them stand in front shows around any text that has tokens.
    for probe in ["a", "0", " ", "the"] {
        let content = tokenizer.encode(probe, false)?.len();
        if content == 0 {
            continue;
        }
        let framed = tokenizer.encode(probe, true)?;
        let before = framed.get_special_tokens_mask().iter().take_while(|&&special| special == 1).count();
        let ids = framed.get_ids();
        return Ok((ids[..before].to_vec(), ids[before + content..].to_vec()));
    }
    Ok((around_nothing.get_ids().to_vec(), Vec::new()))
}
