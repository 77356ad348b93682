//! The saved balances: what a daemon leaves to the next one, as bytes.
//!
//! ```text
//! header   magic        8   "keyward\0"
//!          kind         4   "bal\0"
//!          version      4   2
//!          boot id     16   of the kernel; zeros: unknown
//!          boottime     8   CLOCK_BOOTTIME in nanoseconds
//!          offset       8   what the time namespace adds to it, in nanoseconds, signed; the least number: unknown
//!          realtime     8   CLOCK_REALTIME in nanoseconds since 1970
//!          count        8   of records
//! records  name        16   BucketName
//!          period       8   ticks for one unit
//!          debt         8   ticks until the bucket is full, at the time of the header
//!          burst        4
//! trailer  checksum     4   CRC-32 of everything before
//! ```
//!
//! Numbers are little-endian. Only buckets that are not full need a record. Several records may have one name, each with a rate
//! of its own.
//!
//! Nothing that is read is trusted: every field has to be in range, the checksum has to match before any of it is used, and
//! the memory for the records grows with what is there, not with what the count says.
//!
//! Version 1, which is read too, has no offset: it is unknown.
//!
//! Two clocks, because a balance goes on refilling while no daemon runs: [`SavedAt::ticks_since`] says which is believed when.

use std::io::{self, Read, Write};

use crate::limiter::name::BucketName;
use crate::limiter::rate::{MAX_CAPACITY_TICKS, Rate, TICKS_PER_NANOSECOND};

const MAGIC: &[u8; 8] = b"keyward\0";
const KIND: &[u8; 4] = b"bal\0";
/// A file of another version is not read: its balances are forgotten.
const VERSION: u32 = 2;
/// But this one is: it has no offset of the time namespace.
const WITHOUT_OFFSET: u32 = 1;

/// An offset that is not known.
const UNKNOWN_OFFSET: i64 = i64::MIN;

/// Records that room is made for before any of them is read.
const FIRST_RECORDS: usize = 1 << 12;

/// When balances were saved, or are read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedAt {
    /// The kernel's boot id; `None` where it is unknown.
    pub boot_id: Option<[u8; 16]>,
    /// CLOCK_BOOTTIME in nanoseconds, as the process sees it.
    pub boottime: u64,
    /// What the process's time namespace adds to the kernel's own CLOCK_BOOTTIME, in nanoseconds; `None` where that is unknown.
    pub boottime_offset: Option<i64>,
    /// CLOCK_REALTIME in nanoseconds since 1970.
    pub realtime: u64,
}

impl SavedAt {
    /// Ticks from `saved` to this moment, at most as many as fill any bucket. Within one boot by the clock that nobody can
    /// set; across boots by the calendar. If the calendar was set back, nothing has passed: too little is refilled then,
    /// never too much.
    ///
    /// A time namespace shifts the first of the two, so that two containers of one boot see different clocks. Where it is unknown by how
    /// much, the clock that says less is believed.
    pub fn ticks_since(&self, saved: &Self) -> u64 {
        let by_calendar = self.realtime.saturating_sub(saved.realtime);
        let nanoseconds = if self.boot_id.is_none() || self.boot_id != saved.boot_id {
            by_calendar
        } else if let (Some(now), Some(then)) = (self.kernel_boottime(), saved.kernel_boottime()) {
            u64::try_from(now.saturating_sub(then)).unwrap_or(0)
        } else {
            self.boottime.saturating_sub(saved.boottime).min(by_calendar)
        };
        nanoseconds.saturating_mul(TICKS_PER_NANOSECOND).min(MAX_CAPACITY_TICKS)
    }

    /// CLOCK_BOOTTIME in nanoseconds, as processes outside of all time namespaces see it.
    fn kernel_boottime(&self) -> Option<i64> {
        i64::try_from(self.boottime).ok()?.checked_sub(self.boottime_offset?)
    }
}

/// The balance of one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedBucket {
    /// What it is found again by.
    pub name: BucketName,
    /// The rate that the balance counts in.
    pub rate: Rate,
    /// Ticks until it is full, at most its capacity.
    pub debt: u64,
}

/// Why a file's balances cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The system says no.
    #[error("cannot read it: {0}")]
    Io(io::Error),
    /// Shorter than it says it is.
    #[error("it ends too early")]
    Truncated,
    /// The first bytes are not those of saved balances.
    #[error("it is not a file of saved balances")]
    Foreign,
    /// Written by another keyward.
    #[error("it is of version {0}; this keyward reads version {VERSION}")]
    Version(u32),
    /// A bucket that cannot be. Records count from 1.
    #[error("record {0} is out of range")]
    Record(u64),
    /// It was changed after it was written.
    #[error("its checksum does not match")]
    Checksum,
    /// More bytes than it says.
    #[error("there is something after its end")]
    TrailingBytes,
}

impl From<io::Error> for DecodeError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Truncated } else { Self::Io(error) }
    }
}

