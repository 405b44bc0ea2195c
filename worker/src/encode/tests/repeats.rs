//! Arrays that repeat, which no softmax gives: written exactly, and no larger than by a general deflate.

use common::capture::Dtype;

use super::super::repeats::{self, Repeats};
use super::super::tables::WINDOW;
use super::super::{Compression, Encoder, PatternView, ZlibLevel, runs, values};
use super::{causal, check, noise, packed};

/// A head of `n` by `n`, from what its rows hold: query and key to value.
fn head(n: usize, mut value: impl FnMut(usize, usize) -> f32) -> Vec<f32> {
    (0..n * n).map(|at| if at % n > at / n { 0.0 } else { value(at / n, at % n) }).collect()
}

fn softmax(n: usize, seed: u64) -> Vec<f32> {
    causal(1, n, n, noise(seed))
}

fn uniform(n: usize) -> Vec<f32> {
    head(n, |query, _| 1.0 / (query + 1) as f32)
}

fn one_hot(n: usize, seed: usize) -> Vec<f32> {
    head(n, |query, key| if key == query * seed % (query + 1) { 1.0 } else { 0.0 })
}

fn half_rounded(n: usize, seed: u64) -> Vec<f32> {
    softmax(n, seed).into_iter().map(|value| half::f16::from_f32(value).to_f32()).collect()
}

/// A prompt of the same few tokens over and over, without positions.
fn periodic(n: usize, seed: u64) -> Vec<f32> {
    let mut value = noise(seed);
    let scores: Vec<f32> = (0..16).map(|_| value()).collect();
    head(n, |_, key| scores[key % 16])
}

/// Linear position biases alone, at the slope of one of twelve heads.
fn alibi(n: usize, head_index: usize) -> Vec<f32> {
    let slope = 2f64.powf(-8.0 * (head_index + 1) as f64 / 12.0);
    head(n, |query, key| {
        let sum: f64 = (0..=query).map(|key| (slope * (key as f64 - query as f64)).exp()).sum();
        ((slope * (key as f64 - query as f64)).exp() / sum) as f32
    })
}

/// The same scores for every query.
fn alike(n: usize, seed: u64) -> Vec<f32> {
    let mut value = noise(seed);
    let weights: Vec<f32> = (0..n).map(|_| value()).collect();
    head(n, |query, key| weights[key] / weights[..=query].iter().sum::<f32>())
}

/// All that repeat, and mixtures: several heads each.
fn arrays(n: usize) -> Vec<(&'static str, Vec<Vec<f32>>)> {
    let twelve = |make: &dyn Fn(usize) -> Vec<f32>| (0..12).map(make).collect();
    vec![
        ("uniform", twelve(&|_| uniform(n))),
        ("one-hot", twelve(&|seed| one_hot(n, 7 + seed))),
        ("half-rounded", twelve(&|seed| half_rounded(n, seed as u64))),
        ("periodic", twelve(&|seed| periodic(n, seed as u64))),
        ("alibi", twelve(&|head| alibi(n, head))),
        ("alike", twelve(&|seed| alike(n, seed as u64))),
        ("zeros", twelve(&|_| vec![0.0; n * n])),
        ("one uniform head", twelve(&|head| if head == 5 { uniform(n) } else { softmax(n, head as u64) })),
        (
            "one half-rounded head",
            twelve(&|head| if head == 5 { half_rounded(n, 5) } else { softmax(n, head as u64) }),
        ),
        (
            "all kinds in turn",
            twelve(&|head| match head % 5 {
                0 => softmax(n, head as u64),
                1 => uniform(n),
                2 => one_hot(n, 7 + head),
                3 => half_rounded(n, head as u64),
                _ => periodic(n, head as u64),
            }),
        ),
        ("ends with uniform", twelve(&|head| if head < 6 { softmax(n, head as u64) } else { uniform(n) })),
    ]
}

