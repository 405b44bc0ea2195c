//! Reading an archive's directory, and entries as they are stored.
//!
//! The directory is at a zip file's end, so one read of the last few kilobytes says which arrays a file
//! has. Does not inflate, and does not check a payload against its CRC.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::record::*;
use super::{Entry, Method};

/// Read from the file's end at once: the directory of some 150 layers, and end records.
const TAIL: u64 = 16 << 10;

/// The longest comment an end record can carry.
const LONGEST_COMMENT: u64 = u16::MAX as u64;

/// What an archive's directory says about one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryInfo {
    /// The name in the archive, `.npy` included.
    pub name: String,
    /// How the bytes are stored.
    pub method: Method,
    /// CRC-32 of the uncompressed bytes.
    pub crc32: u32,
    /// Stored bytes.
    pub compressed_len: u64,
    /// Uncompressed bytes.
    pub uncompressed_len: u64,
    /// Where the entry's local header begins.
    pub header_offset: u64,
}

/// A file that cannot be read as an archive.
#[derive(Debug, thiserror::Error)]
pub enum NpzError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is cut off or is no zip archive.
    #[error("{} is no whole npz file: {what}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// What is wrong with an archive, before the path is known.
#[derive(Debug)]
enum Fault {
    Io(io::Error),
    Broken(&'static str),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Fault::Io(error)
    }
}

/// An archive on disk, its directory read.
#[derive(Debug)]
pub struct NpzReader {
    path: PathBuf,
    file: std::fs::File,
    entries: Vec<EntryInfo>,
}

/// The directory of the archive at `path`, in the directory's order.
pub fn read_directory(path: &Path) -> Result<Vec<EntryInfo>, NpzError> {
    Ok(NpzReader::open(path)?.entries)
}

impl NpzReader {
    /// Opens the archive at `path` and reads its directory: usually one read.
    pub fn open(path: &Path) -> Result<Self, NpzError> {
        let located = |fault| locate(path, fault);
        let mut file = std::fs::File::open(path).map_err(|error| located(Fault::Io(error)))?;
        let entries = directory(&mut file).map_err(located)?;
        Ok(NpzReader { path: path.to_owned(), file, entries })
    }

    /// The directory, in its order.
    pub fn entries(&self) -> &[EntryInfo] {
        &self.entries
    }

    /// One entry as it is stored, ready for [`write_npz`](super::write_npz).
    pub fn read_stored(&mut self, info: &EntryInfo) -> Result<Entry, NpzError> {
        let payload = payload(&mut self.file, info).map_err(|fault| locate(&self.path, fault))?;
        Ok(Entry {
            name: info.name.clone(),
            method: info.method,
            crc32: info.crc32,
            uncompressed_len: info.uncompressed_len,
            payload,
        })
    }
}

fn locate(path: &Path, fault: Fault) -> NpzError {
    let path = path.to_owned();
    match fault {
        Fault::Io(source) => NpzError::Io { path, source },
        Fault::Broken(what) => NpzError::Broken { path, what },
    }
}

/// `len` bytes from `offset` on.
fn read_at(file: &mut (impl Read + Seek), offset: u64, len: u64) -> Result<Vec<u8>, Fault> {
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < len { Err(Fault::Broken("it ends early")) } else { Ok(bytes) }
}

/// Where the directory is and how many entries it has.
struct End {
    count: u64,
    len: u64,
    offset: u64,
}

