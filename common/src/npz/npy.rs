//! The npy header: what lies before an array's values (numpy's format version 1.0).
//!
//! Written byte for byte as numpy (1.20 and later) writes it, so that a file of ours differs from one
//! of numpy's in compression only.

use std::str::FromStr;

use crate::capture::Dtype;

const MAGIC: &[u8; 8] = b"\x93NUMPY\x01\x00";

/// The header's length, magic included, is a multiple of this.
const ALIGN: usize = 64;

/// numpy leaves room for the first axis to grow to this many digits.
const GROWTH_AXIS_MAX_DIGITS: usize = 21;

/// An array's type and shape; C order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NpyHeader {
    /// Number type, little endian.
    pub dtype: Dtype,
    /// Axis lengths, outermost first.
    pub shape: Vec<usize>,
}

/// Bytes that are no header of an array lenspool writes or reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NpyError {
    /// The bytes do not begin with a whole npy header of version 1.0.
    #[error("no npy header of version 1.0")]
    NotNpy,
    /// An array of another type or order.
    #[error("expected a float32 or float16 array in C order, found the header {0}")]
    Unsupported(String),
}

impl NpyHeader {
    /// The header as bytes; a multiple of 64.
    pub fn to_bytes(&self) -> Vec<u8> {
        let descr = match self.dtype {
            Dtype::Float32 => "<f4",
            Dtype::Float16 => "<f2",
        };
        let axes: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        let shape = match axes.as_slice() {
            [only] => format!("({only},)"),
            axes => format!("({})", axes.join(", ")),
        };
        let mut dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
        if let Some(first) = axes.first() {
            let room = GROWTH_AXIS_MAX_DIGITS.saturating_sub(first.len());
            dict.extend(std::iter::repeat_n(' ', room));
        }
        let before = MAGIC.len() + 2;
        let total = (before + dict.len() + 1).next_multiple_of(ALIGN);
        dict.extend(std::iter::repeat_n(' ', total - before - dict.len() - 1));
        dict.push('\n');
        let length = u16::try_from(dict.len()).expect("a shape of a few axes fits into a version 1.0 header");
        [MAGIC.as_slice(), &length.to_le_bytes(), dict.as_bytes()].concat()
    }

    /// Reads the header at the start of `bytes`; also says how long it is, which is where the values begin.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), NpyError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(NpyError::NotNpy)?;
        let (length, rest) = rest.split_first_chunk().ok_or(NpyError::NotNpy)?;
        let dict = rest.get(..u16::from_le_bytes(*length).into()).ok_or(NpyError::NotNpy)?;
        let dict = str::from_utf8(dict).map_err(|_| NpyError::NotNpy)?.trim();
        let header = parse_dict(dict).ok_or_else(|| NpyError::Unsupported(dict.to_owned()))?;
        Ok((header, MAGIC.len() + 2 + usize::from(u16::from_le_bytes(*length))))
    }

    /// Bytes of the values; none where the header says more than any array has.
    pub fn values_len(&self) -> Option<u64> {
        self.shape.iter().try_fold(self.dtype.bytes() as u64, |product, &axis| {
            product.checked_mul(u64::try_from(axis).ok()?)
        })
    }
}

/// The dictionary as numpy writes it: keys in alphabetical order.
fn parse_dict(dict: &str) -> Option<NpyHeader> {
    let rest = dict.strip_prefix("{'descr': '")?;
    let (descr, rest) = rest.split_once("', 'fortran_order': False, 'shape': (")?;
    let dtype = match descr {
        "<f4" => Dtype::Float32,
        "<f2" => Dtype::Float16,
        _ => return None,
    };
    let (shape, rest) = rest.split_once(')')?;
    let shape = shape.split(',').map(str::trim).filter(|axis| !axis.is_empty()).map(usize::from_str);
    let shape = shape.collect::<Result<_, _>>().ok()?;
    matches!(rest, ", }" | "}").then_some(NpyHeader { dtype, shape })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `numpy.lib.format.write_array_header_1_0` of numpy 1.26 on these shapes.
    #[test]
    fn headers_are_numpys() {
        let header = |dtype, shape: &[usize]| NpyHeader { dtype, shape: shape.to_vec() };
        let cases = [
            (
                header(Dtype::Float32, &[1, 12, 296, 296]),
                128,
                "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 12, 296, 296), }",
            ),
            (
                header(Dtype::Float16, &[1, 12, 64, 64]),
                128,
                "{'descr': '<f2', 'fortran_order': False, 'shape': (1, 12, 64, 64), }",
            ),
            (header(Dtype::Float32, &[7]), 128, "{'descr': '<f4', 'fortran_order': False, 'shape': (7,), }"),
            (
                header(Dtype::Float32, &[1, 48, 25, 1024, 1024]),
                128,
                "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 48, 25, 1024, 1024), }",
            ),
            (header(Dtype::Float32, &[]), 128, "{'descr': '<f4', 'fortran_order': False, 'shape': (), }"),
        ];
        for (header, length, dict) in cases {
            let bytes = header.to_bytes();
            assert_eq!(bytes.len(), length, "{dict}");
            assert_eq!(&bytes[..8], MAGIC);
            assert_eq!(usize::from(u16::from_le_bytes([bytes[8], bytes[9]])), length - 10);
            assert_eq!(str::from_utf8(&bytes[10..10 + dict.len()]).unwrap(), dict);
            assert!(bytes[10 + dict.len()..length - 1].iter().all(|&b| b == b' '));
            assert_eq!(bytes[length - 1], b'\n');
            assert_eq!(NpyHeader::parse(&bytes), Ok((header, length)));
        }
    }

    #[test]
    fn other_arrays_are_named_in_the_error() {
        let mut bytes = NpyHeader { dtype: Dtype::Float32, shape: vec![2] }.to_bytes();
        assert_eq!(NpyHeader::parse(&bytes[..60]), Err(NpyError::NotNpy));
        bytes[23] = b'8';
        assert!(matches!(NpyHeader::parse(&bytes), Err(NpyError::Unsupported(dict)) if dict.contains("<f8")));
    }
}
