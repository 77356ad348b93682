//! Reading an export into a table of keys, and being sure that it was one export from its beginning to its end.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::{ffi::OsStrExt, fs::OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags, Stat};
use serde::{Deserialize, Serialize};

use crate::reload::bad_rows::BadRows;
use crate::reload::read::{self, Read};
use crate::reload::room::MemoryLimits;
use crate::reload::{BadRowPolicy, ReloadError, SetAside};
use keyward_engine::record::{KeyRecord, Plans};
use keyward_engine::snapshot::{Builder, KeyTable, RowPolicies};
use keyward_source::{ColumnMapping, Format};

/// How much longer than `settle` a load waits for a file that is still being written to, before that is its outcome. It bounds how
/// long a writer that never pauses delays `keyward reload`.
const MAX_UNSETTLED: Duration = Duration::from_secs(5);

/// Two ticks of the coarsest clock that file systems take their times from.
pub(super) const TIME_GRANULARITY: Duration = Duration::from_millis(20);

/// How often a source is opened that has been replaced before its link count was read. The last file is then taken: the path
/// has led to another file each time, which is what tells a rename from a deleted file behind a mount.
const OPENINGS: usize = 8;

/// What the kernel appends to the name of an open file whose directory entry is gone.
const DELETED: &[u8] = b" (deleted)";

const O_NONBLOCK: i32 = OFlags::NONBLOCK.bits() as i32;

/// Where keys come from, and how to read them.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceFile {
    /// The export.
    pub path: Box<Path>,
    /// How it is written.
    pub format: Format,
    /// What its columns are called.
    pub mapping: ColumnMapping,
    /// The plans that its rows may name.
    pub plans: Arc<Plans>,
    /// What is done about a row that cannot be understood.
    pub on_bad_row: BadRowPolicy,
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
pub struct LoadedSource {
    /// The keys.
    pub keys: KeyTable,
    /// What it takes to write them to a compiled file.
    pub policies: RowPolicies,
    /// The file, still open.
    pub file: File,
    /// The file as it was throughout the reading.
    pub state: FileState,
    /// Unix second at which what is in it was written: a compiled file is as old as its source.
    pub written_at: u32,
    /// Rows that were set aside, if there are any.
    pub set_aside: Option<SetAside>,
}

/// The same with the table still open.
pub struct ParsedSource {
    /// The rows.
    pub builder: Builder,
    /// As of [`LoadedSource`].
    pub file: File,
    /// As of [`LoadedSource`].
    pub state: FileState,
    /// As of [`LoadedSource`].
    pub written_at: u32,
    bad_rows: Option<BadRows>,
}

/// A source that was read to its end.
pub(super) enum LoadOutcome {
    Loaded(LoadedSource),
    /// It is refused because of rows that cannot be understood.
    Refused {
        /// What is wrong with them.
        failure: ReloadError,
        /// All other rows.
        rows: KeyTable,
        /// As of [`LoadedSource`].
        state: FileState,
    },
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

    fn is_same_file(&self, other: &Self) -> bool {
        (self.dev, self.inode) == (other.dev, other.inode)
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
        let written = if self.was_renamed() { Duration::ZERO } else { self.unwritten(settle) };
        written.max(settle.min(TIME_GRANULARITY).saturating_sub(changed))
    }

    /// How much longer it must not be written to, to not have been for `settle`.
    fn unwritten(&self, settle: Duration) -> Duration {
        settle.saturating_sub(self.ages()[0])
    }

    /// Whether something else was done to it after it was written: most likely, it was renamed into place, and is complete.
    fn was_renamed(&self) -> bool {
        self.changed > self.modified
    }
}

impl SourceFile {
    /// Reads the whole file. `seed` keys the table; a compiled file has its own.
    ///
    /// # Errors
    /// When it cannot be read, changes meanwhile, or has findings; never a part of it.
    pub fn load(&self, seed: u64) -> Result<LoadedSource, ReloadError> {
        self.load_settled(seed, SettleWindow::new(Duration::ZERO)).and_then(LoadOutcome::accepted)
    }

