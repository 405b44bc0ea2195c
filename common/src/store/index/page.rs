//! index.html: a page that shows the data directory it lies in, with nothing from elsewhere.
//!
//! It reads models.jsonl and the prompts.jsonl beside it, inflates activations.npz in the browser, and
//! shows the figures of pattern_lens where there are any. Upstream's page reads the same files, so
//! either may stand here: a page that is not ours is never replaced.

use std::{fs, io};

use crate::store::{
    commit::Store,
    error::{Context, Op, StoreError},
};

const PAGE: &str = include_str!("page.html");

/// What tells a page of ours, of whatever version, from anybody else's.
const MARK: &str = "<!-- lenspool viewer ";

/// Puts the page there, or a newer one in place of an older one of ours.
pub(super) fn ensure(store: &Store) -> Result<(), StoreError> {
    let path = store.layout().index_html();
    match fs::read(&path) {
        Ok(there) if there == PAGE.as_bytes() || !is_ours(&there) => Ok(()),
        Ok(_) => store.replace(&path, PAGE.as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => store.replace(&path, PAGE.as_bytes()),
        Err(error) => Err(error).on(Op::Read, &path),
    }
}

/// The mark stands near the top; a mention of it further down does not count.
fn is_ours(page: &[u8]) -> bool {
    page[..page.len().min(256)].windows(MARK.len()).any(|part| part == MARK.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;
    use crate::{
        capture::Dtype,
        job::RunId,
        store::held::tests::{npy, npz},
    };

    fn store(root: &std::path::Path) -> Store {
        Store::new(root, &RunId("r".to_owned()))
    }

    #[test]
    fn the_page_is_put_there_and_an_older_one_of_ours_is_replaced() {
        let tmp = tempfile::tempdir().unwrap();
        let (store, path) = (store(tmp.path()), tmp.path().join("index.html"));
        ensure(&store).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), PAGE);
        fs::write(&path, "<!doctype html>\n<!-- lenspool viewer 0 -->\nold").unwrap();
        ensure(&store).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), PAGE);
    }

    #[test]
    fn a_page_of_upstream_or_of_the_user_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("index.html");
        let mine = PAGE.replace(MARK, "<!-- mine ");
        for page in ["", "<!DOCTYPE html><title>Pattern Lens</title>", &mine] {
            fs::write(&path, page).unwrap();
            ensure(&store(tmp.path())).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), page);
        }
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        assert!(is_ours(PAGE.as_bytes()));
        for word in ["src=\"", "@import", "url(", "<link", "innerHTML"] {
            assert!(!PAGE.contains(word), "{word}");
        }
        // The one address in it is told to the reader, not fetched.
        assert_eq!(PAGE.matches("http://").count(), 1);
        assert_eq!(PAGE.matches("https://").count(), 0);
    }

    /// The page's own reader on files of ours. Where there is no node to run it, the test says so.
    #[test]
    fn the_page_reads_our_arrays() {
        let begin = PAGE.find("<script id=\"reader\">").unwrap() + "<script id=\"reader\">".len();
        let reader = &PAGE[begin..begin + PAGE[begin..].find("</script>").unwrap()];
        let tmp = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(tmp.path().join(name), bytes).unwrap();
        write("single.npz", &npz(&[10, 2, 0], Dtype::Float32));
        write("half.npz", &npz(&[1], Dtype::Float16));
        let mut stacked = npy(Dtype::Float32, 0);
        let header = String::from_utf8_lossy(&stacked).replace("(1, 1, 0, 0)", "(1, 2, 1, 1)");
        stacked.splice(10.., header.bytes().skip(header.find('{').unwrap()).take(stacked.len() - 10));
        stacked.extend([1.0_f32, 0.5].map(f32::to_le_bytes).concat());
        write("stacked.npy", &stacked);
        let script = format!(
            "{reader}
            (async () => {{
              const read = name => new Uint8Array(require('fs').readFileSync(name));
              for (const [name, isStacked] of [['single.npz', false], ['half.npz', false], ['stacked.npy', true]]) {{
                const patterns = openPatterns(read(name), isStacked);
                for (const i of patterns.layers) {{
                  const {{ heads, n, values }} = await patterns.layer(i);
                  console.log(name, i, heads, n, values.length, values[values.length - 1]);
                }}
              }}
              console.log([0, 1, 0x3ff, 0x400, 0x3c00, 0xbc00, 0x7bff, 0x7c00].map(halfToNumber).join(' '));
            }})();"
        );
        let node = Command::new("node")
            .arg("-")
            .current_dir(tmp.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut node) = node else {
            eprintln!("skipped: no node on PATH");
            return;
        };
        node.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = node.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // 0x3c3c3c3c as a float32, 0x3c3c as a float16.
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "single.npz 0 1 3 9 0.01148897036910057\n\
             single.npz 2 1 5 25 0.01148897036910057\n\
             single.npz 10 1 13 169 0.01148897036910057\n\
             half.npz 1 1 4 16 1.05859375\n\
             stacked.npy 0 1 1 1 1\n\
             stacked.npy 1 1 1 1 0.5\n\
             0 5.960464477539063e-8 0.00006097555160522461 0.00006103515625 1 -1 65504 Infinity\n"
        );
    }
}
