//! `revocations.seq`: the high-water mark of the list, kept beside it.
//!
//! It has the list's id and the number of the last line that is durable in the list, so that a list that was emptied,
//! truncated between two lines, or replaced by an older copy shows at the next start. It is written after the list is
//! synced: whatever is lost in a crash, the mark is never ahead of the list. It is not synced itself with every line, but
//! within seconds ([`Watermark::sync`]): a list that loses lines loses them to a person or a program, and those see the
//! page cache.
//!
//! Beside that it keeps the list's own clock: milliseconds that a daemon has had the list. It decides how long a source has
//! agreed with a revocation. No step of the calendar moves it: across a restart it advances by what CLOCK_BOOTTIME or the
//! calendar says, whichever is less. After a reboot CLOCK_BOOTTIME is behind what was saved, or ahead of it by less than
//! what has passed; so the list's clock is late at times, and never early.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::file::{Identity, identity};
use crate::clock::Clock;
use keyward_state::{self as state, FileError};

/// Its name in the state directory.
pub(super) const NAME: &str = "revocations.seq";

/// Its size: it is written in place, in one sector, and blanks fill it up.
const SIZE: usize = 256;

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mark {
    /// The id of the list.
    pub(super) list: String,
    /// The number of its last line.
    pub(super) seq: u64,
    /// The list's clock when this was written.
    pub(super) clock_ms: u64,
    /// CLOCK_BOOTTIME then.
    boottime_ms: u64,
    /// The calendar then.
    realtime_ms: u64,
}

/// A mark, as it was found.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    Mark(Mark),
    /// A file that says nothing, and why.
    Damaged(String),
}

/// What the file at `path` says.
///
/// # Errors
/// When it is there and cannot be read.
pub(super) fn read(path: &Path) -> Result<Found, FileError> {
    let Some(content) = state::read(path)? else { return Ok(Found::Nothing) };
    Ok(match serde_json::from_slice(&content) {
        Ok(mark) => Found::Mark(mark),
        Err(error) => Found::Damaged(error.to_string()),
    })
}

/// The file.
pub(super) struct Watermark {
    path: PathBuf,
    list: String,
    /// Where it can be written in place, and how it was left.
    open: Option<(File, Identity)>,
    /// It has been written and not synced.
    dirty: bool,
    /// The list's clock at the start of this process, and that start.
    clock_ms: u64,
    started: Instant,
}

impl Watermark {
    /// Of the list called `list`. Its clock goes on from `before`, and is not behind `at_least`, which the list has.
    pub(super) fn new(path: PathBuf, list: String, before: Option<&Mark>, at_least: u64) -> Self {
        let clock_ms = before.map_or(0, |mark| mark.clock_ms.saturating_add(mark.elapsed_ms())).max(at_least);
        Self { path, list, open: None, dirty: false, clock_ms, started: Instant::now() }
    }

    /// The list's clock.
    pub(super) fn clock_ms(&self) -> u64 {
        self.clock().now_ms()
    }

    /// The clock's origin, for threads that only read it.
    pub(super) fn clock(&self) -> ListClock {
        ListClock { clock_ms: self.clock_ms, started: self.started }
    }

    /// Whether the file is as it was left.
    pub(super) fn is_intact(&self) -> bool {
        self.open.as_ref().is_some_and(|(_, left)| identity(&self.path) == Some(*left))
    }

    /// Writes the number of the last line. In place where that is possible, and else anew and durably.
    ///
    /// # Errors
    /// When it cannot be written; the next call writes it anew.
    pub(super) fn note(&mut self, seq: u64) -> Result<(), FileError> {
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
        let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
        let file = OpenOptions::new().write(true).custom_flags(nofollow).open(&self.path);
        let file = file.map_err(|error| self.failed("open it", error))?;
        self.open = identity(&self.path).map(|left| (file, left));
        Ok(())
    }

