//! Reasons that are the same but for what they are about: hashes and numbers.

use std::collections::HashMap;

use super::letters::Letter;

/// Length of pattern_lens's prompt hashes.
const HASH: usize = 22;
/// Hexadecimal names from this length on: job ids, commits.
const HEX: usize = 16;

/// A line's words, each with what stands between it and the next; the first may be empty.
fn words(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = line;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (word, tail) = rest.split_at(rest.find(|c: char| !is_word(c)).unwrap_or(rest.len()));
        let (between, next) = tail.split_at(tail.find(is_word).unwrap_or(tail.len()));
        rest = next;
        Some((word, between))
    })
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_')
}

fn first_line(reason: &str) -> &str {
    reason.lines().next().unwrap_or_default()
}

/// The first line of a reason with each hash as `HASH` and each number as `N`.
pub fn normalised(reason: &str) -> String {
    let mut text = String::new();
    for (word, between) in words(first_line(reason)) {
        push_word(&mut text, word);
        text.push_str(between);
    }
    text
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

/// Letters that died of the same.
struct Group<'a> {
    letters: usize,
    /// The words of the first reason, what follows each, and whether another reason has another word there.
    words: Vec<(&'a str, &'a str, bool)>,
}

impl<'a> Group<'a> {
    fn new(line: &'a str) -> Group<'a> {
        Group { letters: 0, words: words(line).map(|(word, between)| (word, between, false)).collect() }
    }

    fn take(&mut self, line: &str) {
        self.letters += 1;
        for ((word, _, differs), (other, _)) in self.words.iter_mut().zip(words(line)) {
            *differs |= *word != other;
        }
    }

    fn shown(&self) -> String {
        let mut text = String::new();
        for &(word, between, differs) in &self.words {
            if differs {
                push_word(&mut text, word)
            } else {
                text.push_str(word)
            }
            text.push_str(between);
        }
        text
    }
}

/// How many letters there are of each reason, most first. What is not the same in all of them stands as `HASH` or `N`.
pub fn grouped(letters: &[Letter]) -> Vec<(String, usize)> {
    let mut groups: HashMap<String, Group> = HashMap::new();
    for letter in letters {
        let line = first_line(&letter.reason);
        groups.entry(normalised(line)).or_insert_with(|| Group::new(line)).take(line);
    }
    let mut groups: Vec<_> = groups.values().map(|group| (group.shown(), group.letters)).collect();
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
    }

    #[test]
    fn what_all_letters_of_a_reason_share_stays_readable() {
        let letters: Vec<_> = [
            ("a", "layer 3 of /data2/gpt2 broke"),
            ("b", "card 7 is gone"),
            ("c", "layer 12 of /data2/gpt2 broke\nand more"),
        ]
        .map(|(text, reason)| Letter::of(&letter("r", "gpt2", text, reason), None))
        .into();
        let groups = [("layer N of /data2/gpt2 broke".to_owned(), 2), ("card 7 is gone".to_owned(), 1)];
        assert_eq!(grouped(&letters), groups);
    }
}
