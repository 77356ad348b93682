//! Reading an export into a table of keys, and being sure that it was one export from its beginning to its end.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags, Stat};
use serde::{Deserialize, Serialize};

use crate::record::{KeyRecord, Plans};
use crate::reload::{Failure, read};
use crate::snapshot::{Builder, Keys, RowPolicies};
use crate::source::{Format, Layout};

/// How long a file may be written to before it is read as it is, as a multiple of `settle`: then the reading finds
/// that it changes, and says so.
const MAX_SETTLE: u32 = 100;

/// Two ticks of the coarsest clock that file systems take their times from.
const TIME_GRANULARITY: Duration = Duration::from_millis(20);

const O_NONBLOCK: i32 = OFlags::NONBLOCK.bits() as i32;

/// Where keys come from, and how to read them.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceFile {
    /// The export.
    pub path: Box<Path>,
    /// How it is written.
    pub format: Format,
    /// What its columns are called.
    pub layout: Layout,
    /// The plans that its rows may name.
    pub plans: Arc<Plans>,
}

/// What tells one state of a file from another, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileState {
    dev: u64,
    inode: u64,
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

/// A table, and the file that it was read from.
pub struct Loaded {
    /// The keys.
    pub keys: Keys,
    /// What it takes to write them to a compiled file.
    pub policies: RowPolicies,
    /// The file, still open.
    pub file: File,
    /// The file as it was throughout the reading.
    pub state: FileState,
    /// Unix second at which what is in it was written: a compiled file is as old as its source.
    pub written_at: u32,
}

/// The same with the table still open.
pub struct Built {
    /// The rows.
    pub builder: Builder,
    /// As of [`Loaded`].
    pub file: File,
    /// As of [`Loaded`].
    pub state: FileState,
    /// As of [`Loaded`].
    pub written_at: u32,
}

#[allow(clippy::unnecessary_cast, reason = "the widths of stat's fields differ between architectures")]
impl FileState {
    fn new(stat: &Stat) -> Self {
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

    /// Whether it has the size and the time of writing of `before`, which is one of the same file.
    fn is_written_as(&self, before: &Self) -> bool {
        (self.size, self.modified) == (before.size, before.modified)
    }

    /// Unix second at which the file was last written to.
    pub fn written_at(&self) -> u32 {
        u32::try_from(self.modified.0.max(0)).unwrap_or(u32::MAX)
    }

    /// Bytes in it.
    pub(super) fn size(&self) -> u64 {
        u64::try_from(self.size).unwrap_or(0)
    }

    /// How long ago the file was last written to, or its inode last changed; zero where that is in the future.
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

    /// How much longer it has to hold still before it is read, to have done so for `settle`. Whoever writes can set the time of
    /// writing, but not that of the change: where that is only just past, a later change could leave the file looking the same.
    ///
    /// One that was renamed into place can be read at once all the same, and [has to have held still](Self::unwritten) when that is
    /// done. If it was not complete after all, it is read in vain.
    fn unsettled(&self, settle: Duration) -> Duration {
        let [_, changed] = self.ages();
        let written = if self.is_placed() { Duration::ZERO } else { self.unwritten(settle) };
        written.max(settle.min(TIME_GRANULARITY).saturating_sub(changed))
    }

    /// How much longer it must not be written to, to not have been for `settle`.
    fn unwritten(&self, settle: Duration) -> Duration {
        settle.saturating_sub(self.ages()[0])
    }

    /// Whether something else was done to it after it was written: most likely, it was renamed into place, and is complete.
    fn is_placed(&self) -> bool {
        self.changed > self.modified
    }
}

impl SourceFile {
    /// Waits until nobody has written to the file for `settle`, so that one that is being written in place is not read
    /// half way. A file that was renamed into place is only given the time until a change of it shows; one whose time is in
    /// the future is watched for as long as if it had been written now.
    pub fn settle(&self, settle: Duration) {
        let give_up = Instant::now() + settle.saturating_mul(MAX_SETTLE);
        let mut before = None;
        while let Some(state) = FileState::of(&self.path) {
            let wait = state.unsettled(settle);
            if wait.is_zero() || before == Some(state) || Instant::now() >= give_up {
                return;
            }
            before = Some(state);
            // File times are coarse: they can be a clock tick behind.
            thread::sleep(wait.max(Duration::from_millis(1)));
        }
    }

