//! `revocations.seq`: the high-water mark of the list.
//!
//! The mark has the list's id and the number of the last durable line. So the next start detects a
//! list that was emptied, truncated between two lines, or replaced by an older copy. The mark is
//! written after the list is synced, so it is never ahead of the list, even after a crash. It is
//! synced within seconds, not with every line ([`WatermarkFile::sync`]). It detects files changed
//! by people or programs, for which the page cache suffices.
//!
//! The mark also stores the list's clock: the milliseconds that a daemon has had the list. It
//! measures how long the source has confirmed a revocation. Setting the system time does not move
//! it. Across a restart it advances by the smaller of the differences of CLOCK_BOOTTIME and of the
//! system time. After a reboot, CLOCK_BOOTTIME is behind the stored value, or ahead of it by less
//! than the time that has passed. So the list's clock may run behind, never ahead.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::list_file::{Identity, identity};
use crate::clock::Clock;
use keyward_state::disk::File;
use keyward_state::time::Instant;
use keyward_state::{self as state, FileError};

/// The name of the file.
pub(super) const NAME: &str = "revocations.seq";

/// The size of the file. It is written in place, in one sector, and padded with blanks.
const SIZE: usize = 256;

/// Maximum length of the file that is read. Only an id that no daemon has written makes it longer
/// than [`SIZE`].
const MAX_BYTES: u64 = 4 << 10;

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WatermarkRecord {
    /// The list's id.
    pub(super) list: String,
    /// The number of the list's last line.
    pub(super) seq: u64,
    /// The list's clock when the mark was written.
    pub(super) clock_ms: u64,
    /// CLOCK_BOOTTIME at that time.
    boottime_ms: u64,
    /// The system time at that time.
    realtime_ms: u64,
}

/// The mark on disk.
#[derive(Debug)]
pub(super) enum StoredRecord {
    Missing,
    Valid(WatermarkRecord),
    /// The file cannot be decoded; the message says why.
    Damaged(String),
}

/// Reads the mark at `path`.
///
/// # Errors
/// When the file exists and cannot be read.
pub(super) fn read(path: &Path) -> Result<StoredRecord, FileError> {
    let Some(content) = state::read(path, MAX_BYTES)? else { return Ok(StoredRecord::Missing) };
    Ok(match serde_json::from_slice(&content) {
        Ok(mark) => StoredRecord::Valid(mark),
        Err(error) => StoredRecord::Damaged(error.to_string()),
    })
}

/// Writes the mark, in place if possible.
pub(super) struct WatermarkFile {
    path: PathBuf,
    list: String,
    /// The file to be written in place, and its identity after the last write.
    open: Option<(File, Identity)>,
    /// Whether it has been written since the last sync.
    dirty: bool,
    /// The list's clock at the start of this process, and the time of that start.
    clock_ms: u64,
    started: Instant,
}

impl WatermarkFile {
    /// The mark of the list with the id `list`. Its clock continues from `before`, and is at least
    /// `min_clock_ms`, which the list contains.
    pub(super) fn new(
        path: PathBuf,
        list: String,
        before: Option<&WatermarkRecord>,
        min_clock_ms: u64,
    ) -> Self {
        let clock_ms =
            before.map_or(0, |mark| mark.clock_ms.saturating_add(mark.elapsed_ms())).max(min_clock_ms);
        Self { path, list, open: None, dirty: false, clock_ms, started: Instant::now() }
    }

    /// The list's clock.
    pub(super) fn clock_ms(&self) -> u64 {
        self.clock().now_ms()
    }

    /// The list's clock, for other threads.
    pub(super) fn clock(&self) -> ListClock {
        ListClock { clock_ms: self.clock_ms, started: self.started }
    }

    /// Whether the file is as the last write left it.
    pub(super) fn is_intact(&self) -> bool {
        self.open.as_ref().is_some_and(|(_, last)| identity(&self.path) == Some(*last))
    }

    /// Writes the number of the last line: in place if possible, or else by replacing the file
    /// durably.
    ///
    /// # Errors
    /// When it cannot be written. The next call replaces the file.
    pub(super) fn write(&mut self, seq: u64) -> Result<(), FileError> {
        let bytes = self.encode(seq).map_err(|error| self.failed("encode it", error))?;
        if self.is_intact()
            && let Some((file, _)) = &self.open
            && file.write_all_at(&bytes, 0).is_ok()
        {
            self.dirty = true;
            return Ok(());
        }
        self.open = None;
        state::replace(&self.path, |writer| io::Write::write_all(writer, &bytes))?;
        self.dirty = false;
        let file = File::open_existing(&self.path).map_err(|error| self.failed("open it", error))?;
        self.open = identity(&self.path).map(|last| (file, last));
        Ok(())
    }

