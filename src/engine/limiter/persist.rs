//! The file format of saved balances, which one daemon process leaves to the next.
//!
//! ```text
//! header   magic        8   "keyward\0"
//!          kind         4   "bal\0"
//!          version      4   3
//!          boot id     16   of the kernel; zeros: unknown
//!          boottime     8   CLOCK_BOOTTIME in nanoseconds
//!          offset       8   of the time namespace, in nanoseconds, signed; minimum: unknown
//!          realtime     8   CLOCK_REALTIME in nanoseconds since 1970
//!          calendar     4   the latest Unix second that a calendar window was used at
//!          count        8   of records
//! records  id          16   LimitId
//!          rule        21   see `rule_bytes`
//!          spent        8   ticks until a bucket is full, at the time in the header; or what was spent
//!          start        4   of the calendar window, in quarters of an hour since 1970; 0. The highest
//!                           bit: the rule is a former one
//! trailer  checksum     4   CRC-32 of all preceding bytes
//! ```
//!
//! Numbers are little-endian. Only limits of which something is spent have records: one for each of
//! their rules, and one for each former rule that is remembered. These records share an id.
//!
//! The reader trusts nothing: every field must be in range, the checksum must match before any
//! value is used, and memory grows with the records that are read, not with the count in the
//! header.

use std::io::{self, Read, Write};

use crate::limiter::calendar::MAX_START;
use crate::limiter::clock_reading::ClockReading;
use crate::limiter::limit_id::LimitId;
use crate::limiter::rule::{Rule, SavedBalance};

const MAGIC: &[u8; 8] = b"keyward\0";
const KIND: &[u8; 4] = b"bal\0";
const VERSION: u32 = 3;

/// Stands for an offset that is not known.
const UNKNOWN_OFFSET: i64 = i64::MIN;

/// The bit of the start that marks a former rule. A start is below it.
const FORMER: u32 = 1 << 31;

const _: () = assert!(MAX_START < FORMER);

/// Maximum number of records that memory is reserved for before any of them is read.
const MAX_RESERVED_RECORDS: usize = 1 << 12;

/// The balance of a limit under one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedLimit {
    /// The identity of the limit.
    pub id: LimitId,
    /// The rule that the balance is read with.
    pub rule: Rule,
    /// Whether another rule has replaced it.
    pub is_former: bool,
    /// What is spent: of the kind of the rule, and in its range.
    pub balance: SavedBalance,
}

/// The balances of all limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedBalances {
    /// When they were saved.
    pub saved_at: ClockReading,
    /// The latest Unix second that a calendar window was used at.
    pub calendar: u32,
    /// The balances of limits of which something was spent.
    pub limits: Vec<SavedLimit>,
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
    calendar: u32,
    limits: impl ExactSizeIterator<Item = SavedLimit>,
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
    to.write_all(&calendar.to_le_bytes())?;
    to.write_all(&(limits.len() as u64).to_le_bytes())?;
    for SavedLimit { id, rule, is_former, balance } in limits {
        let (spent, start) = match balance {
            SavedBalance::Bucket { debt } => (debt, 0),
            SavedBalance::Window { start, spent } => (spent, start),
            SavedBalance::Credits { spent } => (spent, 0),
        };
        to.write_all(&id.0)?;
        to.write_all(&rule.to_bytes())?;
        to.write_all(&spent.to_le_bytes())?;
        to.write_all(&(start | if is_former { FORMER } else { 0 }).to_le_bytes())?;
    }
    let Checksummed { inner, checksum } = to;
    inner.write_all(&checksum.finalize().to_le_bytes())
}

