//! Rows times a weight that was packed once: `[rows, k] x [k, n]`, on all cores.
//!
//! Why not burn's matmul: weights never change, so packing them into panels at load saves it on every call, and the
//! bias, the nonlinearity and the residual sum are applied to a tile while it is in the cache.

use common::model::spec::Activation;
use rayon::prelude::*;

use super::{
    isa::{Isa, for_each_isa},
    kernel::{PANEL, RowLayout, Tile, multiply, tile_rows},
    math,
};

/// Terms summed before a tile goes back to memory: a block of A then fits the first cache, and long sums are
/// made of shorter ones, which rounds less.
const DEPTH: usize = 512;

/// Rows a task takes: enough that a panel, read from memory once per task, is read little.
const TASK_ROWS: usize = 256;

/// Packs `[k, n]` into panels: `[n / PANEL][k][PANEL]`, the last one padded with zeros.
pub(super) fn pack_panels(weight: &[f32], k: usize, n: usize) -> Vec<f32> {
    let mut packed = vec![0.0; n.div_ceil(PANEL) * k * PANEL];
    packed.par_chunks_mut(k * PANEL).enumerate().for_each(|(panel, out)| {
        let columns = panel * PANEL..n.min((panel + 1) * PANEL);
        for (p, out) in out.chunks_exact_mut(PANEL).enumerate() {
            out[..columns.len()].copy_from_slice(&weight[p * n..][columns.clone()]);
        }
    });
    packed
}

/// What becomes of each sum.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    /// Added, one a column.
    pub(super) bias: Option<&'a [f32]>,
    /// Applied last.
    pub(super) activation: Option<Activation>,
}

/// `finish(x w)`, or `finish(onto + x w)` in `onto`'s place: `x` is `[rows, k]`, `panels` a packed `[k, n]`.
pub(super) fn gemm(
    isa: Isa,
    x: &[f32],
    panels: &[f32],
    [rows, k, n]: [usize; 3],
    onto: Option<Vec<f32>>,
    finish: Finish<'_>,
) -> Vec<f32> {
    assert_eq!(x.len(), rows * k);
    assert_eq!(panels.len(), n.div_ceil(PANEL) * k * PANEL);
    let add = onto.is_some();
    // Not zeroed where it is new: every tile is written before it is read.
    let mut result = onto.unwrap_or_else(|| Vec::with_capacity(rows * n));
    assert!(result.capacity() >= rows * n && (!add || result.len() == rows * n));
    let blocks = Blocks::new(rows, tile_rows(isa));
    let packed = pack_rows(x, k, &blocks);
    let out = Out(result.as_mut_ptr());
    let (panel_count, groups) = (n.div_ceil(PANEL), rows.div_ceil(TASK_ROWS).max(1));
    let per_group = blocks.count.div_ceil(groups);
    (0..panel_count * groups).into_par_iter().with_max_len(1).for_each(|task| {
        let (panel, group) = (task / groups, task % groups);
        let columns = (n - panel * PANEL).min(PANEL);
        let bias = finish.bias.map(|bias| &bias[panel * PANEL..panel * PANEL + columns]);
        let range = group * per_group..blocks.count.min((group + 1) * per_group);
        for depth in (0..k).step_by(DEPTH) {
            let terms = (k - depth).min(DEPTH);
            let last = depth + terms == k;
            for block in range.clone() {
                let (start, count) = blocks.rows(block);
                // SAFETY: the tile lies within the result, whose size was checked; tasks share no tile; the packed block
                // and the panel hold `terms` terms from `depth` on.
                unsafe {
                    let c = out.at(start * n + panel * PANEL);
                    let tile = Tile {
                        k: terms,
                        a: packed.as_ptr().add(start * k + depth * count),
                        a_layout: RowLayout::Packed,
                        b: panels.as_ptr().add((panel * k + depth) * PANEL),
                        c,
                        c_row: n,
                        columns,
                        add: add || depth > 0,
                    };
                    multiply(isa, count, tile);
                    if last && (bias.is_some() || finish.activation.is_some()) {
                        for row in 0..count {
                            let row = std::slice::from_raw_parts_mut(c.add(row * n), columns);
                            finish_row(isa, row, bias, finish.activation);
                        }
                    }
                }
            }
        }
    });
    // SAFETY: the tasks' tiles cover all rows and columns, and each was written.
    unsafe { result.set_len(rows * n) };
    result
}

