//! The innermost product: a few rows of A times a panel of B, in registers.
//!
//! A panel holds [`PANEL`] columns of B, `[k][PANEL]`, padded with zeros; see [`super::gemm`] for who packs it.

// The row indexes registers and A alike; the compiler unrolls the loop either way.
#![allow(clippy::needless_range_loop)]

use super::isa::Isa;

/// Columns of a panel.
pub(super) const PANEL: usize = 32;

/// What one call computes: `c = a b` or `c += a b` on a tile of C.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Length of the sums.
    pub(super) k: usize,
    /// The tile's rows of A.
    pub(super) a: *const f32,
    /// How they lie.
    pub(super) a_layout: RowLayout,
    /// The panel, `[k][PANEL]`.
    pub(super) b: *const f32,
    /// Row `r`, column `j` of C is at `c + r * c_row + j`.
    pub(super) c: *mut f32,
    /// From row to row of C.
    pub(super) c_row: usize,
    /// Columns of the tile, at most [`PANEL`].
    pub(super) columns: usize,
    /// Whether C's old values are added.
    pub(super) add: bool,
}

/// How a tile's rows of A lie.
#[derive(Clone, Copy)]
pub(super) enum RowLayout {
    /// Term by term, `[k][rows]`: one address serves all rows.
    Packed,
    /// Row by row, so many values apart; at most [`strided_tile_rows`] rows.
    Strided(usize),
}

/// Rows of a tile that serve an instruction set best.
pub(super) fn tile_rows(isa: Isa) -> usize {
    match isa {
        // 14 rows of two registers, two for B and one for A: 31 of 32.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => 14,
        // 6 rows of two registers, two for B and one for A: 15 of 16.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => 6,
        Isa::Portable => 4,
    }
}

/// Rows of a tile when A is read in place: each row takes an address register.
pub(super) fn strided_tile_rows(isa: Isa) -> usize {
    tile_rows(isa).min(7)
}

/// Computes a tile of `rows` rows, at most 14.
///
/// # Safety
/// The machine has `isa`. `tile` describes memory that may be read (A, B) and written (C) for `rows` rows, and nobody
/// else touches that part of C meanwhile.
pub(super) unsafe fn multiply(isa: Isa, rows: usize, tile: Tile) {
    macro_rules! dispatch {
        ($kernel:ident, packed $($packed:literal)*, strided $($strided:literal)*) => {
            match (tile.a_layout, rows) {
                // SAFETY: the caller's.
                $((RowLayout::Packed, $packed) => unsafe { $kernel::<$packed, true>(tile, 0) },)*
                // SAFETY: the caller's.
                $((RowLayout::Strided(row), $strided) => unsafe { $kernel::<$strided, false>(tile, row) },)*
                _ => unreachable!("a tile of {rows} rows"),
            }
        };
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => dispatch!(avx512, packed 1 2 3 4 5 6 7 8 9 10 11 12 13 14, strided 1 2 3 4 5 6 7),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => dispatch!(avx2, packed 1 2 3 4 5 6, strided 1 2 3 4 5 6),
        Isa::Portable => dispatch!(portable, packed 1 2 3 4, strided 1 2 3 4),
    }
}

