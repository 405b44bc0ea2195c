//! Whatever goes in comes out, by several inflaters that share no code with each other.

mod fuzz;
mod repeats;

use common::capture::Dtype;
use common::npz::{Entry, NpyHeader, write_npz};
use half::f16;
use proptest::prelude::*;

use super::kernel::Kernel;
use super::*;

/// Inflates with every inflater at hand, and checks checksum and length.
fn inflate(entry: &Entry) -> Result<Vec<u8>, String> {
    let len = entry.uncompressed_len as usize;
    let mut by_libdeflate = vec![0; len];
    let written = libdeflater::Decompressor::new()
        .deflate_decompress(&entry.payload, &mut by_libdeflate)
        .map_err(|error| format!("libdeflate: {error}"))?;
    let by_miniz =
        miniz_oxide::inflate::decompress_to_vec(&entry.payload).map_err(|error| format!("miniz: {error}"))?;
    let mut by_zlib = Vec::new();
    let mut decoder = flate2::bufread::DeflateDecoder::new(entry.payload.as_slice());
    std::io::Read::read_to_end(&mut decoder, &mut by_zlib).map_err(|error| format!("zlib-rs: {error}"))?;
    let hold = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
    hold(written == len, "the length is another")?;
    hold(by_miniz == by_libdeflate, "miniz and libdeflate differ")?;
    hold(by_zlib == by_libdeflate, "zlib-rs and libdeflate differ")?;
    hold(decoder.total_in() == entry.payload.len() as u64, "something follows the stream")?;
    hold(crc32fast::hash(&by_zlib) == entry.crc32, "the checksum is another")?;
    Ok(by_zlib)
}

/// The bytes numpy would have in memory, after the header.
fn read_values(entry: &Entry, shape: &[usize], dtype: Dtype) -> Result<Vec<u8>, String> {
    let bytes = inflate(entry)?;
    let (header, at) = NpyHeader::parse(&bytes).map_err(|error| error.to_string())?;
    let whole = header.values_len() == Some((bytes.len() - at) as u64);
    if header == (NpyHeader { dtype, shape: shape.to_vec() }) && whole {
        Ok(bytes[at..].to_vec())
    } else {
        Err(format!("{header:?} over {} bytes", bytes.len()))
    }
}

fn values_of(entry: &Entry, shape: &[usize], dtype: Dtype) -> Vec<u8> {
    read_values(entry, shape, dtype).expect("every inflater reads it")
}

/// The same values in rows of `padded`, as many of which a head has; what is between them is something else.
fn padded(values: &[f32], n: usize, padded: usize) -> Vec<f32> {
    let mut batch = vec![7.5; values.len() / (n * n) * padded * padded];
    for (row, values) in values.chunks_exact(n).enumerate() {
        batch[(row / n * padded + row % n) * padded..][..n].copy_from_slice(values);
    }
    batch
}

/// What a causal mask leaves of values.
fn packed(values: &[f32], n: usize) -> Vec<f32> {
    values.chunks_exact(n).enumerate().flat_map(|(row, values)| &values[..row % n + 1]).copied().collect()
}

fn check(values: &[f32], n_heads: usize, n: usize) {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_bits().to_le_bytes()).collect();
    let halves: Vec<u8> = values.iter().flat_map(|&v| f16::from_f32(v).to_bits().to_le_bytes()).collect();
    let (padded, packed) = (padded(values, n, n + 3), packed(values, n));
    let mut views =
        vec![PatternView::new(values, n_heads, n), PatternView::padded(&padded, n_heads, n, n + 3)];
    if (0..values.len()).all(|at| at % n <= at / n % n || values[at].to_bits() == 0) {
        views.push(PatternView::packed_causal(&packed, n_heads, n));
    }
    for dtype in [Dtype::Float32, Dtype::Float16] {
        for view in &views {
            let mut first = None;
            for kernel in Kernel::available() {
                let mut encoder = Encoder::with_kernel(Compression::Causal, dtype, kernel);
                let entry = encoder.encode("x.npy", *view);
                let expected = if dtype == Dtype::Float32 { &bytes } else { &halves };
                assert!(&values_of(&entry, &[1, n_heads, n, n], dtype) == expected, "{kernel:?} {dtype:?}");
                let first = first.get_or_insert(entry.clone());
                assert!(*first == entry, "{kernel:?} writes other bytes than plain Rust, for {dtype:?}");
            }
        }
    }
}

