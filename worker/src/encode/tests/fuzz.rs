//! Random arrays of many kinds through the encoder and back through three inflaters.
//!
//! A few hundred cases in the test suite; a long run, seeded, and with numpy as a fourth reader, by
//! `tests/fuzz/encode CASES SEED`. A failure names the seed of its case, which runs alone with that seed
//! and one case.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use common::capture::Dtype;
use common::npz::{Entry, layer_entry_name, write_npz};
use half::f16;

use super::super::kernel::Kernel;
use super::super::{Compression, Encoder, PatternView};
use super::read_values;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

const ODD_BITS: [u32; 12] = [
    0,
    0x8000_0000,
    1,
    0x007f_ffff,
    0x0080_0000,
    0x3f80_0000,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffff_ffff,
    0x0101_0101,
    0x7f80_0001,
];

/// One case's array, as bits of float32.
struct Case {
    n_heads: usize,
    n: usize,
    causal: bool,
    bits: Vec<u32>,
}

impl Case {
    fn new(random: &mut Random) -> Self {
        // Few are large, as a case costs the square; most are above the size at which zlib is tried as well.
        let n = match random.below(100) {
            0 => 100 + random.below(300),
            1..4 => random.pick(&[127, 128, 129]),
            4..20 => random.pick(&[15, 16, 17, 31, 32, 33, 63, 64, 65]),
            20..25 => 1 + random.below(3),
            _ => 1 + random.below(60),
        };
        let n_heads = 1 + random.below(if n > 100 { 3 } else { 7 });
        let mut source = Source::new(random);
        let mask = random.below(8);
        let width = 1 + random.below(n);
        let mut bits: Vec<u32> = Vec::with_capacity(n_heads * n * n);
        for head in 0..n_heads {
            if head > 0 && random.chance(3) {
                source = Source::new(random);
            }
            if head > 0 && random.chance(10) {
                bits.extend_from_within(bits.len() - n * n..);
                continue;
            }
            let rows_repeat = random.chance(10);
            let rows_shift = random.chance(10);
            for query in 0..n {
                if rows_repeat && query > 0 && !random.chance(4) {
                    bits.extend_from_within(bits.len() - n..);
                    continue;
                }
                // The row above, shifted, but for some lowest bytes.
                if rows_shift && query > 0 && !random.chance(4) {
                    bits.push(source.next(random));
                    for _ in 1..n {
                        bits.push(bits[bits.len() - n - 1] ^ u32::from(random.chance(4)));
                    }
                    continue;
                }
                for key in 0..n {
                    let hidden = match mask {
                        0..3 => key > query,
                        3 => key > query || key + width <= query,
                        4 => key < query,
                        5 => random.chance(width),
                        6 => key / width != query / width,
                        _ => false,
                    };
                    bits.push(if hidden { 0 } else { source.next(random) });
                }
            }
        }
        for _ in 0..random.below(4) {
            let at = random.below(bits.len());
            bits[at] = random.pick(&ODD_BITS);
        }
        let causal = (0..bits.len()).all(|at| at % n <= at / n % n || bits[at] == 0);
        Case { n_heads, n, causal, bits }
    }
}

/// Where a head's values come from.
enum Source {
    Any,
    /// Exponents of softmax output at some sharpness, the mantissa cut to some bits.
    Softmax {
        exponents: usize,
        mantissa: u32,
    },
    Pool(Vec<u32>),
    /// A value, kept for a while.
    Steps {
        value: u32,
        change_one_in: usize,
    },
    Odd,
}

impl Source {
    fn new(random: &mut Random) -> Self {
        match random.below(8) {
            0 => Source::Any,
            1 => {
                let size = 1 + random.below(300);
                Source::Pool((0..size).map(|_| random.next() as u32).collect())
            }
            2 => Source::Steps { value: random.next() as u32, change_one_in: 1 + random.below(20) },
            3 => Source::Odd,
            _ => Source::Softmax {
                exponents: 1 + random.below(100),
                mantissa: !0 << random.pick(&[0, 0, 0, 13, 16]),
            },
        }
    }

    fn next(&mut self, random: &mut Random) -> u32 {
        match self {
            Source::Any => random.next() as u32,
            Source::Softmax { exponents, mantissa } => {
                let exponent = 127 - random.below(*exponents) as u32;
                (exponent << 23 | random.next() as u32 >> 9) & *mantissa
            }
            Source::Pool(pool) => pool[random.below(pool.len())],
            Source::Steps { value, change_one_in } => {
                if random.chance(*change_one_in) {
                    *value = random.next() as u32;
                }
                *value
            }
            Source::Odd => random.pick(&ODD_BITS),
        }
    }
}

/// Whether the bytes are the values, as float16 up to which NaN it is.
fn same(found: &[u8], values: &[f32], dtype: Dtype) -> bool {
    match dtype {
        Dtype::Float32 => found == bytemuck::cast_slice::<f32, u8>(values),
        Dtype::Float16 => found.as_chunks().0.iter().zip(values).all(|(&bytes, &value)| {
            let (found, expected) = (f16::from_le_bytes(bytes), f16::from_f32(value));
            found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan()
        }),
    }
}

/// Whoever encodes: this crate, or a broken one.
type Encode<'a> = dyn FnMut(Kernel, Dtype, PatternView<'_>) -> Entry + 'a;

fn encode(kernel: Kernel, dtype: Dtype, pattern: PatternView<'_>) -> Entry {
    Encoder::with_kernel(Compression::Causal, dtype, kernel).encode(&layer_entry_name(0), pattern)
}