fn size(heads: &[Vec<f32>], n: usize, compression: Compression, dtype: Dtype) -> usize {
    let view = heads.concat();
    let view = PatternView::new(&view, heads.len(), n);
    Encoder::new(compression, dtype).encode("x.npy", view).payload.len()
}

#[test]
fn what_repeats_comes_back() {
    // At the last, zeros run on for longer than two matches.
    for n in [64, 91, 200] {
        for (_, heads) in arrays(n) {
            check(&heads.concat(), heads.len(), n);
        }
    }
}

/// Sizes by the default and by zlib as this library has it, whose 6 is often a little shorter than numpy's.
fn sizes(heads: &[Vec<f32>], n: usize, dtype: Dtype) -> (usize, usize) {
    let size = |compression| size(heads, n, compression, dtype);
    (size(Compression::Causal), size(Compression::Zlib(ZlibLevel::NUMPY)))
}

#[test]
fn what_repeats_is_no_larger_than_by_zlib() {
    for n in [64, 128] {
        for (name, heads) in arrays(n) {
            let (ours, zlib) = sizes(&heads, n, Dtype::Float32);
            assert!(ours <= zlib + zlib / 1000, "{name}, n = {n}: {ours} bytes, zlib writes {zlib}");
        }
    }
}

#[test]
fn what_repeats_in_half_precision_is_hardly_larger_than_by_zlib() {
    for n in [64, 128] {
        for (name, heads) in arrays(n) {
            let (ours, zlib) = sizes(&heads, n, Dtype::Float16);
            // Position biases alone are rounded to the same values in rows so far apart that not all are found.
            let more = if name == "alibi" { zlib / 6 } else { zlib / 1000 };
            assert!(ours <= zlib + more, "{name}, n = {n}: {ours} bytes, zlib writes {zlib}");
        }
    }
}

/// What is found in each segment of an array.
fn found(view: PatternView<'_>) -> Vec<Repeats> {
    let (mut found, n) = (Vec::new(), view.n());
    values::float32(&view, &mut Vec::new(), |chunk, segments| {
        assert!(chunk.first_row == 0 || 4 * chunk.known >= WINDOW, "what a match can reach is known");
        let mut at = chunk.known;
        for len in segments {
            let mut steps = Vec::new();
            runs::scan(&chunk.values[at..at + len], &mut steps, runs::equal_pairs);
            let (bytes, segment) = (bytemuck::cast_slice(chunk.values), 4 * at..4 * (at + len));
            found.push(repeats::find::<u32>(bytes, segment, chunk.first_row, n, &steps));
            at += len;
        }
    });
    found
}

#[test]
fn softmax_output_is_not_compressed_twice() {
    // It would cost thirty times the time, and not show in the file. At n = 1025 the last segment of a head is a row.
    for n in [64, 300, 1025] {
        let values = [softmax(n, 1), softmax(n, 2)].concat();
        let packed = packed(&values, n);
        for view in [PatternView::new(&values, 2, n), PatternView::packed_causal(&packed, 2, n)] {
            assert!(found(view).iter().all(|&found| found == Repeats::default()), "n = {n}");
        }
    }
    // Without a mask, a segment is one step over all its heads.
    let mut value = noise(3);
    let values: Vec<f32> = (0..6 * 70 * 70).map(|_| value()).collect();
    assert_eq!(found(PatternView::new(&values, 6, 70)), [Repeats::default(); 3]);
}

#[test]
fn what_repeats_is_found_wherever_a_chunk_begins() {
    let n = 600;
    let rows = Repeats { rows: true, values: false };
    // So steep that far keys are exactly zero.
    let heads = alibi(n, 1);
    let contiguous = found(PatternView::new(&heads, 1, n));
    let packed = packed(&heads, n);
    let packed = found(PatternView::packed_causal(&packed, 1, n));
    assert_eq!(packed, contiguous);
    assert!(packed[1..].iter().all(|&found| found == rows), "{packed:?}");
    let rounded = found(PatternView::new(&half_rounded(n, 1), 1, n));
    assert!(rounded.iter().all(|found| found.values), "{rounded:?}");
}
