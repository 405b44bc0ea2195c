use proptest::prelude::*;

use super::*;

const SHAPE: PatternShape = PatternShape { n_layers: 2, n_heads: 3 };

fn hashes(count: usize) -> Vec<PromptHash> {
    (0..count).map(|at| PromptHash::of(&at.to_string())).collect()
}

fn limits(batch_size: usize, batch_bytes: u64, max_message_bytes: Option<usize>) -> PlanLimits {
    PlanLimits { batch_size, batch_bytes, max_message_bytes }
}

#[test]
fn the_longest_come_first_and_a_batch_is_full_at_its_size() {
    let hashes = hashes(5);
    let items: Vec<_> = [3, 9, 1, 7, 5]
        .iter()
        .zip(&hashes)
        .map(|(&n, hash)| PlanItem { hash, n, message_bytes: 10 })
        .collect();
    let batches = plan(&items, SHAPE, limits(2, u64::MAX, None));
    let members: Vec<_> = batches.iter().map(|batch| batch.members.clone()).collect();
    assert_eq!(members, [vec![1, 3], vec![4, 0], vec![2]]);
    assert_eq!(batches[0].n, 9);
    assert_eq!(batches[0].pattern_bytes, 2 * 3 * 2 * 9 * 9 * 4);
    assert_eq!(batches[0].message_bytes, 20);
}

#[test]
fn a_prompt_over_every_bound_goes_alone() {
    let hashes = hashes(3);
    let items: Vec<_> = hashes.iter().map(|hash| PlanItem { hash, n: 100, message_bytes: 100 }).collect();
    for limits in [limits(32, 1, None), limits(32, u64::MAX, Some(99)), limits(1, u64::MAX, None)] {
        assert_eq!(plan(&items, SHAPE, limits).len(), 3, "{limits:?}");
    }
}

#[test]
fn no_prompts_make_no_batches() {
    assert!(plan(&[], SHAPE, limits(32, 0, None)).is_empty());
}

#[test]
fn thirty_two_prompts_of_910_tokens_on_gpt2_are_fifteen_gigabytes() {
    let gpt2 = PatternShape { n_layers: 12, n_heads: 12 };
    assert_eq!(gpt2.pattern_bytes(32, 910), 15_263_539_200);
    assert_eq!(gpt2.pattern_bytes(usize::MAX, usize::MAX), u64::MAX);
}

proptest! {
    #[test]
    fn batches_hold_every_prompt_once_within_bounds_longest_first(
        sizes in prop::collection::vec((1usize..200, 1usize..5000), 0..120),
        batch_size in 1usize..40,
        batch_bytes in 0u64..20_000_000,
        max_message_bytes in prop::option::of(0usize..40_000),
        rotation in 0usize..120,
    ) {
        let hashes = hashes(sizes.len());
        let items: Vec<_> = sizes.iter().zip(&hashes)
            .map(|(&(n, message_bytes), hash)| PlanItem { hash, n, message_bytes }).collect();
        let limits = limits(batch_size, batch_bytes, max_message_bytes);
        let batches = plan(&items, SHAPE, limits);

        let run: Vec<usize> = batches.iter().flat_map(|batch| batch.members.iter().copied()).collect();
        let mut once = run.clone();
        once.sort_unstable();
        prop_assert!(once.into_iter().eq(0..items.len()));
        for pair in run.windows(2) {
            let [a, b] = [items[pair[0]], items[pair[1]]];
            prop_assert!(a.n > b.n || (a.n == b.n && a.hash < b.hash));
        }
        for batch in &batches {
            prop_assert!(batch.members.len() <= batch_size);
            prop_assert_eq!(batch.n, batch.members.iter().map(|&at| items[at].n).max().unwrap());
            prop_assert_eq!(batch.pattern_bytes, SHAPE.pattern_bytes(batch.members.len(), batch.n));
            let message: usize = batch.members.iter().map(|&at| items[at].message_bytes).sum();
            prop_assert_eq!(batch.message_bytes, message);
            if batch.members.len() > 1 {
                prop_assert!(batch.pattern_bytes <= batch_bytes);
                prop_assert!(max_message_bytes.is_none_or(|max| message <= max));
            }
        }
        // No batch ends before it must.
        for pair in batches.windows(2) {
            let (full, next) = (&pair[0], items[pair[1].members[0]]);
            let grown = SHAPE.pattern_bytes(full.members.len() + 1, full.n);
            let message = full.message_bytes + next.message_bytes;
            prop_assert!(full.members.len() == batch_size || grown > batch_bytes
                || max_message_bytes.is_some_and(|max| message > max));
        }

        // The order in which prompts are given changes nothing.
        let mut turned = items.clone();
        turned.rotate_left(rotation % items.len().max(1));
        let again = plan(&turned, SHAPE, limits);
        let names = |items: &[PlanItem<'_>], batches: &[Batch]| -> Vec<Vec<String>> {
            batches.iter().map(|batch| batch.members.iter().map(|&at| items[at].hash.to_string()).collect()).collect()
        };
        prop_assert_eq!(names(&items, &batches), names(&turned, &again));
    }
}