fn directory(file: &mut (impl Read + Seek)) -> Result<Vec<EntryInfo>, Fault> {
    let file_len = file.seek(SeekFrom::End(0))?;
    let mut tail_at = file_len.saturating_sub(TAIL);
    let mut tail = read_at(file, tail_at, file_len - tail_at)?;
    let found = match find_end(&tail) {
        None if tail_at > 0 => {
            // A long comment, which nothing known to us writes.
            tail_at = file_len.saturating_sub(TAIL + LONGEST_COMMENT);
            tail = read_at(file, tail_at, file_len - tail_at)?;
            find_end(&tail)
        }
        found => found,
    };
    let end = found.ok_or(Fault::Broken("it has no end record"))?;
    if end.offset.checked_add(end.len).is_none_or(|end| end > file_len) {
        return Err(Fault::Broken("its directory lies outside the file"));
    }
    let separate;
    let bytes = match end.offset.checked_sub(tail_at) {
        Some(at) => &tail[at as usize..][..end.len as usize],
        None => {
            separate = read_at(file, end.offset, end.len)?;
            &separate
        }
    };
    parse_directory(bytes, end.count).ok_or(Fault::Broken("its directory is damaged"))
}

fn find_end(tail: &[u8]) -> Option<End> {
    let last = tail.len().checked_sub(END_LEN)?;
    let at = (0..=last).rev().find(|&at| {
        let comment = u16_at(tail, at + 20).map(usize::from);
        u32_at(tail, at) == Some(END) && comment == Some(tail.len() - at - END_LEN)
    })?;
    let end_64 = at
        .checked_sub(END_64_LOCATOR_LEN + END_64_LEN)
        .filter(|&end_64| u32_at(tail, end_64) == Some(END_64))
        .filter(|_| u32_at(tail, at - END_64_LOCATOR_LEN) == Some(END_64_LOCATOR));
    Some(match end_64 {
        Some(at) => {
            End { count: u64_at(tail, at + 32)?, len: u64_at(tail, at + 40)?, offset: u64_at(tail, at + 48)? }
        }
        None => End {
            count: u16_at(tail, at + 10)?.into(),
            len: u32_at(tail, at + 12)?.into(),
            offset: u32_at(tail, at + 16)?.into(),
        },
    })
}

fn parse_directory(bytes: &[u8], count: u64) -> Option<Vec<EntryInfo>> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let header = bytes.get(at..at + CENTRAL_HEADER_LEN)?;
        let (name_len, extra_len, comment_len) =
            (u16_at(header, 28)?, u16_at(header, 30)?, u16_at(header, 32)?);
        let name_at = at + CENTRAL_HEADER_LEN;
        let extra_at = name_at + usize::from(name_len);
        let comment_at = extra_at + usize::from(extra_len);
        let name = str::from_utf8(bytes.get(name_at..extra_at)?).ok()?;
        let mut info = EntryInfo {
            name: name.to_owned(),
            method: Method::from_number(u16_at(header, 10)?),
            crc32: u32_at(header, 16)?,
            compressed_len: u32_at(header, 20)?.into(),
            uncompressed_len: u32_at(header, 24)?.into(),
            header_offset: u32_at(header, 42)?.into(),
        };
        if u32_at(header, 0)? != CENTRAL_HEADER {
            return None;
        }
        take_zip64(bytes.get(extra_at..comment_at)?, &mut info)?;
        entries.push(info);
        at = comment_at + usize::from(comment_len);
    }
    (entries.len() as u64 == count && at == bytes.len()).then_some(entries)
}

/// Replaces the fields that are all ones by those of the zip64 extra field, which holds only them.
fn take_zip64(mut extra: &[u8], info: &mut EntryInfo) -> Option<()> {
    let ones = u64::from(u32::MAX);
    while let (Some(id), Some(len)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let body = extra.get(4..4 + usize::from(len))?;
        if id == ZIP64_EXTRA {
            let wanted = [&mut info.uncompressed_len, &mut info.compressed_len, &mut info.header_offset];
            for (index, field) in wanted.into_iter().filter(|field| **field == ones).enumerate() {
                *field = u64_at(body, 8 * index)?;
            }
        }
        extra = &extra[4 + usize::from(len)..];
    }
    Some(())
}

