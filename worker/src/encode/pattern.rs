//! One layer's patterns of one prompt, wherever they lie in memory.

/// Patterns of shape `[n_heads, n (query), n (key)]`, borrowed.
///
/// Rows may lie apart, as they do in a batch padded on the right, or be packed without the keys a
/// causal mask hides.
#[derive(Clone, Copy, Debug)]
pub struct PatternView<'a> {
    values: &'a [f32],
    n_heads: usize,
    n: usize,
    layout: Layout,
}

/// Where a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Every row has `stride` values, every head `stride` rows; the first `n` of each count.
    Square { stride: usize },
    /// Row `q` has `q + 1` values, and nothing lies between rows or heads.
    Packed,
}

impl<'a> PatternView<'a> {
    /// An array of exactly this shape, in C order.
    ///
    /// # Panics
    /// If `values` has another length.
    pub fn new(values: &'a [f32], n_heads: usize, n: usize) -> Self {
        Self::padded(values, n_heads, n, n)
    }

    /// The first `n` queries and keys of heads padded to `padded` of each: `values` is one prompt of a
    /// batch, `[n_heads, padded, padded]`.
    ///
    /// # Panics
    /// If `values` has another length or `n` is greater than `padded`.
    pub fn padded(values: &'a [f32], n_heads: usize, n: usize, padded: usize) -> Self {
        assert!(n <= padded, "{n} of {padded} positions");
        assert_eq!(values.len(), n_heads * padded * padded, "shape ({n_heads}, {padded}, {padded})");
        PatternView { values, n_heads, n, layout: Layout::Square { stride: padded } }
    }

    /// Only what a causal mask leaves: row `q` of each head has `q + 1` values, one row after the other.
    /// Zeros are stored in place of the rest.
    ///
    /// # Panics
    /// If `values` has another length than `n_heads * n * (n + 1) / 2`.
    pub fn packed_causal(values: &'a [f32], n_heads: usize, n: usize) -> Self {
        assert_eq!(values.len(), n_heads * n * (n + 1) / 2, "packed ({n_heads}, {n}, {n})");
        PatternView { values, n_heads, n, layout: Layout::Packed }
    }

    /// Query heads.
    pub fn n_heads(&self) -> usize {
        self.n_heads
    }

    /// Sequence length.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The values stored: `n_heads * n * n`.
    pub fn len(&self) -> usize {
        self.n_heads * self.n * self.n
    }

    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole array, where it lies in one piece as it is stored.
    pub(super) fn contiguous(&self) -> Option<&'a [f32]> {
        (self.layout == Layout::Square { stride: self.n }).then_some(self.values)
    }

    /// The values of row `row` (counted through all heads) that may not be zero; zeros follow up to `n`.
    pub(super) fn row(&self, row: usize) -> &'a [f32] {
        let (head, query) = (row / self.n, row % self.n);
        match self.layout {
            Layout::Square { stride } => &self.values[(head * stride + query) * stride..][..self.n],
            Layout::Packed => {
                let before = head * (self.n * (self.n + 1) / 2) + query * (query + 1) / 2;
                &self.values[before..][..query + 1]
            }
        }
    }
}
