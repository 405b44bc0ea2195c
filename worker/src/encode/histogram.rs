//! How often each byte occurs among a block's literals, from a sample where there are many.

use super::runs::Step;

/// Counts of byte values.
pub(crate) type Counts = [u32; 256];

/// Counts the literal bytes of `steps` over `bytes` into `counts`, or about one in `every` of them,
/// scaled up.
pub(crate) fn count(bytes: &[u8], steps: &[Step], every: u32, counts: &mut Counts) {
    // Four tables: consecutive bytes are often equal, and an increment right after another one of the
    // same counter would wait for it.
    let mut tables = [[0u32; 256]; 4];
    let mut at = 0;
    let mut skip = 0;
    for step in steps {
        let literals = &bytes[at..at + step.literals as usize];
        at += (step.literals + step.matched) as usize;
        if every == 1 {
            count_all(literals, &mut tables);
            continue;
        }
        // Whole groups of 32 bytes, one group in `every`; the position carries over between steps.
        let stride = 32 * every as usize;
        let mut group = skip;
        while group < literals.len() {
            count_all(&literals[group..literals.len().min(group + 32)], &mut tables);
            group += stride;
        }
        skip = group - literals.len();
    }
    for (value, count) in counts.iter_mut().enumerate() {
        *count += every * tables.iter().map(|table| table[value]).sum::<u32>();
    }
}

#[inline(always)]
fn count_all(bytes: &[u8], tables: &mut [[u32; 256]; 4]) {
    let words = bytes.chunks_exact(4);
    for (table, &byte) in tables.iter_mut().zip(words.remainder()) {
        table[byte as usize] += 1;
    }
    for word in words {
        for (table, &byte) in tables.iter_mut().zip(word) {
            table[byte as usize] += 1;
        }
    }
}