    /// Makes the mark survive a loss of power.
    ///
    /// # Errors
    /// When the sync fails.
    pub(super) fn sync(&mut self) -> Result<(), FileError> {
        if let (true, Some((file, _))) = (self.dirty, &self.open) {
            if let Err(error) = file.sync_data() {
                self.open = None;
                return Err(self.failed("make it durable", error));
            }
            self.dirty = false;
        }
        Ok(())
    }

    fn encode(&self, seq: u64) -> io::Result<Vec<u8>> {
        let (boottime_ms, realtime_ms) = clocks_ms();
        let mark = WatermarkRecord {
            list: self.list.clone(),
            seq,
            clock_ms: self.clock_ms(),
            boottime_ms,
            realtime_ms,
        };
        let mut bytes = serde_json::to_vec(&mark)?;
        bytes.resize(SIZE.max(bytes.len() + 1) - 1, b' ');
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn failed(&self, action: &'static str, error: io::Error) -> FileError {
        FileError { path: self.path.clone(), action, error }
    }
}

/// The list's clock. It can be copied to other threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListClock {
    clock_ms: u64,
    started: Instant,
}

impl ListClock {
    /// The clock of a list that is not stored.
    pub(super) fn from_zero() -> Self {
        Self { clock_ms: 0, started: Instant::now() }
    }

    pub(super) fn now_ms(self) -> u64 {
        // Saturating: the number on disk may be damaged.
        self.clock_ms.saturating_add(milliseconds(self.started.elapsed()))
    }

    /// The same clock, advanced by `time`.
    #[cfg(test)]
    pub(super) fn after(self, time: Duration) -> Self {
        Self { clock_ms: self.clock_ms + milliseconds(time), ..self }
    }
}

impl WatermarkRecord {
    /// By how much the list's clock has advanced since the mark was written.
    fn elapsed_ms(&self) -> u64 {
        let (boottime_ms, realtime_ms) = clocks_ms();
        self.elapsed_until(boottime_ms, realtime_ms)
    }

    fn elapsed_until(&self, boottime_ms: u64, realtime_ms: u64) -> u64 {
        let by_boot = boottime_ms.saturating_sub(self.boottime_ms);
        by_boot.min(realtime_ms.saturating_sub(self.realtime_ms))
    }
}

/// CLOCK_BOOTTIME and the system time, in milliseconds.
fn clocks_ms() -> (u64, u64) {
    let reading = Clock::reading(None, None);
    (reading.boottime / 1_000_000, reading.realtime / 1_000_000)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(boottime_ms: u64, realtime_ms: u64) -> WatermarkRecord {
        WatermarkRecord { list: "x".repeat(32), seq: 1, clock_ms: 5_000, boottime_ms, realtime_ms }
    }

    #[test]
    fn clock_is_never_early_across_restarts() {
        for (what, boottime, realtime, expected) in [
            ("the same boot", 1_600, 900_600, 600),
            ("the system time was set ahead by a year", 1_600, 900_600 + 31_536_000_000, 600),
            ("the system time was set back", 1_600, 10, 0),
            ("rebooted, and up for less", 300, 950_000, 0),
            ("rebooted, and up for longer than before", 41_000, 950_000, 40_000),
            ("copied to a host that has been up for a year", 31_536_000_000, 900_700, 700),
        ] {
            assert_eq!(mark(1_000, 900_000).elapsed_until(boottime, realtime), expected, "{what}");
        }
        let behind = WatermarkFile::new("m".into(), String::new(), None, 77);
        assert!(behind.clock_ms() >= 77, "not behind the list");
        let last = WatermarkRecord { clock_ms: u64::MAX, ..mark(0, 0) };
        let last = WatermarkFile::new("m".into(), String::new(), Some(&last), u64::MAX);
        assert_eq!(last.clock_ms(), u64::MAX, "a damaged mark saturates");
    }

    #[test]
    fn mark_is_written_in_place_and_recreated_if_it_was_moved() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(NAME);
        let found = |path: &Path| match read(path).expect("reads") {
            StoredRecord::Valid(mark) => (mark.list, mark.seq),
            other => panic!("{other:?}"),
        };
        assert!(matches!(read(&path), Ok(StoredRecord::Missing)));
        let mut watermark = WatermarkFile::new(path.clone(), "id".to_owned(), None, 0);
        watermark.write(u64::MAX).expect("writes");
        let inode = identity(&path);
        watermark.write(3).expect("writes");
        watermark.sync().expect("durable");
        assert_eq!((found(&path), identity(&path)), (("id".to_owned(), 3), inode));
        std::fs::remove_file(&path).expect("removes");
        assert!(!watermark.is_intact());
        watermark.write(4).expect("writes");
        assert_eq!(found(&path), ("id".to_owned(), 4));
        std::fs::write(&path, "").expect("empties");
        assert!(matches!(read(&path), Ok(StoredRecord::Damaged(_))));
    }
}