    /// Reads the whole file. `seed` keys the table; a compiled file has its own.
    ///
    /// # Errors
    /// When it cannot be read, changes meanwhile, or has findings; never a part of it.
    pub fn load(&self, seed: u64) -> Result<Loaded, Failure> {
        self.load_settled(seed, Duration::ZERO)
    }

    /// As [`load`](Self::load), and is sure that nobody has written to the file for `settle`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_settled(&self, seed: u64, settle: Duration) -> Result<Loaded, Failure> {
        self.build_settled(seed, settle, None, &mut |_| {}).map(Loaded::new)
    }

    /// As [`load`](Self::load), and shows `see` every row that is taken, with its line; those of a compiled file are counted.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_seen(&self, seed: u64, see: &mut See<'_>) -> Result<Loaded, Failure> {
        self.build(seed, Some(see), &mut |_| {}).map(Loaded::new)
    }

    /// As [`load_seen`](Self::load_seen), and leaves the table open. `progress` is told how many bytes have been read.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn build(
        &self,
        seed: u64,
        see: Option<&mut See<'_>>,
        progress: &mut Tell<'_>,
    ) -> Result<Built, Failure> {
        self.build_settled(seed, Duration::ZERO, see, progress)
    }

    fn build_settled(
        &self,
        seed: u64,
        settle: Duration,
        mut see: Option<&mut See<'_>>,
        progress: &mut Tell<'_>,
    ) -> Result<Built, Failure> {
        let io = |error| Failure::Io { path: self.path.to_path_buf(), error };
        // Without O_NONBLOCK, opening a named pipe would wait for its writer, and with it every later reload.
        let mut file = File::options().read(true).custom_flags(O_NONBLOCK).open(&self.path).map_err(io)?;
        let before = rustix::fs::fstat(&file).map_err(|error| io(error.into()))?;
        if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
            return Err(Failure::NotAFile { path: self.path.to_path_buf() });
        }
        let mut state = FileState::new(&before);
        // Who sees the rows sees them once.
        let mut may_repeat = see.is_none();
        loop {
            let read = read::Source { origin: self, file: &file, size: state.size(), seed }
                .read(see.take(), progress);
            if state.is_placed() {
                thread::sleep(state.unwritten(settle));
            }
            // First whether it was one file at all: what was read of two halves would be blamed on the wrong thing.
            let after = FileState::of_open(&file).map_err(io)?;
            if after == state {
                let (builder, source_time) = read?;
                let written_at = state.written_at();
                let written_at = source_time.map_or(written_at, |source| source.min(written_at));
                return Ok(Built { builder, file, state, written_at });
            }
            if !std::mem::take(&mut may_repeat) || !after.is_written_as(&state) {
                return Err(Failure::Changing { path: self.path.to_path_buf() });
            }
            // Most likely another was renamed over it. If the next were read instead, who replaces the file more often than it
            // settles would keep any from being taken. But that nobody has written to it is not sure either: a time of writing
            // can be set back. So the same file is read again, and must not change in any way while it is: who renames cannot
            // change any more what has no name, and who writes still does.
            drop(read);
            thread::sleep(after.unsettled(settle));
            state = FileState::of_open(&file).map_err(io)?;
            if !state.is_written_as(&after) {
                return Err(Failure::Changing { path: self.path.to_path_buf() });
            }
            file.seek(SeekFrom::Start(0)).map_err(io)?;
        }
    }
}

/// Is shown rows.
pub type See<'s> = dyn FnMut(u64, &KeyRecord<'_>) + 's;