/// Writes a file.
///
/// # Errors
/// Those of `to`.
pub fn encode(
    stamp: &SavedAt,
    buckets: impl ExactSizeIterator<Item = SavedBucket>,
    to: &mut impl Write,
) -> io::Result<()> {
    let mut to = Checked { inner: to, sum: crc32fast::Hasher::new() };
    to.write_all(MAGIC)?;
    to.write_all(KIND)?;
    to.write_all(&VERSION.to_le_bytes())?;
    to.write_all(&stamp.boot_id.unwrap_or_default())?;
    to.write_all(&stamp.boottime.to_le_bytes())?;
    to.write_all(&stamp.boottime_offset.unwrap_or(UNKNOWN_OFFSET).to_le_bytes())?;
    to.write_all(&stamp.realtime.to_le_bytes())?;
    to.write_all(&(buckets.len() as u64).to_le_bytes())?;
    for SavedBucket { name, rate, debt } in buckets {
        to.write_all(&name.0)?;
        to.write_all(&rate.period().get().to_le_bytes())?;
        to.write_all(&debt.to_le_bytes())?;
        to.write_all(&rate.burst().to_le_bytes())?;
    }
    let Checked { inner, sum } = to;
    inner.write_all(&sum.finalize().to_le_bytes())
}

/// Reads a file: all of it, or nothing.
///
/// # Errors
/// When it is not, byte for byte, what [`encode`] wrote.
pub fn decode(from: &mut impl Read) -> Result<(SavedAt, Vec<SavedBucket>), DecodeError> {
    let mut from = Checked { inner: from, sum: crc32fast::Hasher::new() };
    if from.array()? != *MAGIC || from.array()? != *KIND {
        return Err(DecodeError::Foreign);
    }
    let version = u32::from_le_bytes(from.array()?);
    if ![VERSION, WITHOUT_OFFSET].contains(&version) {
        return Err(DecodeError::Version(version));
    }
    let boot_id = Some(from.array()?).filter(|id| *id != [0; 16]);
    let boottime = u64::from_le_bytes(from.array()?);
    let boottime_offset = match version {
        WITHOUT_OFFSET => None,
        _ => Some(i64::from_le_bytes(from.array()?)).filter(|offset| *offset != UNKNOWN_OFFSET),
    };
    let realtime = u64::from_le_bytes(from.array()?);
    let stamp = SavedAt { boot_id, boottime, boottime_offset, realtime };
    let count = u64::from_le_bytes(from.array()?);
    let mut buckets = Vec::with_capacity(usize::try_from(count).unwrap_or(FIRST_RECORDS).min(FIRST_RECORDS));
    for number in 1..=count {
        let name = BucketName(from.array()?);
        let period = u64::from_le_bytes(from.array()?);
        let debt = u64::from_le_bytes(from.array()?);
        let burst = u32::from_le_bytes(from.array()?);
        let rate = Rate::from_period(period, burst).ok().filter(|rate| debt <= rate.capacity());
        buckets.push(SavedBucket { name, rate: rate.ok_or(DecodeError::Record(number))?, debt });
    }
    let Checked { inner, sum } = from;
    let mut trailer = [0; 4];
    inner.read_exact(&mut trailer)?;
    if u32::from_le_bytes(trailer) != sum.finalize() {
        return Err(DecodeError::Checksum);
    }
    match inner.read(&mut [0])? {
        0 => Ok((stamp, buckets)),
        _ => Err(DecodeError::TrailingBytes),
    }
}

/// Sums up what passes through.
struct Checked<'a, T> {
    inner: &'a mut T,
    sum: crc32fast::Hasher,
}

