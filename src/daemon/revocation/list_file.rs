//! The list on disk: one line per command, synced before the command returns. The file is compacted
//! when most of its lines are superseded.
//!
//! Only this daemon writes the file. If another program changes or removes it, or a write fails,
//! the file is rewritten from memory. A daemon that cannot write it goes on with the list in memory
//! and retries.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::line::{FORMAT, Header, Line, encode};
use super::list::List;
use super::replay::{LoadError, Replayed, replay};
use super::watermark::{self, ListClock, WatermarkFile};
use keyward_state::{self as state, FileError, Journal, Rotation, StateDir};

/// The name of the file.
pub(super) const NAME: &str = "revocations.jsonl";

/// No rotation: a rotated file would not be read.
const NO_ROTATION: Rotation = Rotation { max_file_size: u64::MAX, keep: 0 };

/// The file is compacted when it has more lines than twice the entries plus this. So a command
/// waits for a compaction once in hundreds of times.
const COMPACTION_SLACK: usize = 1_000;

/// Maximum length of the file. The list has at most [`MAX_ENTRIES`](super::MAX_ENTRIES) entries, of
/// some hundred bytes. The rest is for lines that could not be compacted.
pub(super) const MAX_BYTES: u64 = 1 << 30;

/// The file of the list, and its high-water mark.
pub(super) struct ListFile {
    path: PathBuf,
    id: String,
    watermark: WatermarkFile,
    /// Whether the high-water mark has the list's id. Until then no list with this id may exist.
    has_watermark: bool,
    /// `None` if the file could not be opened yet.
    journal: Option<Journal>,
    /// Lines after the header.
    lines: usize,
    /// The number of the last line.
    seq: u64,
    /// The file after the last write; `None` if its content is uncertain.
    last_identity: Option<Identity>,
}

/// Identifies a file and its length by its metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    dev: u64,
    inode: u64,
    length: u64,
}

/// The identity of the file at `path`.
pub(super) fn identity(path: &Path) -> Option<Identity> {
    let there = std::fs::symlink_metadata(path).ok()?;
    Some(Identity { dev: there.dev(), inode: there.ino(), length: there.len() })
}

/// The result of opening the list.
pub(super) struct OpenedList {
    pub(super) file: ListFile,
    pub(super) list: List,
    /// A loss of revocations that an operator has accepted.
    pub(super) accepted: Option<(state::AcceptanceRecord, LoadError)>,
    /// Why the file cannot be written at the moment.
    pub(super) unwritten: Option<FileError>,
}

