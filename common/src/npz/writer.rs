//! Writing an archive around finished payloads.

use std::borrow::Borrow;
use std::io::{self, IoSlice, Write};

use super::Entry;
use super::record::*;

/// Writes an archive of `entries`, in their order, and says how many bytes it has.
///
/// Payloads go out as they lie in memory, headers between them, by vectored writes. Sizes are known
/// beforehand, so no data descriptors follow the payloads. zip64 fields appear only where a size, an
/// offset or the number of entries needs them. The bytes depend on the entries alone.
pub fn write_npz(entries: &[impl Borrow<Entry>], out: &mut impl Write) -> io::Result<u64> {
    let mut headers = Vec::new();
    // Where in `headers` each entry's local header ends.
    let mut cuts = Vec::with_capacity(entries.len());
    let mut directory = Vec::new();
    let mut offset = 0;
    for entry in entries {
        let entry = entry.borrow();
        let before = headers.len();
        local_header(entry, &mut headers);
        directory_entry(entry, offset, &mut directory);
        cuts.push(headers.len());
        offset += (headers.len() - before + entry.payload.len()) as u64;
    }
    let directory_len = directory.len() as u64;
    end(entries.len() as u64, directory_len, offset, &mut directory);

    let mut slices = Vec::with_capacity(2 * entries.len() + 1);
    let mut start = 0;
    for (entry, &end) in entries.iter().map(Borrow::borrow).zip(&cuts) {
        slices.push(IoSlice::new(&headers[start..end]));
        slices.push(IoSlice::new(&entry.payload));
        start = end;
    }
    slices.push(IoSlice::new(&directory));
    write_all_vectored(&mut slices, out)?;
    Ok(offset + directory.len() as u64)
}