    /// As [`load`](Self::load), of a file that has not been written to for `settle`. Waits for that, at most until `give_up`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub(super) fn load_settled(&self, seed: u64, settling: SettleWindow) -> Result<LoadOutcome, ReloadError> {
        self.build_settled(seed, settling, None, &mut |_| {}).map(LoadOutcome::new)
    }

    /// As [`load`](Self::load), and shows `see` every row that is taken, with its line; those of a compiled file are counted.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_seen(&self, seed: u64, see: &mut RowObserver<'_>) -> Result<LoadedSource, ReloadError> {
        let built = self.build_settled(seed, SettleWindow::new(Duration::ZERO), Some(see), &mut |_| {})?;
        LoadOutcome::new(built).accepted()
    }

    /// As [`load_seen`](Self::load_seen), and leaves the table open. `progress` is told how many bytes have been read.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn build(
        &self,
        seed: u64,
        see: Option<&mut RowObserver<'_>>,
        progress: &mut ProgressFn<'_>,
    ) -> Result<ParsedSource, ReloadError> {
        let mut built = self.build_settled(seed, SettleWindow::new(Duration::ZERO), see, progress)?;
        match built.bad_rows.take() {
            Some(BadRows::Refuse(failure)) => Err(failure),
            bad_rows => Ok(ParsedSource { bad_rows, ..built }),
        }
    }

    fn build_settled(
        &self,
        seed: u64,
        settling: SettleWindow,
        mut see: Option<&mut RowObserver<'_>>,
        progress: &mut ProgressFn<'_>,
    ) -> Result<ParsedSource, ReloadError> {
        let io = |error| ReloadError::Io { path: self.path.to_path_buf(), error };
        // Everything from here on is about the file that was opened, whatever is renamed over it meanwhile: replacing the file
        // again and again delays no load.
        let mut file = self.open()?;
        let mut state = self.hold_still(&file, settling)?;
        // Who sees the rows sees them once.
        let mut may_repeat = see.is_none();
        loop {
            let read = read::Source {
                origin: self,
                file: &file,
                size: state.size(),
                seed,
                room: MemoryLimits::new(),
            }
            .read(see.take(), progress);
            if state.was_renamed() {
                thread::sleep(state.unwritten(settling.settle));
            }
            // First whether it was one file at all: what was read of two halves would be blamed on the wrong thing.
            let after = FileState::of_open(&file).map_err(io)?;
            if after == state {
                let Read { builder, source_time, bad_rows } = read?;
                let written_at = state.written_at();
                let written_at = source_time.map_or(written_at, |source| source.min(written_at));
                return Ok(ParsedSource { builder, file, state, written_at, bad_rows });
            }
            if !std::mem::take(&mut may_repeat) || !after.is_written_as(&state) {
                return Err(ReloadError::Changing { path: self.path.to_path_buf() });
            }
            // Its times of writing are the same: most likely another file was renamed over it, which changes its link count. But a
            // writer can set the time of writing back, so the same file is read again and must not change at all meanwhile: a
            // rename cannot alter an unlinked file; a writer still can.
            drop(read);
            state = self.hold_still(&file, settling)?;
            if !state.is_written_as(&after) {
                return Err(ReloadError::Changing { path: self.path.to_path_buf() });
            }
            file.seek(SeekFrom::Start(0)).map_err(io)?;
        }
    }

    /// Opens the file that the path leads to now.
    fn open(&self) -> Result<File, ReloadError> {
        let io = |error| ReloadError::Io { path: self.path.to_path_buf(), error };
        let mut openings = 1;
        loop {
            // Without O_NONBLOCK, opening a named pipe would wait for its writer, and with it every later reload.
            let file = File::options().read(true).custom_flags(O_NONBLOCK).open(&self.path).map_err(io)?;
            let stat = rustix::fs::fstat(&file).map_err(|error| io(error.into()))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(ReloadError::NotAFile { path: self.path.to_path_buf() });
            }
            let state = FileState::new(&stat);
            if openings == OPENINGS || !is_deleted(&file, &stat) {
                return Ok(file);
            }
            // Renamed over since it was opened, or the path goes on leading to a file that has no name any more.
            if FileState::of(&self.path).is_some_and(|now| now.is_same_file(&state)) {
                return Err(ReloadError::Unlinked { path: self.path.to_path_buf() });
            }
            openings += 1;
        }
    }

    /// Waits until nothing has written to the open file for `settle`, so that a file that is being written in place is not read
    /// half way. A file that was renamed into place is only given the time until a change of it shows; one whose time is in
    /// the future is watched for as long as if it had been written now.
    fn hold_still(
        &self,
        file: &File,
        SettleWindow { settle, give_up }: SettleWindow,
    ) -> Result<FileState, ReloadError> {
        let mut before = None;
        loop {
            let state = FileState::of_open(file)
                .map_err(|error| ReloadError::Io { path: self.path.to_path_buf(), error })?;
            let wait = state.unsettled(settle);
            if wait.is_zero() || before == Some(state) {
                return Ok(state);
            }
            if Instant::now() >= give_up {
                return Err(ReloadError::Changing { path: self.path.to_path_buf() });
            }
            before = Some(state);
            // File times are coarse: they can be a clock tick behind.
            thread::sleep(wait.max(Duration::from_millis(1)));
        }
    }
}