/// Numbers that are all different, as softmax gives.
fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        f32::from_bits(0x3a00_0000 + (state >> 38) as u32)
    }
}

fn causal(n_heads: usize, n: usize, window: usize, mut value: impl FnMut() -> f32) -> Vec<f32> {
    let mut values = Vec::with_capacity(n_heads * n * n);
    for _ in 0..n_heads {
        for query in 0..n {
            values.extend((0..n).map(|key| if key > query || key + window <= query { 0.0 } else { value() }));
        }
    }
    values
}

#[test]
fn every_small_size() {
    for n in (1..40).chain([63, 64, 65, 127, 129]) {
        check(&causal(3, n, n, noise(n as u64)), 3, n);
    }
}

#[test]
fn windows_and_no_mask() {
    check(&causal(2, 96, 17, noise(1)), 2, 96);
    check(&causal(2, 50, usize::MAX / 2, noise(2)), 2, 50);
    let mut value = noise(3);
    check(&(0..2 * 70 * 70).map(|_| value()).collect::<Vec<_>>(), 2, 70);
}

#[test]
fn values_no_softmax_gives_keep_their_bits() {
    let odd = [
        f32::NAN,
        f32::from_bits(0xffc0_1234),
        f32::INFINITY,
        f32::NEG_INFINITY,
        -0.0,
        f32::from_bits(1),
        f32::MIN_POSITIVE,
        -1.5,
        f32::MAX,
    ];
    let mut next = noise(4);
    let mut count = 0;
    let values = causal(2, 80, 80, || {
        count += 1;
        if count % 3 == 0 { odd[count / 3 % odd.len()] } else { next() }
    });
    // Rounding to float16 may change which NaN it is; bits are compared for float32.
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_bits().to_le_bytes()).collect();
    let entry =
        Encoder::new(Compression::Causal, Dtype::Float32).encode("x.npy", PatternView::new(&values, 2, 80));
    assert!(values_of(&entry, &[1, 2, 80, 80], Dtype::Float32) == bytes);
}

#[test]
fn bits_of_which_no_code_makes_less_are_stored() {
    // More in a block than a stored one takes.
    let (n_heads, n) = (2, 150);
    let mut state = 9u64;
    let mut any = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        f32::from_bits((state >> 32) as u32)
    };
    let values: Vec<f32> = (0..n_heads * n * n).map(|_| any()).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_bits().to_le_bytes()).collect();
    for kernel in Kernel::available() {
        let mut encoder = Encoder::with_kernel(Compression::Causal, Dtype::Float32, kernel);
        let entry = encoder.encode("x.npy", PatternView::new(&values, n_heads, n));
        assert!(values_of(&entry, &[1, n_heads, n, n], Dtype::Float32) == bytes, "{kernel:?}");
        assert!((bytes.len()..bytes.len() + 200).contains(&entry.payload.len()), "{}", entry.payload.len());
    }
}

#[test]
fn constants_and_zeros() {
    for value in [0.0, -0.0, 1.0, f32::from_bits(u32::MAX), f32::from_bits(0x0101_0101)] {
        let values = vec![value; 3 * 130 * 130];
        let entry = Encoder::new(Compression::Causal, Dtype::Float32)
            .encode("x.npy", PatternView::new(&values, 3, 130));
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_bits().to_le_bytes()).collect();
        assert!(values_of(&entry, &[1, 3, 130, 130], Dtype::Float32) == bytes);
        assert!(entry.payload.len() < 400, "{value}: {}", entry.payload.len());
    }
}

#[test]
fn a_prompt_inside_a_padded_batch_and_packed_rows_give_the_same_values() {
    for (n, longest) in [(1, 4), (37, 64), (300, 301)] {
        let n_heads = 3;
        let values = causal(n_heads, n, n, noise(5));
        let (batch, packed) = (padded(&values, n, longest), packed(&values, n));
        let kinds = [Compression::Causal, Compression::Zlib(ZlibLevel::NUMPY)];
        let both = [Dtype::Float32, Dtype::Float16];
        for (dtype, compression) in both.into_iter().flat_map(|dtype| kinds.map(|kind| (dtype, kind))) {
            let mut encoder = Encoder::new(compression, dtype);
            let views = [
                PatternView::new(&values, n_heads, n),
                PatternView::padded(&batch, n_heads, n, longest),
                PatternView::packed_causal(&packed, n_heads, n),
            ];
            let [whole, padded, packed] =
                views.map(|view| values_of(&encoder.encode("x.npy", view), &[1, n_heads, n, n], dtype));
            assert!(whole == padded && whole == packed, "n = {n}");
        }
    }
}