impl ListFile {
    /// Opens the file and reads the list. A list that can be read but not written is used all the
    /// same.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub(super) fn open(directory: &StateDir) -> Result<OpenedList, LoadError> {
        let Replayed { list, id, seq, lines, has_torn_end, watermark, accepted } = replay(directory)?;
        let path = directory.path(NAME);
        let is_known = id.is_some();
        let id = match id {
            Some(id) => id,
            None => new_id().map_err(|error| failed(&path, "make an id for it", error))?,
        };
        let latest = list.iter().filter_map(|(_, entry)| entry.record.source).map(|source| source.clock_ms);
        let min_clock_ms = latest.max().unwrap_or(0);
        let watermark =
            WatermarkFile::new(directory.path(watermark::NAME), id.clone(), watermark.as_ref(), min_clock_ms);
        let mut file = Self {
            path,
            id,
            watermark,
            has_watermark: is_known,
            journal: None,
            lines,
            seq,
            last_identity: None,
        };
        let unwritten = file.prepare(&list, is_known && !has_torn_end).err();
        Ok(OpenedList { file, list, accepted, unwritten })
    }

    /// Prepares the file for appending. `is_complete`: the file has the list as it is.
    fn prepare(&mut self, list: &List, is_complete: bool) -> Result<(), FileError> {
        if is_complete {
            self.last_identity = identity(&self.path);
            self.journal = Some(Journal::open(self.path.clone(), NO_ROTATION)?.journal);
        }
        if !is_complete || self.needs_compaction(list) {
            self.rewrite(list)?;
        }
        self.write_watermark()
    }

    /// Appends lines and makes them durable. `list` returns the list with their changes, except for
    /// entries that are being dropped.
    ///
    /// # Errors
    /// When they cannot be written or synced. Then the same lines must be added again. Without
    /// that, [`is_intact`](Self::is_intact) shows whether the file has to be rewritten.
    pub(super) fn add<'l>(
        &mut self,
        lines: impl ExactSizeIterator<Item = &'l Line>,
        list: impl FnOnce() -> List,
    ) -> Result<(), FileError> {
        if !self.is_intact() {
            if self.last_identity.is_some() {
                warn!(file = %self.path.display(), "another program has changed or moved the file; it is rewritten");
            }
            return self.rewrite(&list());
        }
        let Some(journal) = &mut self.journal else { return self.rewrite(&list()) };
        let (mut bytes, count) = (Vec::new(), lines.len());
        for (line, seq) in lines.zip(self.seq + 1..) {
            encode(&line.clone().numbered(seq), &mut bytes)
                .map_err(|error| failed(&self.path, "encode a line for", error))?;
        }
        match journal.append(&bytes) {
            Ok(()) => {}
            // A rewrite would need more space than a line.
            Err(error) if is_full(&error) => return Err(error),
            Err(error) => {
                self.last_identity = None;
                return self.rewrite(&list()).map_err(|_| error);
            }
        }
        // If this fails, durability is unknown, and the system does not report the error again.
        self.last_identity = None;
        if let Err(error) = journal.sync() {
            return self.rewrite(&list()).map_err(|_| error);
        }
        self.last_identity = identity(&self.path);
        self.lines += count;
        self.seq += count as u64;
        Ok(())
    }

    /// Whether there has ever been a line.
    pub(super) fn has_changed(&self) -> bool {
        self.seq > 0
    }

    /// Whether the file is as the last write left it.
    pub(super) fn is_intact(&self) -> bool {
        self.journal.is_some() && self.last_identity.is_some() && self.last_identity == identity(&self.path)
    }

    /// Marks the content as uncertain: the next write replaces the file.
    pub(super) fn invalidate(&mut self) {
        self.last_identity = None;
    }

    /// Whether most lines of the file are superseded.
    pub(super) fn needs_compaction(&self, list: &List) -> bool {
        self.lines > 2 * list.len() + COMPACTION_SLACK
    }

    /// Replaces the file by the list, without entries that are being dropped.
    ///
    /// # Errors
    /// When that fails. Then the file is the previous or the new one.
    pub(super) fn rewrite(&mut self, list: &List) -> Result<(), FileError> {
        self.last_identity = None;
        if !self.has_watermark {
            // The high-water mark comes first: a list without one counts as one whose high-water
            // mark was lost.
            self.watermark.write(0)?;
            self.has_watermark = true;
        }
        let entries = || list.iter().filter(|(_, entry)| !entry.dropping);
        let header = Header { revocations: FORMAT, list: self.id.clone(), seq: self.seq };
        state::replace(&self.path, |writer| {
            encode(&header, writer)?;
            for ((target, entry), seq) in entries().zip(self.seq + 1..) {
                encode(&Line::revoke(&target, &entry.record).numbered(seq), writer)?;
            }
            Ok(())
        })?;
        self.lines = entries().count();
        self.seq += self.lines as u64;
        if self.journal.is_none() {
            self.journal = Some(Journal::open(self.path.clone(), NO_ROTATION)?.journal);
        }
        self.last_identity = identity(&self.path);
        Ok(())
    }

    /// Writes the number of the last line to the high-water mark. Call it when the lines are
    /// durable.
    ///
    /// # Errors
    /// When the high-water mark cannot be written. The list itself is durable.
    pub(super) fn write_watermark(&mut self) -> Result<(), FileError> {
        self.watermark.write(self.seq)
    }

    /// Makes the high-water mark durable, and rewrites it if it was changed or moved.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn sync_watermark(&mut self) -> Result<(), FileError> {
        if !self.watermark.is_intact() {
            self.write_watermark()?;
        }
        self.watermark.sync()
    }

    /// The list's clock.
    pub(super) fn clock(&self) -> ListClock {
        self.watermark.clock()
    }
}

fn new_id() -> io::Result<String> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    Ok(const_hex::encode(id))
}

fn is_full(error: &FileError) -> bool {
    matches!(error.error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn failed(path: &Path, action: &'static str, error: io::Error) -> FileError {
    FileError { path: path.to_path_buf(), action, error }
}
