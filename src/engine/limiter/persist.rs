//! The file format of saved balances, which one daemon process leaves to the next.
//!
//! ```text
//! header   magic        8   "keyward\0"
//!          kind         4   "bal\0"
//!          version      4   2
//!          boot id     16   of the kernel; zeros: unknown
//!          boottime     8   CLOCK_BOOTTIME in nanoseconds
//!          offset       8   of the time namespace, in nanoseconds, signed; minimum: unknown
//!          realtime     8   CLOCK_REALTIME in nanoseconds since 1970
//!          count        8   of records
//! records  id          16   LimitId
//!          period       8   ticks for one unit
//!          debt         8   ticks until the bucket is full, at the time in the header
//!          burst        4
//! trailer  checksum     4   CRC-32 of all preceding bytes
//! ```
//!
//! Numbers are little-endian. Only buckets that are not full have a record. Several records may
//! share an id, each with its own rate. Version 1 is read too; it has no offset, which is then
//! unknown.
//!
//! The reader trusts nothing: every field must be in range, the checksum must match before any
//! value is used, and memory grows with the records that are read, not with the count in the
//! header.

use std::io::{self, Read, Write};

use crate::limiter::clock_reading::ClockReading;
use crate::limiter::limit_id::LimitId;
use crate::limiter::rate::Rate;

const MAGIC: &[u8; 8] = b"keyward\0";
const KIND: &[u8; 4] = b"bal\0";
/// The version that is written.
const VERSION: u32 = 2;
/// The older version that is read too: it has no offset of the time namespace.
const VERSION_WITHOUT_OFFSET: u32 = 1;

/// Stands for an offset that is not known.
const UNKNOWN_OFFSET: i64 = i64::MIN;

/// Maximum number of records that memory is reserved for before any of them is read.
const MAX_RESERVED_RECORDS: usize = 1 << 12;

/// The balance of one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedBucket {
    /// Identity of its limit.
    pub id: LimitId,
    /// The rate that the balance refills at.
    pub rate: Rate,
    /// Ticks until the bucket is full, at most the capacity of `rate`.
    pub debt: u64,
}

/// Why saved balances cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The reader failed.
    #[error("cannot read it: {0}")]
    Io(#[source] io::Error),
    /// The file ends before its records and checksum are complete.
    #[error("it ends too early")]
    Truncated,
    /// The magic number or the kind is wrong.
    #[error("it is not a file of saved balances")]
    Foreign,
    /// Written by an unknown version of keyward.
    #[error("it is of version {0}; this keyward reads version {VERSION}")]
    Version(u32),
    /// A record with impossible values. Records count from 1.
    #[error("record {0} is out of range")]
    Record(u64),
    /// The checksum does not match.
    #[error("its checksum does not match")]
    Checksum,
    /// The file continues after the checksum.
    #[error("there is something after its end")]
    TrailingBytes,
}

impl From<io::Error> for DecodeError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Truncated } else { Self::Io(error) }
    }
}

/// Writes a file of saved balances to `to`.
///
/// # Errors
/// Those of `to`.
pub fn encode(
    saved_at: &ClockReading,
    buckets: impl ExactSizeIterator<Item = SavedBucket>,
    to: &mut impl Write,
) -> io::Result<()> {
    let mut to = Checksummed { inner: to, checksum: crc32fast::Hasher::new() };
    to.write_all(MAGIC)?;
    to.write_all(KIND)?;
    to.write_all(&VERSION.to_le_bytes())?;
    to.write_all(&saved_at.boot_id.unwrap_or_default())?;
    to.write_all(&saved_at.boottime.to_le_bytes())?;
    to.write_all(&saved_at.boottime_offset.unwrap_or(UNKNOWN_OFFSET).to_le_bytes())?;
    to.write_all(&saved_at.realtime.to_le_bytes())?;
    to.write_all(&(buckets.len() as u64).to_le_bytes())?;
    for SavedBucket { id, rate, debt } in buckets {
        to.write_all(&id.0)?;
        to.write_all(&rate.period().get().to_le_bytes())?;
        to.write_all(&debt.to_le_bytes())?;
        to.write_all(&rate.burst().to_le_bytes())?;
    }
    let Checksummed { inner, checksum } = to;
    inner.write_all(&checksum.finalize().to_le_bytes())
}

