//! One array: an npy header that fits, and rows of attention that are what a softmax gives.
//!
//! Read as a stream, some rows at a time: memory does not grow with the array.

use std::io::{self, Read};

use common::{capture::Dtype, npz::NpyHeader};
use half::f16;

/// Bytes of rows read at once, at least a row.
const BLOCK: usize = 256 << 10;
/// How far a row of float32 may be from 1. A softmax in float32 over thousands of keys is within 1e-5.
const TOLERANCE: f64 = 1e-4;

/// What an array's shape must be, axis by axis; none where any length will do. The last two are query and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The axes before query and key.
    pub outer: Vec<Option<usize>>,
    /// Tokens of the text; the model may read a few more around it.
    pub n_tokens: Option<usize>,
}

/// More than a text's own tokens a model reads: BOS, or a BOS that its tokenizer reads as plain characters.
const AROUND: usize = 32;

impl Shape {
    fn fits(&self, shape: &[usize]) -> bool {
        let Some((outer, [queries, keys])) = shape.split_last_chunk::<2>() else { return false };
        let n_fits = self.n_tokens.is_none_or(|n| (n..=n + AROUND).contains(keys));
        queries == keys
            && *keys > 0
            && n_fits
            && outer.len() == self.outer.len()
            && outer.iter().zip(&self.outer).all(|(axis, wanted)| wanted.is_none_or(|wanted| wanted == *axis))
    }

    fn shown(&self) -> String {
        let axis = |axis: &Option<usize>| axis.map_or_else(|| "?".to_owned(), |axis| axis.to_string());
        let outer: Vec<_> = self.outer.iter().map(axis).collect();
        match self.n_tokens {
            Some(n) => format!("[{}, n, n] with n from {n} to {}", outer.join(", "), n + AROUND),
            None => format!("[{}, n, n]", outer.join(", ")),
        }
    }
}

/// How far the sum of a row may be from 1. float16 rounds each value by up to 2^-11 of it, and by up to 2^-25 where
/// it is tiny.
pub fn tolerance(dtype: Dtype, n: usize) -> f64 {
    match dtype {
        Dtype::Float32 => TOLERANCE,
        Dtype::Float16 => TOLERANCE + 2_f64.powi(-11) + n as f64 * 2_f64.powi(-25),
    }
}

/// Reads one array to its end. The error is what is wrong with it.
pub fn check(input: &mut impl Read, shape: &Shape) -> Result<NpyHeader, String> {
    let header = read_header(input)?;
    if !shape.fits(&header.shape) {
        return Err(format!("its shape is {:?}, not {}", header.shape, shape.shown()));
    }
    check_rows(input, &header)?;
    match input.read(&mut [0]) {
        Ok(0) => Ok(header),
        Ok(_) => Err("there are bytes behind its last value".to_owned()),
        Err(error) => Err(unreadable(&error)),
    }
}

fn read_header(input: &mut impl Read) -> Result<NpyHeader, String> {
    let mut head = vec![0; 10];
    input.read_exact(&mut head).map_err(|error| unreadable(&error))?;
    let length = usize::from(u16::from_le_bytes([head[8], head[9]]));
    head.resize(10 + length, 0);
    input.read_exact(&mut head[10..]).map_err(|error| unreadable(&error))?;
    NpyHeader::parse(&head).map(|(header, _)| header).map_err(|error| error.to_string())
}

fn check_rows(input: &mut impl Read, header: &NpyHeader) -> Result<(), String> {
    let Some((outer, &[queries, n])) = header.shape.split_last_chunk::<2>() else {
        return Err("it has no axes of query and key".to_owned());
    };
    let rows = outer.iter().product::<usize>() * queries;
    let row_bytes = n * header.dtype.bytes();
    let tolerance = tolerance(header.dtype, n);
    let at_once = (BLOCK / row_bytes).max(1);
    let mut block = vec![0; row_bytes * at_once.min(rows)];
    let mut row = 0;
    while row < rows {
        let block = &mut block[..row_bytes * at_once.min(rows - row)];
        input.read_exact(block).map_err(|error| unreadable(&error))?;
        for values in block.chunks_exact(row_bytes) {
            check_row(values, header.dtype, tolerance)
                .map_err(|what| format!("{} {what}", place(outer, queries, row)))?;
            row += 1;
        }
    }
    Ok(())
}

fn check_row(bytes: &[u8], dtype: Dtype, tolerance: f64) -> Result<(), String> {
    let (sum, least) = match dtype {
        Dtype::Float32 => sum(bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value))),
        Dtype::Float16 => sum(bytes.as_chunks().0.iter().map(|value| f16::from_le_bytes(*value).to_f32())),
    };
    if !sum.is_finite() {
        return Err("holds a value that is no number".to_owned());
    }
    if least < 0.0 {
        return Err(format!("holds the negative value {least}"));
    }
    if (sum - 1.0).abs() > tolerance { Err(format!("sums to {sum:.6}, not 1")) } else { Ok(()) }
}

