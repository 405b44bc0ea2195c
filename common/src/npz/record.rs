//! The zip records lenspool writes and reads, field by field (PKWARE's APPNOTE.TXT 6.3, sections 4.3.7,
//! 4.3.12, 4.3.14 to 4.3.16 and 4.5.3).

pub(super) const LOCAL_HEADER: u32 = 0x0403_4b50;
pub(super) const CENTRAL_HEADER: u32 = 0x0201_4b50;
pub(super) const END: u32 = 0x0605_4b50;
pub(super) const END_64: u32 = 0x0606_4b50;
pub(super) const END_64_LOCATOR: u32 = 0x0706_4b50;

/// Length of a local header before its name.
pub(super) const LOCAL_HEADER_LEN: usize = 30;
/// Length of a directory entry before its name.
pub(super) const CENTRAL_HEADER_LEN: usize = 46;
/// Length of the end record without a comment.
pub(super) const END_LEN: usize = 22;
/// Length of the zip64 end record.
pub(super) const END_64_LEN: usize = 56;
/// Length of the zip64 end record's locator.
pub(super) const END_64_LOCATOR_LEN: usize = 20;

/// The extra field that holds what does not fit into 32 bits.
pub(super) const ZIP64_EXTRA: u16 = 1;

/// Versions of the specification needed to read an entry.
pub(super) const VERSION_DEFLATE: u16 = 20;
pub(super) const VERSION_ZIP64: u16 = 45;

/// 1980-01-01, the earliest date a zip can hold: the same arrays give the same bytes whenever written.
/// numpy writes the same.
pub(super) const DATE: u16 = 1 << 5 | 1;

/// A regular file, readable by all.
pub(super) const UNIX_MODE: u32 = 0o100_644 << 16;
/// Made on Unix.
pub(super) const MADE_BY_UNIX: u16 = 3 << 8;

/// Name is UTF-8.
pub(super) const FLAG_UTF8: u16 = 1 << 11;

/// Appends little-endian fields.
pub(super) trait Fields {
    fn u16(&mut self, value: u16);
    fn u32(&mut self, value: u32);
    fn u64(&mut self, value: u64);
}

impl Fields for Vec<u8> {
    fn u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }
}

/// The 16-bit field at `at`; `None` past the end.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The 32-bit field at `at`; `None` past the end.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The 64-bit field at `at`; `None` past the end.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