/// Where row `r`, term `p` of A is.
#[inline(always)]
fn place<const ROWS: usize, const PACKED: bool>(r: usize, p: usize, a_row: usize) -> usize {
    if PACKED { p * ROWS + r } else { r * a_row + p }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const ROWS: usize, const PACKED: bool>(tile: Tile, a_row: usize) {
    use std::arch::x86_64::*;
    let Tile { k, a, a_layout: _, b, c, c_row, columns, add } = tile;
    // SAFETY: the caller vouches for A, B and C; the masks keep loads and stores of C within its columns.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for p in 0..k {
            let b0 = _mm512_loadu_ps(b.add(p * PANEL));
            let b1 = _mm512_loadu_ps(b.add(p * PANEL + 16));
            for (r, sums) in sums.iter_mut().enumerate() {
                let value = _mm512_set1_ps(*a.add(place::<ROWS, PACKED>(r, p, a_row)));
                sums[0] = _mm512_fmadd_ps(value, b0, sums[0]);
                sums[1] = _mm512_fmadd_ps(value, b1, sums[1]);
            }
        }
        let all = (1u64 << columns) - 1;
        let masks = [all as u16, (all >> 16) as u16];
        for (r, sums) in sums.iter().enumerate() {
            for (half, mask) in masks.into_iter().enumerate() {
                let to = c.add(r * c_row).wrapping_add(half * 16);
                let old = if add { _mm512_maskz_loadu_ps(mask, to) } else { _mm512_setzero_ps() };
                _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(old, sums[half]));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const ROWS: usize, const PACKED: bool>(tile: Tile, a_row: usize) {
    use std::arch::x86_64::*;
    let Tile { k, a, a_layout: _, b, c, c_row, columns, add } = tile;
    // SAFETY: the caller vouches for A, B and C; a tile's edge goes through a buffer.
    unsafe {
        for half in 0..columns.div_ceil(16) {
            let b = b.add(half * 16);
            let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
            for p in 0..k {
                let b0 = _mm256_loadu_ps(b.add(p * PANEL));
                let b1 = _mm256_loadu_ps(b.add(p * PANEL + 8));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let value = _mm256_broadcast_ss(&*a.add(place::<ROWS, PACKED>(r, p, a_row)));
                    sums[0] = _mm256_fmadd_ps(value, b0, sums[0]);
                    sums[1] = _mm256_fmadd_ps(value, b1, sums[1]);
                }
            }
            let width = (columns - half * 16).min(16);
            for (r, sums) in sums.iter().enumerate() {
                let to = c.add(r * c_row + half * 16);
                if width == 16 {
                    for (i, sum) in sums.iter().enumerate() {
                        let to = to.add(i * 8);
                        let old = if add { _mm256_loadu_ps(to) } else { _mm256_setzero_ps() };
                        _mm256_storeu_ps(to, _mm256_add_ps(old, *sum));
                    }
                } else {
                    let mut edge = [0f32; 16];
                    _mm256_storeu_ps(edge.as_mut_ptr(), sums[0]);
                    _mm256_storeu_ps(edge.as_mut_ptr().add(8), sums[1]);
                    store_edge(&edge[..width], to, add);
                }
            }
        }
    }
}

unsafe fn portable<const ROWS: usize, const PACKED: bool>(tile: Tile, a_row: usize) {
    let Tile { k, a, a_layout: _, b, c, c_row, columns, add } = tile;
    // Eight columns at a time: what sixteen registers of four floats hold for four rows.
    const STEP: usize = 8;
    for start in (0..columns).step_by(STEP) {
        let mut sums = [[0f32; STEP]; ROWS];
        for p in 0..k {
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller vouches for A and B; `start + i` stays below PANEL.
                unsafe {
                    let value = *a.add(place::<ROWS, PACKED>(r, p, a_row));
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let product = *b.add(p * PANEL + start + i);
                        *sum = super::math::fma::<{ cfg!(target_arch = "aarch64") }>(value, product, *sum);
                    }
                }
            }
        }
        let width = (columns - start).min(STEP);
        for (r, sums) in sums.iter().enumerate() {
            // SAFETY: within the tile's columns.
            unsafe { store_edge(&sums[..width], c.add(r * c_row + start), add) };
        }
    }
}

/// Writes `sums` to `to`, or adds them to what is there.
///
/// # Safety
/// `to` may be read and written for as many values.
unsafe fn store_edge(sums: &[f32], to: *mut f32, add: bool) {
    for (i, sum) in sums.iter().enumerate() {
        // SAFETY: the caller's.
        unsafe {
            let to = to.add(i);
            let old = if add { *to } else { 0.0 };
            *to = old + sum;
        }
    }
}