/// Reads a file of saved balances, completely or not at all.
///
/// # Errors
/// When the bytes are not exactly what [`encode`] writes.
pub fn decode(from: &mut impl Read) -> Result<(ClockReading, Vec<SavedBucket>), DecodeError> {
    let mut from = Checksummed { inner: from, checksum: crc32fast::Hasher::new() };
    if from.read_array()? != *MAGIC || from.read_array()? != *KIND {
        return Err(DecodeError::Foreign);
    }
    let version = u32::from_le_bytes(from.read_array()?);
    if ![VERSION, VERSION_WITHOUT_OFFSET].contains(&version) {
        return Err(DecodeError::Version(version));
    }
    let boot_id = Some(from.read_array()?).filter(|id| *id != [0; 16]);
    let boottime = u64::from_le_bytes(from.read_array()?);
    let boottime_offset = match version {
        VERSION_WITHOUT_OFFSET => None,
        _ => Some(i64::from_le_bytes(from.read_array()?)).filter(|offset| *offset != UNKNOWN_OFFSET),
    };
    let realtime = u64::from_le_bytes(from.read_array()?);
    let saved_at = ClockReading { boot_id, boottime, boottime_offset, realtime };
    let count = u64::from_le_bytes(from.read_array()?);
    let reserved = usize::try_from(count).unwrap_or(MAX_RESERVED_RECORDS).min(MAX_RESERVED_RECORDS);
    let mut buckets = Vec::with_capacity(reserved);
    for number in 1..=count {
        let id = LimitId(from.read_array()?);
        let period = u64::from_le_bytes(from.read_array()?);
        let debt = u64::from_le_bytes(from.read_array()?);
        let burst = u32::from_le_bytes(from.read_array()?);
        let rate = Rate::from_period(period, burst).ok().filter(|rate| debt <= rate.capacity());
        buckets.push(SavedBucket { id, rate: rate.ok_or(DecodeError::Record(number))?, debt });
    }
    let Checksummed { inner, checksum } = from;
    let mut trailer = [0; 4];
    inner.read_exact(&mut trailer)?;
    if u32::from_le_bytes(trailer) != checksum.finalize() {
        return Err(DecodeError::Checksum);
    }
    match inner.read(&mut [0])? {
        0 => Ok((saved_at, buckets)),
        _ => Err(DecodeError::TrailingBytes),
    }
}

/// A reader or writer that computes the checksum of the bytes that pass through it.
struct Checksummed<'a, T> {
    inner: &'a mut T,
    checksum: crc32fast::Hasher,
}