/// One case: through every kernel, as both types, from every layout in memory.
fn run(seed: u64, encode: &mut Encode<'_>) -> Result<Vec<(Entry, Vec<f32>)>, String> {
    let random = &mut Random(seed);
    let Case { n_heads, n, causal, bits } = Case::new(random);
    let values: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
    let shape = [1, n_heads, n, n];
    let padded = n + random.below(9);
    let mut batch = vec![f32::NAN; n_heads * padded * padded];
    for (row, values) in values.chunks_exact(n).enumerate() {
        batch[(row / n * padded + row % n) * padded..][..n].copy_from_slice(values);
    }
    let rows = values.chunks_exact(n).enumerate();
    let packed: Vec<f32> = rows.flat_map(|(row, values)| &values[..row % n + 1]).copied().collect();
    let mut views =
        vec![PatternView::new(&values, n_heads, n), PatternView::padded(&batch, n_heads, n, padded)];
    if causal {
        views.push(PatternView::packed_causal(&packed, n_heads, n));
    }
    let mut entries = Vec::new();
    for dtype in [Dtype::Float32, Dtype::Float16] {
        for (layout, view) in views.iter().enumerate() {
            let mut first: Option<Entry> = None;
            // What differs by layout is before what differs by kernel.
            let kernels = if layout == 0 { Kernel::available() } else { vec![Kernel::detect()] };
            for kernel in kernels {
                let which = format!("seed {seed}: {kernel:?} {dtype:?} layout {layout}");
                let entry = encode(kernel, dtype, *view);
                let found =
                    read_values(&entry, &shape, dtype).map_err(|error| format!("{which}: {error}"))?;
                if !same(&found, &values, dtype) {
                    return Err(format!("{which}: other values come back"));
                }
                if *first.get_or_insert_with(|| entry.clone()) != entry {
                    return Err(format!("{which}: other bytes than plain Rust's"));
                }
            }
            if layout == 0 {
                entries.push((first.expect("there is a kernel"), values.clone()));
            }
        }
    }
    Ok(entries)
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, not a number")))
}

#[test]
fn random_arrays_come_back_through_three_inflaters() {
    let seed = number("LENSPOOL_FUZZ_SEED").unwrap_or(1);
    let cases = number("LENSPOOL_FUZZ_CASES").unwrap_or(200);
    // Some cases are left as files, one npz and one of raw float32 each, for other readers.
    let folder = std::env::var_os("LENSPOOL_FUZZ_FOLDER").map(PathBuf::from);
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let case = next.fetch_add(1, Ordering::Relaxed);
            if case >= cases {
                break;
            }
            let entries = run(seed + case, &mut encode).unwrap_or_else(|error| panic!("{error}"));
            let Some(folder) = &folder else { continue };
            for (entry, values) in entries.into_iter().filter(|_| case.is_multiple_of(20)) {
                leave(folder, seed + case, &entry, &values).unwrap();
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
}

/// Leaves a case for another reader, whole under its name.
fn leave(folder: &Path, seed: u64, entry: &Entry, values: &[f32]) -> io::Result<()> {
    let path = folder.join(format!("{seed}-{}.npz", entry.uncompressed_len));
    std::fs::write(path.with_extension("raw"), bytemuck::cast_slice(values))?;
    let unfinished = path.with_extension("part");
    write_npz(&[entry], &mut File::create(&unfinished)?)?;
    std::fs::rename(unfinished, path)
}

#[test]
fn a_broken_encoder_is_found_out() {
    for seed in 1..40 {
        let mut random = Random(seed);
        let flipped = run(seed, &mut |kernel, dtype, pattern| {
            let mut entry = encode(kernel, dtype, pattern);
            let bit = random.below(8 * (entry.payload.len() - 1));
            entry.payload[bit / 8] ^= 1 << (bit % 8);
            entry
        });
        assert!(flipped.is_err(), "seed {seed}: a bit of the payload");

        // A file that is whole, of values that are not those given.
        let other = run(seed, &mut |kernel, dtype, pattern| {
            let (n_heads, n) = (pattern.n_heads(), pattern.n());
            let mut values: Vec<f32> = (0..n_heads * n).flat_map(|row| pattern.row(row)).copied().collect();
            values.resize(pattern.len(), 0.0);
            let last = values.last_mut().expect("no array is empty");
            *last = if *last == 2.0 { 3.0 } else { 2.0 };
            encode(kernel, dtype, PatternView::new(&values, n_heads, n))
        });
        assert!(other.unwrap_err().ends_with("other values come back"), "seed {seed}: a value");

        let truncated = run(seed, &mut |kernel, dtype, pattern| {
            let mut entry = encode(kernel, dtype, pattern);
            entry.payload.pop();
            entry
        });
        assert!(truncated.is_err(), "seed {seed}: the last byte");
    }
}

#[test]
fn a_kernel_that_writes_other_bytes_is_found_out() {
    if Kernel::available().len() > 1 {
        let error = run(1, &mut |kernel, dtype, pattern| {
            let compression =
                if kernel == Kernel::Portable { Compression::Causal } else { Compression::Store };
            let mut entry =
                Encoder::with_kernel(compression, dtype, kernel).encode(&layer_entry_name(0), pattern);
            if kernel != Kernel::Portable {
                entry.payload = miniz_oxide::deflate::compress_to_vec(&entry.payload, 0);
                entry.method = common::npz::Method::Deflate;
            }
            entry
        });
        assert!(error.unwrap_err().ends_with("other bytes than plain Rust's"));
    }
}
