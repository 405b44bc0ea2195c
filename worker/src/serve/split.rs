//! Which prompts of a job go through the model together.

/// Cuts `indices` (longest first) into runs whose padded patterns fit `limit` bytes
/// (`n_patterns * run * longest * longest * 4`) and which `fits` says the device has room for, given how many prompts
/// and the longest one's tokens. A prompt that does not fit alone goes alone.
pub(crate) fn split(
    indices: &[usize],
    n: impl Fn(&usize) -> usize,
    n_patterns: usize,
    limit: usize,
    fits: impl Fn(usize, usize) -> bool,
) -> Vec<Vec<usize>> {
    let mut runs: Vec<Vec<usize>> = Vec::new();
    let mut longest = 0;
    for index in indices {
        let length = n(index);
        let joins = |run: &Vec<usize>| {
            let (prompts, padded) = (run.len() + 1, longest.max(length));
            n_patterns * prompts * padded * padded * size_of::<f32>() <= limit && fits(prompts, padded)
        };
        match runs.last_mut() {
            Some(run) if joins(run) => {
                longest = longest.max(length);
                run.push(*index);
            }
            _ => {
                longest = length;
                runs.push(vec![*index]);
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: [usize; 5] = [100, 80, 80, 10, 10];

    #[test]
    fn parts_fit_the_memory_and_keep_the_order() {
        let bytes = |run: usize, n: usize| 2 * run * n * n * 4;
        let by_bytes = |limit| split(&[0, 1, 2, 3, 4], |&i| N[i], 2, limit, |_, _| true);
        assert_eq!(by_bytes(usize::MAX), [vec![0, 1, 2, 3, 4]]);
        // Two of 100 use the memory up; three padded to 80 take less than they do.
        assert_eq!(by_bytes(bytes(2, 100)), [vec![0, 1], vec![2, 3, 4]]);
        assert_eq!(by_bytes(0), [[0], [1], [2], [3], [4]]);
    }

    #[test]
    fn parts_fit_the_device_too() {
        let rows = |prompts: usize, longest: usize| prompts * longest <= 200;
        let parts = split(&[0, 1, 2, 3, 4], |&i| N[i], 2, usize::MAX, rows);
        assert_eq!(parts, [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(split(&[0, 1], |&i| N[i], 2, usize::MAX, |_, _| false), [[0], [1]], "one always goes");
    }
}