fn payload(file: &mut (impl Read + Seek), info: &EntryInfo) -> Result<Vec<u8>, Fault> {
    let header = read_at(file, info.header_offset, LOCAL_HEADER_LEN as u64)?;
    let (Some(LOCAL_HEADER), Some(name), Some(extra)) =
        (u32_at(&header, 0), u16_at(&header, 26), u16_at(&header, 28))
    else {
        return Err(Fault::Broken("its directory points at something that is no entry"));
    };
    // The local extra field's length may differ from the directory's: numpy's does.
    let headers = LOCAL_HEADER_LEN as u64 + u64::from(name) + u64::from(extra);
    let offset = info.header_offset.saturating_add(headers);
    read_at(file, offset, info.compressed_len)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::write_npz;
    use super::*;

    fn entry(name: &str, payload: Vec<u8>) -> Entry {
        Entry {
            name: name.into(),
            method: Method::Stored,
            crc32: crc32fast::hash(&payload),
            uncompressed_len: payload.len() as u64,
            payload,
        }
    }

    /// A file that counts how often it is read from a new place.
    struct Counting(Cursor<Vec<u8>>, usize);

    impl Read for Counting {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0.read(buf)
        }
    }

    impl Seek for Counting {
        fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
            self.1 += usize::from(matches!(pos, SeekFrom::Start(_)));
            self.0.seek(pos)
        }
    }

    fn counting(bytes: Vec<u8>) -> Counting {
        Counting(Cursor::new(bytes), 0)
    }

    #[test]
    fn what_was_written_is_read_back_from_the_tail() {
        let entries: Vec<Entry> = (0..96)
            .map(|layer| entry(&super::super::layer_entry_name(layer), vec![layer as u8; 3000]))
            .collect();
        let mut bytes = Vec::new();
        write_npz(&entries, &mut bytes).unwrap();
        let mut file = counting(bytes);
        let directory = directory(&mut file).unwrap();
        assert_eq!(file.1, 1, "one read");
        assert_eq!(directory.len(), 96);
        for (info, entry) in directory.iter().zip(&entries) {
            assert_eq!((&info.name, info.crc32), (&entry.name, entry.crc32));
            assert_eq!(payload(&mut file, info).unwrap(), entry.payload);
        }
    }

    #[test]
    fn more_entries_than_the_tail_holds() {
        for count in [400, 66_000] {
            let entries: Vec<Entry> = (0..count).map(|i| entry(&format!("{i}.npy"), vec![])).collect();
            let mut bytes = Vec::new();
            write_npz(&entries, &mut bytes).unwrap();
            let directory = directory(&mut counting(bytes)).unwrap();
            assert_eq!(directory.len(), count);
            assert_eq!(directory[count - 1].name, entries[count - 1].name);
        }
    }

    #[test]
    fn another_implementations_archive_with_zip64_and_comment() {
        let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
        archive.set_comment("c".repeat(40_000)).unwrap();
        let options = zip::write::SimpleFileOptions::default().large_file(true);
        archive.start_file("x.npy", options).unwrap();
        io::Write::write_all(&mut archive, &[5; 10_000]).unwrap();
        let bytes = archive.finish().unwrap().into_inner();
        let mut file = counting(bytes);
        let directory = directory(&mut file).unwrap();
        let [info] = directory.as_slice() else { panic!("{directory:?}") };
        assert_eq!(
            (info.name.as_str(), info.method, info.uncompressed_len),
            ("x.npy", Method::Deflate, 10_000)
        );
        assert_eq!(payload(&mut file, info).unwrap().len() as u64, info.compressed_len);
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_and_never_a_panic() {
        let entries = [entry("a.npy", vec![1; 50]), entry("b.npy", vec![2; 50])];
        let mut bytes = Vec::new();
        write_npz(&entries, &mut bytes).unwrap();
        for len in 0..bytes.len() {
            assert!(directory(&mut counting(bytes[..len].to_vec())).is_err(), "{len}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let mut file = counting(damaged);
                for info in directory(&mut file).into_iter().flatten() {
                    let _ = payload(&mut file, &info);
                }
            }
        }
    }
}