/// The sum and the least value. A NaN or an infinity anywhere makes the sum one.
fn sum(values: impl Iterator<Item = f32>) -> (f64, f32) {
    values.fold((0.0, 0.0), |(sum, least), value| {
        (sum + f64::from(value), if value < least { value } else { least })
    })
}

/// Where a row lies, from the innermost axis outwards.
fn place(outer: &[usize], queries: usize, row: usize) -> String {
    let (query, mut rest) = (row % queries, row / queries);
    let mut place = format!("query {query}");
    for (&axis, name) in outer.iter().rev().zip(["head", "layer"]) {
        if axis > 1 || name == "head" {
            place = format!("{name} {}, {place}", rest % axis);
        }
        rest /= axis.max(1);
    }
    place
}

fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends early".to_owned(),
        _ => format!("it does not decompress: {error}"),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An npy file of causal attention over `n` tokens, each row even over its past.
    pub fn npy(dtype: Dtype, outer: &[usize], n: usize) -> Vec<u8> {
        let shape = [outer, &[n, n]].concat();
        let mut bytes = NpyHeader { dtype, shape }.to_bytes();
        for row in 0..outer.iter().product::<usize>() * n {
            for key in 0..n {
                let query = row % n;
                let value = if key <= query { 1.0 / (query + 1) as f32 } else { 0.0 };
                match dtype {
                    Dtype::Float32 => bytes.extend(value.to_le_bytes()),
                    Dtype::Float16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
                }
            }
        }
        bytes
    }

    fn shape(outer: &[usize], n_tokens: usize) -> Shape {
        Shape { outer: outer.iter().copied().map(Some).collect(), n_tokens: Some(n_tokens) }
    }

    fn wrong(bytes: &[u8], shape: &Shape) -> String {
        check(&mut &bytes[..], shape).unwrap_err()
    }

    #[test]
    fn attention_of_both_types_and_of_any_length_is_good() {
        for dtype in [Dtype::Float32, Dtype::Float16] {
            for n in [1, 2, 37, 500] {
                for tokens in [n - 1, n] {
                    let good = check(&mut &npy(dtype, &[1, 3], n)[..], &shape(&[1, 3], tokens));
                    assert_eq!(good.map(|header| header.dtype), Ok(dtype), "{n}");
                }
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_told() {
        let bytes = npy(Dtype::Float32, &[1, 2], 5);
        assert_eq!(
            wrong(&bytes, &shape(&[1, 3], 5)),
            "its shape is [1, 2, 5, 5], not [1, 3, n, n] with n from 5 to 37"
        );
        for bad in [shape(&[1, 2], 6), shape(&[1, 1, 2], 5), shape(&[2], 5)] {
            assert!(wrong(&bytes, &bad).starts_with("its shape is"));
        }
        let any = Shape { outer: vec![Some(1), None], n_tokens: None };
        assert!(check(&mut &bytes[..], &any).is_ok());
    }

    #[test]
    fn a_bad_value_is_told_with_its_place() {
        let good = npy(Dtype::Float32, &[1, 2], 4);
        let start = good.len() - 2 * 4 * 4 * 4;
        let at = |head: usize, query: usize, key: usize| start + 4 * (16 * head + 4 * query + key);
        for (value, said) in [
            (f32::NAN, "head 1, query 2 holds a value that is no number"),
            (f32::INFINITY, "head 1, query 2 holds a value that is no number"),
            (-0.5, "head 1, query 2 holds the negative value -0.5"),
            (0.9, "head 1, query 2 sums to 1.566667, not 1"),
        ] {
            let mut bytes = good.clone();
            bytes[at(1, 2, 0)..][..4].copy_from_slice(&value.to_le_bytes());
            assert_eq!(wrong(&bytes, &shape(&[1, 2], 4)), said);
        }
        assert_eq!(place(&[1, 3, 2], 4, 4 * 2 + 4 + 3), "layer 1, head 1, query 3");
    }

    #[test]
    fn an_array_cut_short_or_followed_by_more_is_told() {
        let good = npy(Dtype::Float16, &[1, 2], 4);
        for cut in [0, 5, 40, good.len() - 1] {
            assert!(check(&mut &good[..cut], &shape(&[1, 2], 4)).is_err(), "{cut}");
        }
        assert_eq!(wrong(&good[..good.len() - 1], &shape(&[1, 2], 4)), "it ends early");
        assert!(wrong(&[&good[..], b"x"].concat(), &shape(&[1, 2], 4)).contains("behind its last value"));
    }
}
