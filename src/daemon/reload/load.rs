//! Loads an export into a table of keys, and verifies that it was one file from beginning to end.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::{ffi::OsStrExt, fs::OpenOptionsExt};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags, Stat};

use crate::reload::bad_rows::BadRowOutcome;
use crate::reload::file_state::FileState;
use crate::reload::memory_limits::MemoryLimits;
use crate::reload::read::{ParsedRows, ProgressFn, RowObserver, SourceReader};
use crate::reload::{ReloadError, SetAside, SourceFile};
use keyward_engine::snapshot::{Builder, KeyTable, RowPolicies};

/// How much longer than `settle` a load waits for a file that is still being written to. It limits
/// how long a writer that never pauses delays `keyward reload`.
const MAX_UNSETTLED: Duration = Duration::from_secs(5);

/// Attempts to open a source that is replaced while it is opened. The last attempt accepts the
/// file: the path has led to another file each time, which a deleted file behind a mount does not.
const MAX_OPENS: usize = 8;

/// What the kernel appends to the name of an open file whose directory entry is gone.
const DELETED: &[u8] = b" (deleted)";

const O_NONBLOCK: i32 = OFlags::NONBLOCK.bits() as i32;

/// A table of keys, and the file that it was read from.
pub struct LoadedSource {
    /// The keys.
    pub keys: KeyTable,
    /// What a compiled file needs in addition to the keys.
    pub policies: RowPolicies,
    /// The file, still open.
    pub file: File,
    /// The state of the file throughout the reading.
    pub state: FileState,
    /// Unix second at which the content was written. That of a compiled file is its source's.
    pub written_at: u32,
    /// Rows that were set aside, if there are any.
    pub set_aside: Option<SetAside>,
}

/// A source that was read, with its table not yet finished.
pub struct ParsedSource {
    /// The rows.
    pub builder: Builder,
    /// As in [`LoadedSource`].
    pub file: File,
    /// As in [`LoadedSource`].
    pub state: FileState,
    /// As in [`LoadedSource`].
    pub written_at: u32,
    bad_rows: Option<BadRowOutcome>,
}

/// The result of reading a source to its end.
pub(super) enum LoadOutcome {
    /// The source can be used.
    Loaded(LoadedSource),
    /// The source is refused because of bad rows.
    Refused {
        /// What is wrong with the rows.
        error: ReloadError,
        /// All other rows.
        rows: KeyTable,
        /// As in [`LoadedSource`].
        state: FileState,
    },
}

/// How long a file must not have been written to before it is read, and until when to wait for
/// that.
#[derive(Clone, Copy, Debug)]
pub(super) struct SettleWindow {
    settle: Duration,
    deadline: Instant,
}

impl SettleWindow {
    /// A window that begins now.
    pub(super) fn new(settle: Duration) -> Self {
        Self { settle, deadline: Instant::now() + settle + MAX_UNSETTLED }
    }

    /// Whether there is no time left for another attempt.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

impl SourceFile {
    /// Reads the whole file. `seed` is the hash seed of the table; a compiled file has its own.
    ///
    /// # Errors
    /// When the file cannot be read, changes meanwhile, or has errors. A part of it is never
    /// returned.
    pub fn load(&self, seed: u64) -> Result<LoadedSource, ReloadError> {
        self.load_settled(seed, SettleWindow::new(Duration::ZERO)).and_then(LoadOutcome::accepted)
    }

    /// As [`load`](Self::load), within `window`. All good rows of a source with bad rows are
    /// returned as well.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub(super) fn load_settled(&self, seed: u64, window: SettleWindow) -> Result<LoadOutcome, ReloadError> {
        self.parse_settled(seed, window, None, &mut |_| {}).map(LoadOutcome::new)
    }

