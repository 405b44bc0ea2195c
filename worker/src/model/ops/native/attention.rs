//! Causal attention of one head of one prompt: scores, softmax, and the values mixed by it.
//!
//! Only the part under the diagonal (and inside the window) is computed; the rest of the pattern is written
//! as zeros.

use super::{
    super::{Heads, ScoreRule},
    isa::{Isa, for_each_isa},
    kernel::{PANEL, RowLayout, Tile, multiply, strided_tile_rows},
    math,
    norm::sum,
};

/// One head's part of the packed rows: `[seq, total]`, of which queries, keys and values are columns.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    /// The prompt's rows.
    pub(super) rows: &'a [f32],
    /// Width of a row.
    pub(super) total: usize,
    /// How a row divides into heads.
    pub(super) heads: Heads,
    /// Which query head.
    pub(super) index: usize,
}

/// Buffers a thread uses again.
#[derive(Default)]
pub(super) struct Scratch {
    panels: Vec<f32>,
}

impl Head<'_> {
    fn seq(&self) -> usize {
        self.rows.len() / self.total
    }

    fn query(&self) -> usize {
        self.index * self.heads.width
    }

    /// The key head this query head reads: each serves a run of query heads.
    fn key_head(&self) -> usize {
        self.index / (self.heads.query / self.heads.key)
    }

    fn key(&self) -> usize {
        (self.heads.query + self.key_head()) * self.heads.width
    }

    fn value(&self) -> usize {
        (self.heads.query + self.heads.key + self.key_head()) * self.heads.width
    }

    /// The pattern `[seq, seq]` of this head.
    pub(super) fn pattern(&self, isa: Isa, rule: &ScoreRule, scratch: &mut Scratch, pattern: &mut [f32]) {
        let (seq, width) = (self.seq(), self.heads.width);
        assert_eq!(pattern.len(), seq * seq);
        // Keys as panels of the transposed: [panel][width][PANEL].
        let panels = &mut scratch.panels;
        panels.clear();
        panels.resize(seq.div_ceil(PANEL) * width * PANEL, 0.0);
        for (row, keys) in self.rows.chunks_exact(self.total).enumerate() {
            let panel = &mut panels[row / PANEL * width * PANEL..];
            for (p, value) in keys[self.key()..self.key() + width].iter().enumerate() {
                panel[p * PANEL + row % PANEL] = *value;
            }
        }
        for (first, count) in blocks(seq, strided_tile_rows(isa)) {
            let visible = rule.first_key(first)..first + count;
            for panel in visible.start / PANEL..visible.end.div_ceil(PANEL) {
                // SAFETY: the tile's rows and columns lie within the pattern, its A within the prompt's rows (the
                // last query's columns included), its B within the panels.
                unsafe {
                    let tile = Tile {
                        k: width,
                        a: self.rows.as_ptr().add(first * self.total + self.query()),
                        a_layout: RowLayout::Strided(self.total),
                        b: panels.as_ptr().add(panel * width * PANEL),
                        c: pattern.as_mut_ptr().add(first * seq + panel * PANEL),
                        c_row: seq,
                        columns: (seq - panel * PANEL).min(PANEL),
                        add: false,
                    };
                    multiply(isa, count, tile);
                }
            }
            for query in first..first + count {
                let row = &mut pattern[query * seq..(query + 1) * seq];
                softmax_row(isa, row, query, rule, rule.slopes.as_ref().map(|slopes| slopes[self.index]));
            }
        }
    }

    /// `pattern` times the values, to `[seq, ..]` at `out` with rows `out_row` apart.
    ///
    /// # Safety
    /// `out` may be written for `seq` rows of a head's width, and nobody else touches those meanwhile.
    pub(super) unsafe fn mix(
        &self,
        isa: Isa,
        rule: &ScoreRule,
        scratch: &mut Scratch,
        pattern: &[f32],
        out: *mut f32,
        out_row: usize,
    ) {
        let (seq, width) = (self.seq(), self.heads.width);
        // Values as panels: [panel][seq][PANEL].
        let panels = &mut scratch.panels;
        panels.clear();
        panels.resize(width.div_ceil(PANEL) * seq * PANEL, 0.0);
        for panel in 0..width.div_ceil(PANEL) {
            let columns = panel * PANEL..width.min((panel + 1) * PANEL);
            let to = &mut panels[panel * seq * PANEL..(panel + 1) * seq * PANEL];
            for (row, to) in self.rows.chunks_exact(self.total).zip(to.chunks_exact_mut(PANEL)) {
                to[..columns.len()].copy_from_slice(&row[self.value()..][columns.clone()]);
            }
        }
        for (first, count) in blocks(seq, strided_tile_rows(isa)) {
            let visible = rule.first_key(first)..first + count;
            for panel in 0..width.div_ceil(PANEL) {
                // SAFETY: as in `pattern`; C is the caller's.
                unsafe {
                    let tile = Tile {
                        k: visible.len(),
                        a: pattern.as_ptr().add(first * seq + visible.start),
                        a_layout: RowLayout::Strided(seq),
                        b: panels.as_ptr().add((panel * seq + visible.start) * PANEL),
                        c: out.add(first * out_row + panel * PANEL),
                        c_row: out_row,
                        columns: (width - panel * PANEL).min(PANEL),
                        add: false,
                    };
                    multiply(isa, count, tile);
                }
            }
        }
    }
}