impl<T: Write> Checksummed<'_, T> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.checksum.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<T: Read> Checksummed<'_, T> {
    fn read_array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes)?;
        self.checksum.update(&bytes);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::rate::{MAX_CAPACITY_TICKS, TICKS_PER_NANOSECOND};

    const SECOND: u64 = 1_000_000_000;
    const SAVED_AT: ClockReading = ClockReading {
        boot_id: Some([7; 16]),
        boottime: 5 * SECOND,
        boottime_offset: Some(-2),
        realtime: 1_800_000_000 * SECOND,
    };

    fn bucket(id: u8, debt: u64) -> SavedBucket {
        let rate = Rate::new(10, SECOND, 100).expect("the rate is in range");
        SavedBucket { id: LimitId([id; 16]), rate, debt }
    }

    fn encoded(buckets: &[SavedBucket]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&SAVED_AT, buckets.iter().copied(), &mut bytes).expect("a vector can be written");
        bytes
    }

    fn three_buckets() -> Vec<SavedBucket> {
        vec![bucket(1, 1), bucket(2, 0), bucket(3, 100 * SECOND / 10 * TICKS_PER_NANOSECOND)]
    }

    fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
        let checksum = crc32fast::hash(&bytes);
        bytes.extend(checksum.to_le_bytes());
        bytes
    }

    #[test]
    fn encoded_balances_are_decoded_unchanged() {
        for buckets in [Vec::new(), three_buckets()] {
            assert_eq!(decode(&mut &*encoded(&buckets)).expect("it is intact"), (SAVED_AT, buckets));
        }
        let unknown = ClockReading { boot_id: None, boottime_offset: None, ..SAVED_AT };
        let mut bytes = Vec::new();
        encode(&unknown, std::iter::empty(), &mut bytes).expect("a vector can be written");
        assert_eq!(decode(&mut &*bytes).expect("it is intact").0, unknown);
    }

    /// A change to the format needs a new version.
    #[test]
    fn format_is_stable() {
        let bytes = encoded(&[bucket(0xab, 0x0102)]);
        let expected = concat!(
            "6b6579776172640062616c0002000000",
            "07070707070707070707070707070707",
            "00f2052a01000000",
            "feffffffffffffff",
            "0000b49376e2fa18",
            "0100000000000000",
            "abababababababababababababababab",
            "0008af2f00000000",
            "0201000000000000",
            "64000000",
        );
        assert_eq!(const_hex::encode(&bytes[..bytes.len() - 4]), expected);
        assert_eq!(bytes[bytes.len() - 4..], crc32fast::hash(&bytes[..bytes.len() - 4]).to_le_bytes());
    }

    #[test]
    fn version_1_is_decoded_without_an_offset() {
        let mut bytes = encoded(&three_buckets());
        bytes.truncate(bytes.len() - 4);
        bytes[12] = 1;
        bytes.drain(40..48);
        let expected = (ClockReading { boottime_offset: None, ..SAVED_AT }, three_buckets());
        assert_eq!(decode(&mut &*with_checksum(bytes)).expect("it is intact"), expected);
    }

    #[test]
    fn truncated_changed_or_extended_file_is_refused() {
        let whole = encoded(&three_buckets());
        for length in 0..whole.len() {
            let error = decode(&mut &whole[..length]).expect_err("it is truncated");
            assert!(matches!(error, DecodeError::Truncated), "{length}: {error}");
        }
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&mut &*bytes).is_err(), "bit {bit}");
        }
        let longer = [&*whole, b"x"].concat();
        assert!(matches!(decode(&mut &*longer), Err(DecodeError::TrailingBytes)));
    }

    #[test]
    fn values_out_of_range_are_refused_even_with_a_valid_checksum() {
        let header = |version: u32, count: u64| {
            let saved_at = [&[7; 16][..], &[0; 24]].concat();
            [&MAGIC[..], KIND, &version.to_le_bytes(), &saved_at, &count.to_le_bytes()].concat()
        };
        let file = |period: u64, debt: u64, burst: u32| {
            let numbers = [&period.to_le_bytes()[..], &debt.to_le_bytes(), &burst.to_le_bytes()].concat();
            with_checksum([header(VERSION, 1), vec![1; 16], numbers].concat())
        };
        assert!(decode(&mut &*file(800, 1600, 2)).is_ok());
        for (period, debt, burst) in
            [(799, 0, 1), (800, 801, 1), (0, 0, 1), (800, 0, 0), (MAX_CAPACITY_TICKS, 0, 2), (u64::MAX, 0, 1)]
        {
            let error = decode(&mut &*file(period, debt, burst)).expect_err("it is out of range");
            assert!(matches!(error, DecodeError::Record(1)), "{period} {debt} {burst}: {error}");
        }
        for wrong_count in [1, u64::MAX] {
            let error = decode(&mut &*with_checksum(header(VERSION, wrong_count))).expect_err("no records");
            assert!(matches!(error, DecodeError::Truncated), "{wrong_count}: {error}");
        }
        assert!(matches!(decode(&mut &*with_checksum(header(3, 0))), Err(DecodeError::Version(3))));
        assert!(matches!(decode(&mut &b"PNG and then some"[..]), Err(DecodeError::Foreign)));
    }
}