    /// As [`load`](Self::load), and calls `observer` with every accepted row and its line. Rows of
    /// a compiled file are counted instead.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_observed(
        &self,
        seed: u64,
        observer: &mut RowObserver<'_>,
    ) -> Result<LoadedSource, ReloadError> {
        let window = SettleWindow::new(Duration::ZERO);
        let parsed = self.parse_settled(seed, window, Some(observer), &mut |_| {})?;
        LoadOutcome::new(parsed).accepted()
    }

    /// As [`load_observed`](Self::load_observed), without finishing the table. `progress` is called
    /// with the number of bytes that have been read.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(
        &self,
        seed: u64,
        observer: Option<&mut RowObserver<'_>>,
        progress: &mut ProgressFn<'_>,
    ) -> Result<ParsedSource, ReloadError> {
        let window = SettleWindow::new(Duration::ZERO);
        let mut parsed = self.parse_settled(seed, window, observer, progress)?;
        match parsed.bad_rows.take() {
            Some(BadRowOutcome::Refuse(error)) => Err(error),
            bad_rows => Ok(ParsedSource { bad_rows, ..parsed }),
        }
    }

    fn parse_settled(
        &self,
        seed: u64,
        window: SettleWindow,
        mut observer: Option<&mut RowObserver<'_>>,
        progress: &mut ProgressFn<'_>,
    ) -> Result<ParsedSource, ReloadError> {
        let io = |error| ReloadError::Io { path: self.path.to_path_buf(), error };
        // From here on everything is about the open file, even if others are renamed over it. So
        // frequent replacements do not delay a load.
        let mut file = self.open()?;
        let mut state = self.wait_settled(&file, window)?;
        // An observer must not be called twice with the same row.
        let mut may_repeat = observer.is_none();
        loop {
            let reader = SourceReader {
                origin: self,
                file: &file,
                size: state.size(),
                seed,
                limits: MemoryLimits::new(),
            };
            let parsed = reader.read(observer.take(), progress);
            if state.was_renamed() {
                thread::sleep(state.until_unwritten_for(window.settle));
            }
            // A change of the file takes precedence over errors in it: those of two halves would
            // mislead.
            let after = FileState::of_open(&file).map_err(io)?;
            if after == state {
                let ParsedRows { builder, source_time, bad_rows } = parsed?;
                let written_at = state.written_at();
                let written_at = source_time.map_or(written_at, |source| source.min(written_at));
                return Ok(ParsedSource { builder, file, state, written_at, bad_rows });
            }
            if !std::mem::take(&mut may_repeat) || !after.is_written_as(&state) {
                return Err(ReloadError::Changing { path: self.path.to_path_buf() });
            }
            // The size and mtime are the same: most likely another file was renamed over this one,
            // which changes its link count. But a writer can reset the mtime. So the same file is
            // read again, and must not change at all meanwhile. A rename cannot alter an unlinked
            // file; a writer still can.
            drop(parsed);
            state = self.wait_settled(&file, window)?;
            if !state.is_written_as(&after) {
                return Err(ReloadError::Changing { path: self.path.to_path_buf() });
            }
            file.seek(SeekFrom::Start(0)).map_err(io)?;
        }
    }

    /// Opens the file that the path leads to now.
    fn open(&self) -> Result<File, ReloadError> {
        let io = |error| ReloadError::Io { path: self.path.to_path_buf(), error };
        let mut opens = 1;
        loop {
            // Without O_NONBLOCK, opening a named pipe would wait for a writer, and so would every
            // later reload.
            let file = File::options().read(true).custom_flags(O_NONBLOCK).open(&self.path).map_err(io)?;
            let stat = rustix::fs::fstat(&file).map_err(|error| io(error.into()))?;
            let found = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => None,
                FileType::Directory => Some("a directory"),
                FileType::Fifo => Some("a named pipe"),
                _ => Some("a device"),
            };
            if let Some(found) = found {
                return Err(ReloadError::NotAFile { path: self.path.to_path_buf(), found });
            }
            let state = FileState::new(&stat);
            if opens == MAX_OPENS || !is_deleted(&file, &stat) {
                return Ok(file);
            }
            // Either the file has been replaced since it was opened, or the path still leads to the
            // deleted file.
            if FileState::of(&self.path).is_some_and(|now| now.is_same_file(&state)) {
                return Err(ReloadError::Unlinked { path: self.path.to_path_buf() });
            }
            opens += 1;
        }
    }

    /// Waits until the open file has not been written to for `settle`, so that a file that is
    /// written in place is not read half-written. A file that was renamed into place is only given
    /// the time until a change of it shows. A file with a time in the future is observed for as
    /// long as if it had been written now.
    fn wait_settled(
        &self,
        file: &File,
        SettleWindow { settle, deadline }: SettleWindow,
    ) -> Result<FileState, ReloadError> {
        let mut before = None;
        loop {
            let state = FileState::of_open(file)
                .map_err(|error| ReloadError::Io { path: self.path.to_path_buf(), error })?;
            let wait = state.until_settled(settle);
            if wait.is_zero() || before == Some(state) {
                return Ok(state);
            }
            if Instant::now() >= deadline {
                return Err(ReloadError::Changing { path: self.path.to_path_buf() });
            }
            before = Some(state);
            // File times are coarse: they can be a clock tick behind.
            thread::sleep(wait.max(Duration::from_millis(1)));
        }
    }
}

/// Whether the directory entry through which the file was opened is gone.
///
/// The kernel shows that in the name of the descriptor. The link count alone is not enough: another
/// hard link can keep it above zero, and some FUSE file systems report zero for every file. It
/// decides only if /proc cannot be read.
fn is_deleted(file: &File, stat: &Stat) -> bool {
    let Ok(name) = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) else {
        return stat.st_nlink == 0;
    };
    // A file that exists can have such a name, too.
    name.as_os_str().as_bytes().ends_with(DELETED)
        && !FileState::of(&name).is_some_and(|named| named.is_same_file(&FileState::new(stat)))
}

impl LoadOutcome {
    fn new(ParsedSource { builder, file, state, written_at, bad_rows }: ParsedSource) -> Self {
        let (keys, policies) = builder.finish_with_policies();
        let set_aside = match bad_rows {
            None => None,
            Some(BadRowOutcome::SetAside(diagnostics)) => Some(SetAside::of_source(&keys, diagnostics)),
            Some(BadRowOutcome::Refuse(error)) => return Self::Refused { error, rows: keys, state },
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
            Self::Refused { error, .. } => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
