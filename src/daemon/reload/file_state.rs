//! The state of a file as its metadata shows it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

/// Two ticks of the coarsest clock that file systems take their times from.
pub(super) const TIME_GRANULARITY: Duration = Duration::from_millis(20);

/// Distinguishes the states of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileState {
    dev: u64,
    inode: u64,
    size: i64,
    /// mtime, in seconds and nanoseconds.
    modified: (i64, u64),
    /// ctime, in seconds and nanoseconds.
    changed: (i64, u64),
}

#[allow(clippy::unnecessary_cast, reason = "the widths of stat's fields differ between architectures")]
impl FileState {
    pub(super) fn new(stat: &Stat) -> Self {
        Self {
            dev: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            size: stat.st_size as i64,
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        }
    }

    /// The state of the file at `path`, if there is one.
    pub fn of(path: &Path) -> Option<Self> {
        rustix::fs::stat(path).ok().map(|stat| Self::new(&stat))
    }

    pub(super) fn of_open(file: &File) -> io::Result<Self> {
        Ok(Self::new(&rustix::fs::fstat(file)?))
    }

    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        (self.dev, self.inode) == (other.dev, other.inode)
    }

    /// Whether `before`, a state of the same file, has the same size and mtime.
    pub(super) fn is_written_as(&self, before: &Self) -> bool {
        (self.size, self.modified) == (before.size, before.modified)
    }

    /// Whether the file was written to before `other` was.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        self.modified < other.modified
    }

    /// Unix second at which the file was last written to.
    pub fn written_at(&self) -> u32 {
        u32::try_from(self.modified.0.max(0)).unwrap_or(u32::MAX)
    }

    /// The file's length in bytes.
    pub(super) fn size(&self) -> u64 {
        u64::try_from(self.size).unwrap_or(0)
    }

    /// The time since the last write to the file, and since the last change of its inode; zero if
    /// that is in the future.
    fn ages(&self) -> [Duration; 2] {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let nanoseconds =
            |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        let now = nanoseconds(now.tv_sec as i64, now.tv_nsec as i64);
        [self.modified, self.changed].map(|(seconds, rest)| {
            let age = now.saturating_sub(nanoseconds(seconds, rest as i64));
            Duration::from_nanos(u64::try_from(age).unwrap_or(0))
        })
    }

    /// How long to wait before the file may be read. A writer can set the mtime, but not the ctime.
    /// If the ctime is very recent, a later change could leave the state the same.
    ///
    /// A file that was renamed into place may be read at once, but must [not be written
    /// to](Self::until_unwritten_for) until the reading is done. If it was not complete, the
    /// reading is repeated.
    pub(super) fn until_settled(&self, settle: Duration) -> Duration {
        let [_, changed] = self.ages();
        let written = if self.was_renamed() { Duration::ZERO } else { self.until_unwritten_for(settle) };
        written.max(settle.min(TIME_GRANULARITY).saturating_sub(changed))
    }

    /// How long to wait until the file has not been written to for `settle`.
    pub(super) fn until_unwritten_for(&self, settle: Duration) -> Duration {
        settle.saturating_sub(self.ages()[0])
    }

    /// Whether the inode changed after the last write: most likely, the complete file was renamed
    /// into place.
    pub(super) fn was_renamed(&self) -> bool {
        self.changed > self.modified
    }
}

#[cfg(test)]
impl FileState {
    pub(super) fn inode(&self) -> u64 {
        self.inode
    }

    /// The state of the same file if nothing but writes had changed it.
    pub(super) fn without_rename(self) -> Self {
        Self { changed: self.modified, ..self }
    }
}