/// Reads a file of saved balances, completely or not at all.
///
/// # Errors
/// When the bytes are not exactly what [`encode`] writes.
pub fn decode(from: &mut impl Read) -> Result<SavedBalances, DecodeError> {
    let mut from = Checksummed { inner: from, checksum: crc32fast::Hasher::new() };
    if from.read_array()? != *MAGIC || from.read_array()? != *KIND {
        return Err(DecodeError::Foreign);
    }
    let version = u32::from_le_bytes(from.read_array()?);
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let boot_id = Some(from.read_array()?).filter(|id| *id != [0; 16]);
    let boottime = u64::from_le_bytes(from.read_array()?);
    let boottime_offset =
        Some(i64::from_le_bytes(from.read_array()?)).filter(|offset| *offset != UNKNOWN_OFFSET);
    let realtime = u64::from_le_bytes(from.read_array()?);
    let saved_at = ClockReading { boot_id, boottime, boottime_offset, realtime };
    let calendar = u32::from_le_bytes(from.read_array()?);
    let count = u64::from_le_bytes(from.read_array()?);
    let reserved = usize::try_from(count).unwrap_or(MAX_RESERVED_RECORDS).min(MAX_RESERVED_RECORDS);
    let mut limits = Vec::with_capacity(reserved);
    for number in 1..=count {
        let id = LimitId(from.read_array()?);
        let rule = Rule::from_bytes(from.read_array()?);
        let spent = u64::from_le_bytes(from.read_array()?);
        let start = u32::from_le_bytes(from.read_array()?);
        let (is_former, start) = (start & FORMER != 0, start & !FORMER);
        let limit = rule
            .and_then(|rule| Some(SavedLimit { id, rule, is_former, balance: rule.balance(spent, start)? }));
        limits.push(limit.ok_or(DecodeError::Record(number))?);
    }
    let Checksummed { inner, checksum } = from;
    let mut trailer = [0; 4];
    inner.read_exact(&mut trailer)?;
    if u32::from_le_bytes(trailer) != checksum.finalize() {
        return Err(DecodeError::Checksum);
    }
    // Repeats an interrupted read, unlike `read`.
    match inner.read_exact(&mut [0]) {
        Ok(()) => Err(DecodeError::TrailingBytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Ok(SavedBalances { saved_at, calendar, limits })
        }
        Err(error) => Err(DecodeError::Io(error)),
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
    use crate::limiter::calendar::Period;
    use crate::limiter::rate::Rate;

    const SECOND: u64 = 1_000_000_000;
    const SAVED_AT: ClockReading = ClockReading {
        boot_id: Some([7; 16]),
        boottime: 5 * SECOND,
        boottime_offset: Some(-2),
        realtime: 1_800_000_000 * SECOND,
    };

    const CALENDAR: u32 = 1_800_000_000;

    fn bucket(id: u8, debt: u64) -> SavedLimit {
        let rate = Rate::new(10, SECOND, 100).expect("the rate is in range");
        let rule = Rule::bucket(rate, 20).expect("in range");
        let balance = SavedBalance::Bucket { debt };
        SavedLimit { id: LimitId([id; 16]), rule, is_former: false, balance }
    }

    fn window(id: u8, start: u32, spent: u64) -> SavedLimit {
        let rule = Rule::window(100, Period::Month(1), 5).expect("in range");
        let balance = SavedBalance::Window { start, spent };
        SavedLimit { id: LimitId([id; 16]), rule, is_former: false, balance }
    }

    fn credits(id: u8, spent: u64) -> SavedLimit {
        let rule = Rule::credits(50, 5).expect("in range");
        let balance = SavedBalance::Credits { spent };
        SavedLimit { id: LimitId([id; 16]), rule, is_former: false, balance }
    }

    fn former(limit: SavedLimit) -> SavedLimit {
        SavedLimit { is_former: true, ..limit }
    }

    fn encoded(limits: &[SavedLimit]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&SAVED_AT, CALENDAR, limits.iter().copied(), &mut bytes).expect("a vector can be written");
        bytes
    }

    fn saved(limits: Vec<SavedLimit>) -> SavedBalances {
        SavedBalances { saved_at: SAVED_AT, calendar: CALENDAR, limits }
    }

    /// One of each kind, and the extremes of a bucket: the last is at its floor.
    fn limits() -> Vec<SavedLimit> {
        // More may be spent than is admitted now: a limit may have been lowered.
        vec![
            bucket(1, 1),
            bucket(2, 0),
            bucket(3, 120 * SECOND / 10),
            window(4, 1_980_000, 101),
            credits(5, 70),
            former(bucket(1, 2)),
            former(window(4, 1_980_001, 1)),
        ]
    }

    fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
        let checksum = crc32fast::hash(&bytes);
        bytes.extend(checksum.to_le_bytes());
        bytes
    }

    /// Every other read fails as one that a signal interrupts.
    struct Interrupted<'a> {
        bytes: &'a [u8],
        is_next: bool,
    }

    impl Read for Interrupted<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            self.is_next = !self.is_next;
            if self.is_next { Err(io::ErrorKind::Interrupted.into()) } else { self.bytes.read(to) }
        }
    }

    #[test]
    fn interrupted_reads_are_repeated() {
        let bytes = encoded(&limits());
        for is_next in [false, true] {
            let mut from = Interrupted { bytes: &bytes, is_next };
            assert_eq!(decode(&mut from).expect("it is intact"), saved(limits()));
        }
    }

    #[test]
    fn encoded_balances_are_decoded_unchanged() {
        for limits in [Vec::new(), limits()] {
            assert_eq!(decode(&mut &*encoded(&limits)).expect("it is intact"), saved(limits));
        }
        let unknown = ClockReading { boot_id: None, boottime_offset: None, ..SAVED_AT };
        let mut bytes = Vec::new();
        encode(&unknown, 0, std::iter::empty(), &mut bytes).expect("a vector can be written");
        assert_eq!(decode(&mut &*bytes).expect("it is intact").saved_at, unknown);
    }

    /// A change to the format needs a new version.
    #[test]
    fn format_is_stable() {
        let windows = [window(0xcd, 0x0304, 6), former(window(0xcd, 0x0304, 6))];
        let bytes = encoded(&[bucket(0xab, 0x0102), windows[0], windows[1], credits(0xef, 7)]);
        let expected = concat!(
            "6b6579776172640062616c0003000000",
            "07070707070707070707070707070707",
            "00f2052a01000000",
            "feffffffffffffff",
            "0000b49376e2fa18",
            "00d2496b",
            "0400000000000000",
            "abababababababababababababababab",
            "0000e1f505000000000100000064000000140000000201000000000000",
            "00000000",
            "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd",
            "0164000000000000000900000000000000050000000600000000000000",
            "04030000",
            "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd",
            "0164000000000000000900000000000000050000000600000000000000",
            "04030080",
            "efefefefefefefefefefefefefefefef",
            "0232000000000000000000000000000000050000000700000000000000",
            "00000000",
        );
        assert_eq!(const_hex::encode(&bytes[..bytes.len() - 4]), expected);
        assert_eq!(bytes[bytes.len() - 4..], crc32fast::hash(&bytes[..bytes.len() - 4]).to_le_bytes());
    }

    #[test]
    fn truncated_changed_or_extended_file_is_refused() {
        let whole = encoded(&limits());
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
            let saved_at = [&[7; 16][..], &[0; 28]].concat();
            [&MAGIC[..], KIND, &version.to_le_bytes(), &saved_at, &count.to_le_bytes()].concat()
        };
        let file = |limit: SavedLimit, spent: u64, start: u32| {
            let rule = limit.rule.to_bytes();
            let numbers = [&rule[..], &spent.to_le_bytes(), &start.to_le_bytes()].concat();
            with_checksum([header(VERSION, 1), vec![1; 16], numbers].concat())
        };
        let floor = 120 * SECOND / 10;
        for (limit, spent, start) in [
            (bucket(1, 0), floor, 0),
            (window(1, 0, 0), (1 << 38) - 1, u32::MAX / 900),
            (window(1, 0, 0), 1, (1 << 31) | (u32::MAX / 900)),
            (credits(1, 0), 1 << 60, 0),
            (credits(1, 0), 1, 1 << 31),
        ] {
            assert!(decode(&mut &*file(limit, spent, start)).is_ok(), "{limit:?} {spent} {start}");
        }
        for (limit, spent, start) in [
            (bucket(1, 0), floor + 1, 0),
            (bucket(1, 0), 1, 1),
            (bucket(1, 0), 1, (1 << 31) | 1),
            (window(1, 0, 0), 1 << 38, 0),
            (window(1, 0, 0), 0, u32::MAX / 900 + 1),
            (window(1, 0, 0), 0, 1 << 30),
            (credits(1, 0), (1 << 60) + 1, 0),
            (credits(1, 0), 1, 1),
        ] {
            let error = decode(&mut &*file(limit, spent, start)).expect_err("it is out of range");
            assert!(matches!(error, DecodeError::Record(1)), "{limit:?} {spent} {start}: {error}");
        }
        let mut bytes = file(bucket(1, 0), 0, 0);
        bytes.truncate(bytes.len() - 4);
        bytes[MAGIC.len() + 60 + 16] = 3;
        let error = decode(&mut &*with_checksum(bytes)).expect_err("there is no such kind");
        assert!(matches!(error, DecodeError::Record(1)), "{error}");
        for wrong_count in [1, u64::MAX] {
            let error = decode(&mut &*with_checksum(header(VERSION, wrong_count))).expect_err("no records");
            assert!(matches!(error, DecodeError::Truncated), "{wrong_count}: {error}");
        }
        assert!(matches!(decode(&mut &*with_checksum(header(2, 0))), Err(DecodeError::Version(2))));
        assert!(matches!(decode(&mut &b"PNG and then some"[..]), Err(DecodeError::Foreign)));
    }
}