    /// Makes what was written survive a loss of power.
    ///
    /// # Errors
    /// When the system cannot say so.
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
        let (boottime_ms, realtime_ms) = moment();
        let mark = Mark { list: self.list.clone(), seq, clock_ms: self.clock_ms(), boottime_ms, realtime_ms };
        let mut bytes = serde_json::to_vec(&mark)?;
        bytes.resize(SIZE.max(bytes.len() + 1) - 1, b' ');
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn failed(&self, what: &'static str, error: io::Error) -> FileError {
        FileError { path: self.path.clone(), what, error }
    }
}

/// The list's clock, for threads that only read it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListClock {
    clock_ms: u64,
    started: Instant,
}

impl ListClock {
    /// Of a list that is kept nowhere.
    pub(super) fn from_zero() -> Self {
        Self { clock_ms: 0, started: Instant::now() }
    }

    pub(super) fn now_ms(self) -> u64 {
        // What was read from the disk can be any number.
        self.clock_ms.saturating_add(milliseconds(self.started.elapsed()))
    }

    /// As it will be later.
    #[cfg(test)]
    pub(super) fn after(self, time: Duration) -> Self {
        Self { clock_ms: self.clock_ms + milliseconds(time), ..self }
    }
}

impl Mark {
    /// How much of the time since it was written counts.
    fn elapsed_ms(&self) -> u64 {
        let (boottime_ms, realtime_ms) = moment();
        self.elapsed_until(boottime_ms, realtime_ms)
    }

    fn elapsed_until(&self, boottime_ms: u64, realtime_ms: u64) -> u64 {
        let by_boot = boottime_ms.saturating_sub(self.boottime_ms);
        by_boot.min(realtime_ms.saturating_sub(self.realtime_ms))
    }
}

/// CLOCK_BOOTTIME and the calendar.
fn moment() -> (u64, u64) {
    let moment = Clock::reading(None, None);
    (moment.boottime / 1_000_000, moment.realtime / 1_000_000)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(boottime_ms: u64, realtime_ms: u64) -> Mark {
        Mark { list: "x".repeat(32), seq: 1, clock_ms: 5_000, boottime_ms, realtime_ms }
    }

    /// Promise of the clock: never ahead of the time that has passed, whatever was set or rebooted.
    #[test]
    fn clock_is_late_and_never_early_across_restarts() {
        for (what, boottime, realtime, expected) in [
            ("the same boot", 1_600, 900_600, 600),
            ("the calendar was set ahead by a year", 1_600, 900_600 + 31_536_000_000, 600),
            ("the calendar was set back", 1_600, 10, 0),
            ("rebooted, and up for less", 300, 950_000, 0),
            ("rebooted, and up for longer: some of what passed", 41_000, 950_000, 40_000),
            ("copied to a host that has been up for a year", 31_536_000_000, 900_700, 700),
        ] {
            assert_eq!(mark(1_000, 900_000).elapsed_until(boottime, realtime), expected, "{what}");
        }
        let behind = Watermark::new("m".into(), String::new(), None, 77);
        assert!(behind.clock_ms() >= 77, "not behind what the list says");
        let last = Mark { clock_ms: u64::MAX, ..mark(0, 0) };
        let last = Watermark::new("m".into(), String::new(), Some(&last), u64::MAX);
        assert_eq!(last.clock_ms(), u64::MAX, "a damaged mark");
    }

    #[test]
    fn mark_is_written_in_place_and_anew_where_it_was_moved() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(NAME);
        let found = |path: &Path| match read(path).expect("reads") {
            Found::Mark(mark) => (mark.list, mark.seq),
            other => panic!("{other:?}"),
        };
        assert!(matches!(read(&path), Ok(Found::Nothing)));
        let mut watermark = Watermark::new(path.clone(), "id".to_owned(), None, 0);
        watermark.note(u64::MAX).expect("writes");
        let inode = identity(&path);
        watermark.note(3).expect("writes");
        watermark.sync().expect("durable");
        assert_eq!((found(&path), identity(&path)), (("id".to_owned(), 3), inode));
        std::fs::remove_file(&path).expect("removes");
        assert!(!watermark.is_intact());
        watermark.note(4).expect("writes");
        assert_eq!(found(&path), ("id".to_owned(), 4));
        std::fs::write(&path, "").expect("empties");
        assert!(matches!(read(&path), Ok(Found::Damaged(_))));
    }
}