impl<T: Write> Checked<'_, T> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<T: Read> Checked<'_, T> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes)?;
        self.sum.update(&bytes);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const STAMP: SavedAt = SavedAt {
        boot_id: Some([7; 16]),
        boottime: 5 * SECOND,
        boottime_offset: Some(-2),
        realtime: 1_800_000_000 * SECOND,
    };

    fn bucket(id: u8, debt: u64) -> SavedBucket {
        let rate = Rate::new(10, SECOND, 100).expect("in range");
        SavedBucket { name: BucketName([id; 16]), rate, debt }
    }

    fn encoded(buckets: &[SavedBucket]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&STAMP, buckets.iter().copied(), &mut bytes).expect("memory");
        bytes
    }

    fn three() -> Vec<SavedBucket> {
        vec![bucket(1, 1), bucket(2, 0), bucket(3, 100 * SECOND / 10 * TICKS_PER_NANOSECOND)]
    }

    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let sum = crc32fast::hash(&bytes);
        bytes.extend(sum.to_le_bytes());
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        for buckets in [Vec::new(), three()] {
            assert_eq!(decode(&mut &*encoded(&buckets)).expect("intact"), (STAMP, buckets));
        }
        let unknown = SavedAt { boot_id: None, boottime_offset: None, ..STAMP };
        let mut bytes = Vec::new();
        encode(&unknown, std::iter::empty(), &mut bytes).expect("memory");
        assert_eq!(decode(&mut &*bytes).expect("intact").0, unknown);
    }

    /// The form is kept in files: whoever changes it has to change the version.
    #[test]
    fn the_form_is_fixed() {
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
    fn file_of_version_1_is_read_without_an_offset() {
        let mut bytes = encoded(&three());
        bytes.truncate(bytes.len() - 4);
        bytes[12] = 1;
        bytes.drain(40..48);
        let expected = (SavedAt { boottime_offset: None, ..STAMP }, three());
        assert_eq!(decode(&mut &*sealed(bytes)).expect("intact"), expected);
    }

    #[test]
    fn every_damage_is_noticed() {
        let whole = encoded(&three());
        for length in 0..whole.len() {
            let error = decode(&mut &whole[..length]).expect_err("cut off");
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
    fn what_cannot_be_is_refused_whatever_the_checksum_says() {
        let header = |version: u32, count: u64| {
            let stamp = [&[7; 16][..], &[0; 24]].concat();
            [&MAGIC[..], KIND, &version.to_le_bytes(), &stamp, &count.to_le_bytes()].concat()
        };
        let record = |period: u64, debt: u64, burst: u32| {
            let numbers = [&period.to_le_bytes()[..], &debt.to_le_bytes(), &burst.to_le_bytes()].concat();
            sealed([header(VERSION, 1), vec![1; 16], numbers].concat())
        };
        assert!(decode(&mut &*record(800, 1600, 2)).is_ok());
        for (period, debt, burst) in
            [(799, 0, 1), (800, 801, 1), (0, 0, 1), (800, 0, 0), (MAX_CAPACITY_TICKS, 0, 2), (u64::MAX, 0, 1)]
        {
            let error = decode(&mut &*record(period, debt, burst)).expect_err("out of range");
            assert!(matches!(error, DecodeError::Record(1)), "{period} {debt} {burst}: {error}");
        }
        for lie in [1, u64::MAX] {
            assert!(
                matches!(decode(&mut &*sealed(header(VERSION, lie))), Err(DecodeError::Truncated)),
                "{lie}"
            );
        }
        assert!(matches!(decode(&mut &*sealed(header(3, 0))), Err(DecodeError::Version(3))));
        assert!(matches!(decode(&mut &b"PNG and then some"[..]), Err(DecodeError::Foreign)));
    }

    #[test]
    fn shifted_boottime_of_a_time_namespace_refills_nothing() {
        let at = |boottime: u64, offset: Option<i64>, realtime: u64| SavedAt {
            boot_id: Some([1; 16]),
            boottime: boottime * SECOND,
            boottime_offset: offset.map(|offset| offset * SECOND as i64),
            realtime: realtime * SECOND,
        };
        // (saved, now, seconds that have passed)
        let table = [
            (at(100, Some(0), 1000), at(100_107, Some(100_000), 1007), 7),
            (at(100_100, Some(100_000), 1000), at(107, Some(0), 1007), 7),
            (at(50, Some(-60), 1000), at(1_117, Some(1_000), 1007), 7),
            (at(100, Some(0), 1000), at(107, Some(0), 10), 7),
            (at(100, None, 1000), at(100_107, Some(100_000), 1007), 7),
            (at(100, Some(0), 1000), at(100_107, None, 1007), 7),
            (at(100, None, 1000), at(107, None, 9999), 7),
            (at(100, None, 1000), at(107, None, 10), 0),
            (at(100, Some(0), 1000), at(107, Some(8), 1007), 0),
            (at(100, Some(i64::MAX / SECOND as i64), 1000), at(107, Some(0), 1007), u64::MAX),
        ];
        for (saved, now, seconds) in table {
            let expected = seconds.saturating_mul(SECOND).saturating_mul(TICKS_PER_NANOSECOND);
            assert_eq!(now.ticks_since(&saved), expected.min(MAX_CAPACITY_TICKS), "{saved:?} {now:?}");
        }
    }

    #[test]
    fn time_is_the_boots_own_or_the_calendars_and_never_runs_back() {
        let at = |boot_id, boottime, realtime| SavedAt {
            boot_id,
            boottime: boottime * SECOND,
            boottime_offset: Some(0),
            realtime: realtime * SECOND,
        };
        let (one, two) = (Some([1; 16]), Some([2; 16]));
        let saved = at(one, 100, 1000);
        let seconds =
            |stamp: SavedAt, saved: SavedAt| stamp.ticks_since(&saved) / TICKS_PER_NANOSECOND / SECOND;
        assert_eq!(seconds(at(one, 107, 9999), saved), 7, "the calendar was set");
        assert_eq!(seconds(at(one, 99, 9999), saved), 0);
        assert_eq!(seconds(at(two, 5, 1060), saved), 60, "a reboot");
        assert_eq!(seconds(at(two, 5, 900), saved), 0, "a reboot, and the calendar was set back");
        assert_eq!(seconds(at(None, 107, 1001), at(None, 100, 1000)), 1, "unknown boots are not the same");
        assert_eq!(at(two, 0, u64::MAX / SECOND).ticks_since(&saved), MAX_CAPACITY_TICKS);
    }
}
