//! Dead letters for people.

use common::{job::FailureKind, talk::counted};

use super::{
    letters::{Full, Letter},
    reasons::grouped,
};
use crate::table::{Align, table};

/// Prompts of a letter that are listed.
const PROMPTS_SHOWN: usize = 10;

/// The word for a kind of failure.
fn kind(kind: Option<FailureKind>) -> &'static str {
    match kind {
        Some(FailureKind::Retryable) => "retryable",
        Some(FailureKind::Permanent) => "permanent",
        Some(FailureKind::Bug) => "bug",
        None => "broker",
    }
}

fn or_unknown(text: &str) -> String {
    if text.is_empty() { "?".to_owned() } else { text.to_owned() }
}

fn when(letter: &Letter) -> String {
    letter.at.map_or_else(|| "?".to_owned(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// A count a reason, then a line a letter.
pub fn list(letters: &[Letter]) -> String {
    if letters.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut text = format!("{}\n", counted(letters.len() as u64, "dead letter"));
    for (reason, count) in grouped(letters) {
        text.push_str(&format!("{count:>7}  {reason}\n"));
    }
    let header = [
        ("JOB", Align::Left),
        ("RUN", Align::Left),
        ("MODEL", Align::Left),
        ("PROMPTS", Align::Right),
        ("TRIES", Align::Right),
        ("KIND", Align::Left),
        ("HOST", Align::Left),
        ("TIME", Align::Left),
        ("REASON", Align::Left),
    ];
    let row = |letter: &Letter| {
        vec![
            or_unknown(&letter.job),
            or_unknown(&letter.run),
            or_unknown(&letter.model),
            letter.prompts.to_string(),
            letter.attempts.to_string(),
            kind(letter.kind).to_owned(),
            letter.host.clone().unwrap_or_else(|| "?".to_owned()),
            when(letter),
            letter.reason.lines().next().unwrap_or_default().to_owned(),
        ]
    };
    text.push('\n');
    text.push_str(&table(&header, &letters.iter().map(row).collect::<Vec<_>>()));
    text
}

/// All that is known of a letter.
pub fn full(full: &Full) -> String {
    let letter = &full.letter;
    let mut text = format!(
        "job {}\n  run       {}\n  model     {}\n",
        or_unknown(&letter.job),
        or_unknown(&letter.run),
        or_unknown(&letter.model)
    );
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<9} {value}\n"));
    if let Some(path) = &full.save_path {
        line("save path", path.clone());
    }
    line("message", counted(full.bytes as u64, "byte"));
    if letter.copies > 1 {
        line("copies", letter.copies.to_string());
    }
    line("tries", letter.attempts.to_string());
    line("kind", kind(letter.kind).to_owned());
    line("reason", letter.reason.clone());
    for past in &full.history {
        let at = past.at.strftime("%Y-%m-%dT%H:%M:%SZ");
        line("tried", format!("{at} on {}: {} ({})", past.host, past.reason, kind(Some(past.kind))));
    }
    if let Some(unreadable) = &full.unreadable {
        line("body", unreadable.clone());
    }
    for prompt in full.contents.iter().take(PROMPTS_SHOWN) {
        line("prompt", format!("{} ({} tokens): {:?}", prompt.hash, prompt.tokens, prompt.text));
    }
    if full.contents.len() > PROMPTS_SHOWN {
        line("", format!("and {} prompts more", full.contents.len() - PROMPTS_SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead::letters::tests::letter;

    #[test]
    fn a_list_counts_reasons_and_names_letters() {
        assert_eq!(list(&[]), "no dead letters\n");
        let letters: Vec<_> = ["a", "b"]
            .map(|text| {
                Letter::of(&letter("r1", "gpt2", text, &format!("prompt {} broke\nmore", text.len())), None)
            })
            .into();
        let text = list(&letters);
        assert!(text.starts_with("2 dead letters\n      2  prompt 1 broke\n\nJOB "), "{text}");
        assert!(text.contains(&letters[1].job) && text.contains("  permanent  "), "{text}");
        assert!(!text.contains("more"), "one line a letter: {text}");
    }

    #[test]
    fn a_letter_is_shown_whole() {
        let mut shown = Full::of(&letter("r1", "gpt2", "some text", "first\nsecond"));
        shown.letter.copies = 2;
        let text = full(&shown);
        for said in [
            "run       r1",
            "copies    2",
            "reason    first\nsecond",
            "(2 tokens): \"some text\"",
            "(permanent)",
        ] {
            assert!(text.contains(said), "{said:?} in {text}");
        }
    }
}
