//! How the prompts of a batch lie in the rows of the forward pass.
//!
//! Everything but attention works row by row on `[rows, d_model]`, whatever prompt a row belongs to.
//! Attention works on groups of prompts padded to one length. On the CPU every prompt is its own group, so
//! no row is padding; on a GPU a batch is one group, so that one kernel does it all, and lengths are rounded up to
//! few sizes, so that kernels are compiled and tuned for few shapes.

use std::ops::Range;

/// How prompts are laid into rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// Every prompt a group of its own, in passes of at most so many rows.
    Unpadded {
        /// Rows of a pass; a longer prompt still goes, alone.
        max_rows: usize,
    },
    /// The whole batch one group, padded to a size of [`bucket`].
    Padded {
        /// The most tokens a prompt of this model has: no need to pad beyond.
        n_ctx: usize,
    },
}

impl Packing {
    /// The passes of a batch whose prompts have these lengths; prompts `beyond` so many tokens are long.
    pub(super) fn passes(self, lengths: &[usize], beyond: Option<usize>) -> Vec<Vec<Group>> {
        let is_long = |seq: usize| beyond.is_some_and(|beyond| seq > beyond);
        match self {
            Packing::Unpadded { max_rows } => unpadded(lengths, max_rows, is_long),
            Packing::Padded { n_ctx } => padded(lengths, n_ctx, is_long),
        }
    }
}

/// Some prompts, one after the other, each taking `seq` rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Their first row.
    pub(super) start: usize,
    /// The prompts, as indices into the batch.
    pub(super) prompts: Range<usize>,
    /// Rows each takes, padding included.
    pub(super) seq: usize,
    /// Whether the prompts are longer than the model's rotary positions go unstretched.
    pub(super) long: bool,
}

impl Group {
    /// How many prompts.
    pub(super) fn batch(&self) -> usize {
        self.prompts.len()
    }

    /// The rows it takes.
    pub(super) fn rows(&self) -> Range<usize> {
        self.start..self.start + self.batch() * self.seq
    }
}

/// Every prompt a group of its own, cut into passes of at most `max_rows` rows (one prompt at least).
fn unpadded(lengths: &[usize], max_rows: usize, is_long: impl Fn(usize) -> bool) -> Vec<Vec<Group>> {
    let mut passes: Vec<Vec<Group>> = Vec::new();
    let mut rows = usize::MAX;
    for (prompt, &seq) in lengths.iter().enumerate() {
        if rows.saturating_add(seq) > max_rows {
            passes.push(Vec::new());
            rows = 0;
        }
        let group = Group { start: rows, prompts: prompt..prompt + 1, seq, long: is_long(seq) };
        passes.last_mut().expect("pushed above").push(group);
        rows += seq;
    }
    passes
}

/// The tokens a prompt of `n` is padded to: the next of 32, 64, 96, 128, 192, 256, 384, 512 and so on (two sizes an
/// octave, all multiples of 32), at most `n_ctx`.
pub(super) fn bucket(n: usize, n_ctx: usize) -> usize {
    let octave = n.next_power_of_two().max(32);
    let between = octave / 4 * 3;
    let padded = if n <= between && between.is_multiple_of(32) { between } else { octave };
    padded.min(n_ctx).max(n)
}

/// All prompts in one pass and one group, padded to the longest's bucket; neighbours of which one is long and one is
/// not part into groups.
fn padded(lengths: &[usize], n_ctx: usize, is_long: impl Fn(usize) -> bool) -> Vec<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    for alike in lengths.chunk_by(|a, b| is_long(*a) == is_long(*b)) {
        let (start, first) = groups.last().map_or((0, 0), |group| (group.rows().end, group.prompts.end));
        let longest = alike.iter().copied().max().unwrap_or(0);
        let (prompts, seq) = (first..first + alike.len(), bucket(longest, n_ctx));
        groups.push(Group { start, prompts, seq, long: is_long(longest) });
    }
    if groups.is_empty() { Vec::new() } else { vec![groups] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpadded_prompts_fill_passes_in_order() {
        let passes = Packing::Unpadded { max_rows: 10 }.passes(&[5, 4, 3, 20, 1], None);
        let shape: Vec<Vec<(usize, usize)>> =
            passes.iter().map(|pass| pass.iter().map(|group| (group.start, group.seq)).collect()).collect();
        assert_eq!(shape, [vec![(0, 5), (5, 4)], vec![(0, 3)], vec![(0, 20)], vec![(0, 1)]]);
        assert_eq!(passes[3][0].prompts, 4..5);
    }

    #[test]
    fn padded_prompts_take_the_longest_ones_rows() {
        let passes = Packing::Padded { n_ctx: 5 }.passes(&[5, 2], None);
        assert_eq!(passes, [vec![Group { start: 0, prompts: 0..2, seq: 5, long: false }]]);
        assert_eq!(passes[0][0].rows(), 0..10);
        assert!(Packing::Padded { n_ctx: 5 }.passes(&[], None).is_empty());
    }

    #[test]
    fn lengths_are_rounded_up_to_few_sizes() {
        let mut sizes: Vec<usize> = (1..=1000).map(|n| bucket(n, 1000)).collect();
        assert!(sizes.iter().zip(1..).all(|(size, n)| *size >= n && (n < 64 || *size < n + n / 2 + 2)));
        sizes.dedup();
        assert_eq!(sizes, [32, 64, 96, 128, 192, 256, 384, 512, 768, 1000]);
        assert_eq!(bucket(7, 7), 7, "a model of a short context is not padded beyond it");
    }

    #[test]
    fn long_prompts_are_not_padded_with_short_ones() {
        let passes = Packing::Padded { n_ctx: 40 }.passes(&[39, 38, 4, 3], Some(36));
        let groups = &passes[0];
        assert_eq!((groups[0].rows(), groups[0].long), (0..80, true));
        assert_eq!((groups[1].rows(), groups[1].long, groups[1].prompts.clone()), (80..144, false, 2..4));
    }
}