for_each_isa! {
    /// Bias and nonlinearity on a stretch of a row.
    fn finish_row(row: &mut [f32], bias: Option<&[f32]>, activation: Option<Activation>) => finish_row_body
}

#[inline(always)]
fn finish_row_body<const FUSED: bool>(row: &mut [f32], bias: Option<&[f32]>, activation: Option<Activation>) {
    if let Some(bias) = bias {
        row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
    }
    if let Some(activation) = activation {
        math::activate::<FUSED>(row, activation);
    }
}

/// Rows cut into blocks of nearly equal size, none above `most`.
struct Blocks {
    count: usize,
    rows: usize,
}

impl Blocks {
    fn new(rows: usize, most: usize) -> Self {
        Blocks { count: rows.div_ceil(most), rows }
    }

    /// A block's first row and how many it has.
    fn rows(&self, block: usize) -> (usize, usize) {
        let start = block * self.rows / self.count;
        (start, (block + 1) * self.rows / self.count - start)
    }
}

/// Blocks of rows of `x`, each turned to `[k][rows of the block]`.
fn pack_rows(x: &[f32], k: usize, blocks: &Blocks) -> Vec<f32> {
    let mut packed = Vec::with_capacity(x.len());
    let out = Out(packed.as_mut_ptr());
    (0..blocks.count).into_par_iter().with_min_len(4).for_each(|block| {
        let (start, count) = blocks.rows(block);
        // In steps of 16 terms, so that what is written stays in the first cache.
        for from in (0..k).step_by(16) {
            let to = k.min(from + 16);
            for row in 0..count {
                let values = &x[(start + row) * k + from..(start + row) * k + to];
                for (term, value) in values.iter().enumerate() {
                    // SAFETY: blocks are disjoint parts of the allocation, `x.len()` long in all.
                    unsafe { *out.at(start * k + (from + term) * count + row) = *value };
                }
            }
        }
    });
    // SAFETY: every block wrote its `rows * k` values, and blocks cover all rows.
    unsafe { packed.set_len(x.len()) };
    packed
}

/// A buffer that tasks write disjoint parts of.
#[derive(Clone, Copy)]
pub(super) struct Out(pub(super) *mut f32);

// SAFETY: whoever calls `at` and writes there vouches that no two tasks touch the same value.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    /// # Safety
    /// `offset` is within the buffer.
    pub(super) unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(offset) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers without a pattern, in -1 to 1.
    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn every_shape_on_every_instruction_set_equals_the_sums_in_f64() {
        for isa in Isa::available() {
            for [rows, k, n] in [
                [1, 1, 1],
                [3, 5, 7],
                [14, 16, 32],
                [15, 33, 31],
                [29, 700, 65],
                [300, 20, 40],
                [5, 1100, 33],
            ] {
                let (x, w) = (numbers(rows * k, 1), numbers(k * n, 2));
                let (bias, old) = (numbers(n, 3), numbers(rows * n, 4));
                let panels = pack_panels(&w, k, n);
                for add in [false, true] {
                    let finish = Finish { bias: Some(&bias), activation: Some(Activation::Relu) };
                    let out = gemm(isa, &x, &panels, [rows, k, n], add.then(|| old.clone()), finish);
                    for i in 0..rows {
                        for j in 0..n {
                            let terms = (0..k).map(|p| f64::from(x[i * k + p]) * f64::from(w[p * n + j]));
                            let old = if add { f64::from(old[i * n + j]) } else { 0.0 };
                            let exact = (terms.sum::<f64>() + old + f64::from(bias[j])).max(0.0);
                            let off = (f64::from(out[i * n + j]) - exact).abs();
                            assert!(
                                off < 1e-6 * (k as f64).sqrt().max(2.0),
                                "{isa:?} {rows}x{k}x{n}: {off:e}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_around_it() {
        let (k, n) = (600, 70);
        let panels = pack_panels(&numbers(k * n, 1), k, n);
        let x = numbers(50 * k, 2);
        let run = |x: &[f32]| {
            let finish = Finish { bias: None, activation: Some(Activation::GeluTanh) };
            gemm(Isa::best(), x, &panels, [x.len() / k, k, n], None, finish)
        };
        assert_eq!(run(&x)[30 * n..31 * n], run(&x[30 * k..31 * k]));
    }
}