#[test]
fn all_compressions_make_archives_another_reader_opens() {
    let (n_heads, n) = (4, 33);
    let values = causal(n_heads, n, n, noise(6));
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_bits().to_le_bytes()).collect();
    let entries = ["causal", "zlib:0", "zlib:1", "zlib:6", "zlib:9", "store"].map(|word| {
        let mut encoder = Encoder::new(word.parse().unwrap(), Dtype::Float32);
        encoder.encode(word, PatternView::new(&values, n_heads, n))
    });
    let mut file = Vec::new();
    write_npz(&entries, &mut file).unwrap();
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(file)).unwrap();
    for index in 0..entries.len() {
        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut archive.by_index(index).unwrap(), &mut read).unwrap();
        assert!(read.ends_with(&bytes));
    }
}

#[test]
fn recycled_buffers_change_nothing() {
    let mut encoder = Encoder::new(Compression::Causal, Dtype::Float32);
    let large = causal(3, 90, 90, noise(7));
    let small = causal(1, 70, 70, noise(8));
    let fresh = encoder.encode("x.npy", PatternView::new(&small, 1, 70));
    let used = encoder.encode("y.npy", PatternView::new(&large, 3, 90));
    encoder.recycle(used);
    assert_eq!(encoder.encode("x.npy", PatternView::new(&small, 1, 70)), fresh);
    // So small that zlib is tried, too.
    let (one, other) = (causal(2, 20, 20, noise(9)), causal(2, 30, 10, noise(10)));
    let fresh = encoder.encode("x.npy", PatternView::new(&one, 2, 20));
    encoder.encode("y.npy", PatternView::new(&other, 2, 30));
    assert_eq!(encoder.encode("x.npy", PatternView::new(&one, 2, 20)), fresh);
}

/// Arrays with structure of many kinds: masks, repeats, few distinct values, arbitrary bits.
fn any_array() -> impl Strategy<Value = (usize, usize, Vec<f32>)> {
    let value = prop_oneof![
        4 => any::<u32>(),
        4 => 0x3a00_0000u32..0x3f80_0000,
        2 => Just(0),
        1 => Just(0x3f80_0000),
        1 => prop_oneof![Just(u32::MAX), Just(0x0101_0101), Just(0x8000_0000), Just(0x0001_0001)],
    ];
    (1usize..4, 1usize..40, prop::collection::vec(value, 1..200), 0u8..5, 1usize..50).prop_map(
        |(n_heads, n, pool, mask, period)| {
            let mut at = 0usize;
            let mut values = Vec::new();
            for row in 0..n_heads * n {
                let query = row % n;
                for key in 0..n {
                    at = at.wrapping_mul(31).wrapping_add(17 + key / period);
                    let hidden = match mask {
                        0 => key > query,
                        1 => key > query || key + period <= query,
                        2 => key < query,
                        3 => (key + row) % period == 0,
                        _ => false,
                    };
                    let bits = if hidden { 0 } else { pool[(at >> 3) % pool.len()] };
                    values.push(f32::from_bits(bits));
                }
            }
            (n_heads, n, values)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_array_comes_back((n_heads, n, values) in any_array()) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_bits().to_le_bytes()).collect();
        for kernel in Kernel::available() {
            let mut encoder = Encoder::with_kernel(Compression::Causal, Dtype::Float32, kernel);
            let entry = encoder.encode("x.npy", PatternView::new(&values, n_heads, n));
            prop_assert!(values_of(&entry, &[1, n_heads, n, n], Dtype::Float32) == bytes);
            let finite: Vec<f32> = values.iter().map(|v| if v.is_nan() { 0.5 } else { *v }).collect();
            let halves: Vec<u8> = finite.iter().flat_map(|&v| f16::from_f32(v).to_bits().to_le_bytes()).collect();
            let mut encoder = Encoder::with_kernel(Compression::Causal, Dtype::Float16, kernel);
            let entry = encoder.encode("x.npy", PatternView::new(&finite, n_heads, n));
            prop_assert!(values_of(&entry, &[1, n_heads, n, n], Dtype::Float16) == halves);
        }
    }
}
