//! Reasons that are the same but for what they are about: hashes and numbers.

use std::collections::HashMap;

use super::letters::Letter;

/// Length of pattern_lens's prompt hashes.
const HASH: usize = 22;
/// Hexadecimal names from this length on: job ids, commits.
const HEX: usize = 16;

/// The first line of a reason with each hash as `HASH` and each number as `N`.
pub fn normalised(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    let mut text = String::new();
    let mut rest = line;
    while !rest.is_empty() {
        let word = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
        let (head, tail) = rest.split_at(word);
        push_word(&mut text, head);
        let between = tail.find(is_word).unwrap_or(tail.len());
        text.push_str(&tail[..between]);
        rest = &tail[between..];
    }
    text
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_')
}

fn push_word(text: &mut String, word: &str) {
    let inner = word.get(1..).unwrap_or_default();
    let mixed = inner.bytes().any(|b| b.is_ascii_uppercase()) && word.bytes().any(|b| b.is_ascii_lowercase());
    let hex = word.len() >= HEX && word.bytes().all(|b| b.is_ascii_hexdigit());
    if hex || (word.len() == HASH && mixed) {
        text.push_str("HASH");
        return;
    }
    let mut in_number = false;
    for c in word.chars() {
        if !c.is_ascii_digit() {
            text.push(c);
        } else if !in_number {
            text.push('N');
        }
        in_number = c.is_ascii_digit();
    }
}

/// How many letters there are of each reason, most first.
pub fn grouped(letters: &[Letter]) -> Vec<(String, usize)> {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for letter in letters {
        *counts.entry(normalised(&letter.reason)).or_default() += 1;
    }
    let mut groups: Vec<_> = counts.into_iter().collect();
    groups.sort_by(|(a, many), (b, more)| more.cmp(many).then_with(|| a.cmp(b)));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead::letters::tests::letter;

    #[test]
    fn equal_reasons_about_different_things_are_one() {
        for (reason, normal) in [
            ("prompt C7p4x9-iwFxWSKCb8kbLfQ: 2049 tokens are more", "prompt HASH: N tokens are more"),
            (
                "could not write /data/gpt2/prompts/bNNVbesNpUvKBgtMOUeYOQ/prompt.json: full\nsecond line",
                "could not write /data/gptN/prompts/HASH/prompt.json: full",
            ),
            ("job 0123456789abcdef0123456789abcdef on gpu17", "job HASH on gpuN"),
            ("took 1.5s, twice-over-and-over-now", "took N.Ns, twice-over-and-over-now"),
            ("", ""),
            ("é 7 ☃", "é N ☃"),
        ] {
            assert_eq!(normalised(reason), normal);
        }
        let letters: Vec<_> = [("a", "layer 3 broke"), ("b", "other"), ("c", "layer 12 broke")]
            .map(|(text, reason)| Letter::of(&letter("r", "gpt2", text, reason), None))
            .into();
        assert_eq!(grouped(&letters), [("layer N broke".to_owned(), 2), ("other".to_owned(), 1)]);
    }
}