impl ScoreRule {
    /// The first key that the query at a position sees.
    pub(super) fn first_key(&self, query: usize) -> usize {
        self.window.map_or(0, |window| (query + 1).saturating_sub(window))
    }
}

/// `(first row, rows)` of blocks that cover `rows`, each of at most `most`.
fn blocks(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(most).map(move |first| (first, most.min(rows - first)))
}

for_each_isa! {
    /// Raw products `q . k` of one query to its row of the pattern.
    fn softmax_row(row: &mut [f32], query: usize, rule: &ScoreRule, slope: Option<f32>) => softmax_body
}

#[inline(always)]
fn softmax_body<const FUSED: bool>(row: &mut [f32], query: usize, rule: &ScoreRule, slope: Option<f32>) {
    let visible = rule.first_key(query)..query + 1;
    row[..visible.start].fill(0.0);
    row[visible.end..].fill(0.0);
    let first = visible.start;
    let scores = &mut row[visible];
    // Without cap and slopes the scale waits: it is positive, so the largest product is the largest score.
    let mut scale = rule.scale;
    if rule.softcap.is_some() || slope.is_some() {
        for score in scores.iter_mut() {
            *score *= scale;
        }
        scale = 1.0;
    }
    if let Some(cap) = rule.softcap {
        let inverse = 1.0 / cap;
        for score in scores.iter_mut() {
            *score = math::tanh::<FUSED>(*score * inverse) * cap;
        }
    }
    if let Some(slope) = slope {
        // As far from the query, not from the start: the same pattern, and smaller numbers to round.
        for (at, score) in scores.iter_mut().enumerate() {
            *score = math::fma::<FUSED>(slope, (first + at) as f32 - query as f32, *score);
        }
    }
    let largest = largest(scores);
    for score in scores.iter_mut() {
        *score = math::exp::<FUSED>((*score - largest) * scale);
    }
    let inverse = 1.0 / sum::<FUSED>(scores, |value| value);
    for score in scores.iter_mut() {
        *score *= inverse;
    }
}

/// The largest value, in 32 parts for the compiler to vectorize.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    const PARTS: usize = 32;
    let mut parts = [f32::NEG_INFINITY; PARTS];
    let (chunks, rest) = values.as_chunks::<PARTS>();
    for chunk in chunks {
        for (part, value) in parts.iter_mut().zip(chunk) {
            *part = if *value > *part { *value } else { *part };
        }
    }
    parts
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |largest, value| if *value > largest { *value } else { largest })
}