/// What a 32-bit field shows where the number is in the zip64 extra field.
fn or_ones(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn is_large(value: u64) -> bool {
    value >= u32::MAX.into()
}

/// The fields local header and directory share, from the version needed to the extra field's length.
fn common_fields(entry: &Entry, version: u16, extra_len: usize, out: &mut Vec<u8>) {
    let compressed = entry.payload.len() as u64;
    // Both sizes are in the extra field, or none: the local header requires it.
    let large = is_large(compressed) || is_large(entry.uncompressed_len);
    let size = |value: u64| if large { u32::MAX } else { or_ones(value) };
    out.u16(version);
    out.u16(if entry.name.is_ascii() { 0 } else { FLAG_UTF8 });
    out.u16(entry.method.number());
    out.u16(0);
    out.u16(DATE);
    out.u32(entry.crc32);
    out.u32(size(compressed));
    out.u32(size(entry.uncompressed_len));
    out.u16(u16::try_from(entry.name.len()).expect("an entry's name is short"));
    out.u16(extra_len as u16);
}

fn size_fields(entry: &Entry) -> Vec<u64> {
    let compressed = entry.payload.len() as u64;
    if is_large(compressed) || is_large(entry.uncompressed_len) {
        vec![entry.uncompressed_len, compressed]
    } else {
        Vec::new()
    }
}

fn zip64_extra(fields: &[u64], out: &mut Vec<u8>) {
    if !fields.is_empty() {
        out.u16(ZIP64_EXTRA);
        out.u16(8 * fields.len() as u16);
        fields.iter().for_each(|&field| out.u64(field));
    }
}

fn extra_len(fields: &[u64]) -> usize {
    if fields.is_empty() { 0 } else { 4 + 8 * fields.len() }
}

fn version(fields: &[u64]) -> u16 {
    if fields.is_empty() { VERSION_DEFLATE } else { VERSION_ZIP64 }
}

fn local_header(entry: &Entry, out: &mut Vec<u8>) {
    let fields = size_fields(entry);
    out.u32(LOCAL_HEADER);
    common_fields(entry, version(&fields), extra_len(&fields), out);
    out.extend_from_slice(entry.name.as_bytes());
    zip64_extra(&fields, out);
}

fn directory_entry(entry: &Entry, offset: u64, out: &mut Vec<u8>) {
    let mut fields = size_fields(entry);
    if is_large(offset) {
        fields.push(offset);
    }
    let version = version(&fields);
    out.u32(CENTRAL_HEADER);
    out.u16(MADE_BY_UNIX | version);
    common_fields(entry, version, extra_len(&fields), out);
    out.u16(0); // comment
    out.u16(0); // disk
    out.u16(0); // internal attributes
    out.u32(UNIX_MODE);
    out.u32(or_ones(offset));
    out.extend_from_slice(entry.name.as_bytes());
    zip64_extra(&fields, out);
}

/// The end record, after a zip64 one where a number needs it.
fn end(count: u64, directory_len: u64, directory_offset: u64, out: &mut Vec<u8>) {
    if count >= u16::MAX.into() || is_large(directory_len) || is_large(directory_offset) {
        out.u32(END_64);
        out.u64(END_64_LEN as u64 - 12);
        out.u16(MADE_BY_UNIX | VERSION_ZIP64);
        out.u16(VERSION_ZIP64);
        out.u32(0); // this disk
        out.u32(0); // the directory's disk
        out.u64(count);
        out.u64(count);
        out.u64(directory_len);
        out.u64(directory_offset);
        out.u32(END_64_LOCATOR);
        out.u32(0);
        out.u64(directory_offset + directory_len);
        out.u32(1); // disks
    }
    let short_count = u16::try_from(count).unwrap_or(u16::MAX);
    out.u32(END);
    out.u16(0);
    out.u16(0);
    out.u16(short_count);
    out.u16(short_count);
    out.u32(or_ones(directory_len));
    out.u32(or_ones(directory_offset));
    out.u16(0); // comment
}

/// `Write::write_all` over several slices (the standard library's own is not stable).
pub fn write_all_vectored(mut slices: &mut [IoSlice<'_>], out: &mut impl Write) -> io::Result<()> {
    /// POSIX's limit on slices a call is 1024 on Linux; writers take fewer without complaint.
    const AT_ONCE: usize = 512;
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let few = slices.len().min(AT_ONCE);
        match out.write_vectored(&slices[..few]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};

    use super::super::Method;
    use super::*;

    fn stored(name: &str, payload: &[u8]) -> Entry {
        Entry {
            name: name.into(),
            method: Method::Stored,
            crc32: crc32fast::hash(payload),
            uncompressed_len: payload.len() as u64,
            payload: payload.into(),
        }
    }

    /// Takes a few bytes a call, from the first slice only, and is interrupted now and then.
    struct Slow(Vec<u8>, usize);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            if self.1.is_multiple_of(5) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let some = bytes.len().min(7);
            self.0.extend_from_slice(&bytes[..some]);
            Ok(some)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn another_implementation_reads_it_and_a_slow_writer_gets_the_same() {
        let entries = [stored("a.npy", b"first"), stored("b.npy", &[]), stored("c.npy", &[7; 1000])];
        let mut file = Vec::new();
        let length = write_npz(&entries, &mut file).unwrap();
        assert_eq!(length, file.len() as u64);
        let mut slow = Slow(Vec::new(), 0);
        write_npz(&entries, &mut slow).unwrap();
        assert_eq!(slow.0, file);

        let mut archive = zip::ZipArchive::new(Cursor::new(file)).unwrap();
        assert_eq!(archive.len(), 3);
        for (index, entry) in entries.iter().enumerate() {
            let mut read = archive.by_index(index).unwrap();
            assert_eq!(read.name().unwrap(), entry.name);
            let mut bytes = Vec::new();
            read.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, entry.payload);
        }
    }

    #[test]
    fn many_entries_need_zip64() {
        let entries: Vec<Entry> = (0..70_000).map(|i| stored(&i.to_string(), &[])).collect();
        let mut file = Vec::new();
        write_npz(&entries, &mut file).unwrap();
        let archive = zip::ZipArchive::new(Cursor::new(file)).unwrap();
        assert_eq!(archive.len(), entries.len());
    }

    #[test]
    fn large_numbers_move_into_the_extra_field() {
        let mut entry = stored("big.npy", b"1234");
        entry.uncompressed_len = 5 << 30;
        let mut local = Vec::new();
        local_header(&entry, &mut local);
        assert_eq!(u16_at(&local, 4), Some(VERSION_ZIP64));
        assert_eq!((u32_at(&local, 18), u32_at(&local, 22)), (Some(u32::MAX), Some(u32::MAX)));
        let extra = LOCAL_HEADER_LEN + entry.name.len();
        assert_eq!((u16_at(&local, extra), u16_at(&local, extra + 2)), (Some(1), Some(16)));
        assert_eq!((u64_at(&local, extra + 4), u64_at(&local, extra + 12)), (Some(5 << 30), Some(4)));

        // A small entry far into the file: only its offset is large.
        let mut directory = Vec::new();
        directory_entry(&stored("small.npy", b"1"), 6 << 30, &mut directory);
        let extra = CENTRAL_HEADER_LEN + "small.npy".len();
        assert_eq!(u32_at(&directory, 42), Some(u32::MAX));
        assert_eq!((u32_at(&directory, 20), u32_at(&directory, 24)), (Some(1), Some(1)));
        assert_eq!((u16_at(&directory, extra + 2), u64_at(&directory, extra + 4)), (Some(8), Some(6 << 30)));
    }
}