/// Is told how many bytes have been read.
pub(crate) type Tell<'t> = dyn FnMut(u64) + Send + 't;

impl Loaded {
    fn new(Built { builder, file, state, written_at }: Built) -> Self {
        let (keys, policies) = builder.finish_with_policies();
        Self { keys, policies, file, state, written_at }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::SystemTime;

    use super::*;

    /// A file that was last written a moment before something else was done to it.
    fn placed(ago: Duration) -> (tempfile::TempDir, SourceFile) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("keys.csv");
        std::fs::write(&path, format!("key_hash,key_id\n{:064x},k\n", 1)).expect("writes");
        let file = File::options().write(true).open(&path).expect("opens");
        file.set_modified(SystemTime::now() - ago).expect("sets the time");
        let (format, layout, plans) = (Format::Csv, Layout::default(), Arc::default());
        (directory, SourceFile { path: path.into(), format, layout, plans })
    }

    #[test]
    fn what_was_renamed_into_place_is_read_before_it_has_settled_and_taken_after_that() {
        let settle = Duration::from_millis(400);
        let (_directory, source) = placed(Duration::from_millis(100));
        let state = FileState::of(&source.path).expect("a file");
        assert!(state.is_placed() && state.unsettled(settle) <= TIME_GRANULARITY);
        let loaded = source.load_settled(7, settle).expect("loads");
        assert_eq!((loaded.keys.len(), loaded.state), (1, state));
        assert_eq!(state.unwritten(settle), Duration::ZERO, "nobody has written to it for so long");
    }

    /// Loads `source`, and does something whenever some of it has been read.
    fn load_and(source: &SourceFile, mut meanwhile: impl FnMut() + Send) -> Result<Loaded, Failure> {
        let settle = Duration::from_millis(200);
        source.settle(settle);
        source.build_settled(7, settle, None, &mut |_| meanwhile()).map(Loaded::new)
    }

    #[test]
    fn what_is_replaced_while_it_is_read_is_taken_as_it_was() {
        let (directory, source) = placed(Duration::from_millis(100));
        let state = FileState::of(&source.path).expect("a file");
        let loaded = load_and(&source, || {
            let new = directory.path().join("new.csv");
            std::fs::write(&new, "something else").expect("writes");
            std::fs::rename(&new, &source.path).expect("renames");
        });
        let loaded = loaded.expect("it was whole");
        assert_eq!((loaded.keys.len(), loaded.state.inode), (1, state.inode));
        assert!(
            FileState::of(&source.path).is_some_and(|now| now != loaded.state),
            "the new one is seen as new"
        );
    }

    #[test]
    fn what_is_written_to_while_it_is_read_is_not_taken_whatever_its_times_say() {
        let rows = |number: u32| format!("key_hash,key_id\n{number:064x},k\n");
        for restored in [true, false] {
            let (_directory, source) = placed(Duration::from_millis(100));
            let file = File::options().write(true).open(&source.path).expect("opens");
            let modified = file.metadata().and_then(|metadata| metadata.modified()).expect("a time");
            let mut number = 1;
            let loaded = load_and(&source, || {
                number += 1;
                file.write_all_at(rows(number).as_bytes(), 0).expect("writes");
                if restored {
                    file.set_modified(modified).expect("sets the time");
                }
            });
            assert!(matches!(loaded, Err(Failure::Changing { .. })), "restored: {restored}");
        }
    }

    #[test]
    fn what_is_written_in_place_has_to_settle_before_it_is_read() {
        let settle = Duration::from_secs(3600);
        let (_directory, source) = placed(Duration::from_millis(100));
        let state = FileState::of(&source.path).expect("a file");
        let written = FileState { changed: state.modified, ..state };
        assert!(!written.is_placed() && written.unsettled(settle) > settle / 2);
        let (_directory, old) = placed(Duration::from_secs(7200));
        assert!(FileState::of(&old.path).expect("a file").unsettled(settle) <= TIME_GRANULARITY);
    }
}