/// Whether the directory entry is gone through which the file was opened.
///
/// The kernel says so in the name of the descriptor. The link count alone is not enough: another hard link can keep it above
/// zero, and some FUSE file systems report zero for every file. It decides only where /proc cannot be read.
fn is_deleted(file: &File, stat: &Stat) -> bool {
    let Ok(name) = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) else {
        return stat.st_nlink == 0;
    };
    // A file can have such a name, too.
    name.as_os_str().as_bytes().ends_with(DELETED)
        && !FileState::of(&name).is_some_and(|named| named.is_same_file(&FileState::new(stat)))
}

/// How long a file must not have been written to before it is taken, and until when that is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct SettleWindow {
    settle: Duration,
    give_up: Instant,
}

impl SettleWindow {
    /// Begins to wait now.
    pub(super) fn new(settle: Duration) -> Self {
        Self { settle, give_up: Instant::now() + settle + MAX_UNSETTLED }
    }

    /// Whether there is no time left for another attempt.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.give_up
    }
}

/// Is shown rows.
pub type RowObserver<'s> = dyn FnMut(u64, &KeyRecord<'_>) + 's;

/// Is told how many bytes have been read.
pub(crate) type ProgressFn<'t> = dyn FnMut(u64) + Send + 't;

impl LoadOutcome {
    fn new(ParsedSource { builder, file, state, written_at, bad_rows }: ParsedSource) -> Self {
        let (keys, policies) = builder.finish_with_policies();
        let set_aside = match bad_rows {
            None => None,
            Some(BadRows::SetAside(findings)) => Some(SetAside::of_source(&keys, findings)),
            Some(BadRows::Refuse(failure)) => return Self::Refused { failure, rows: keys, state },
        };
        Self::Loaded(LoadedSource { keys, policies, file, state, written_at, set_aside })
    }

    pub(super) fn state(&self) -> FileState {
        match self {
            Self::Loaded(LoadedSource { state, .. }) | Self::Refused { state, .. } => *state,
        }
    }

    pub(super) fn accepted(self) -> Result<LoadedSource, ReloadError> {
        match self {
            Self::Loaded(loaded) => Ok(loaded),
            Self::Refused { failure, .. } => Err(failure),
        }
    }
}

#[cfg(test)]
mod tests;
