//! What a user may have meant.

/// The known name nearest to `typed`, if any is near enough to be meant.
pub(super) fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, best) = known.into_iter().map(|name| (distance(typed, name), name)).min()?;
    (distance <= 1 + typed.chars().count() / 4).then_some(best)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_enough_is_meant() {
        let known = ["run.batch_size", "run.batch_memory", "hub.offline"];
        assert_eq!(nearest("run.batchsize", known), Some("run.batch_size"));
        assert_eq!(nearest("hub.ofline", known), Some("hub.offline"));
        assert_eq!(nearest("run.colour", known), None);
        assert_eq!((distance("kitten", "sitting"), distance("", "abc"), distance("same", "same")), (3, 3, 0));
    }
}
