//! The list on disk: a line for each command, synced before the command returns, and written anew when most of the
//! lines have nothing to say any more.
//!
//! The file is this daemon's alone. Should another program have changed or removed it nevertheless, or a write have failed,
//! it is written anew from memory. A daemon that cannot write it goes on with the list in memory and tries again.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::line::{FORMAT, Header, Line, encode};
use super::list::List;
use super::replay::{LoadError, Replayed, replay};
use super::watermark::{self, ListClock, Watermark};
use keyward_state::{self as state, FileError, Journal, Rotation, StateDir};

/// Its name in the state directory.
pub(super) const NAME: &str = "revocations.jsonl";

/// Never: an old file would be one that is not read.
const NO_ROTATION: Rotation = Rotation { max_file_size: u64::MAX, keep: 0 };

/// Lines that say nothing any more, beyond twice those that do, before the file is written anew: seldom enough that a
/// command waits for it once in hundreds of times.
const COMPACTION_SLACK: usize = 1_000;

/// The file, and its high-water mark.
pub(super) struct File {
    path: PathBuf,
    id: String,
    mark: Watermark,
    /// The mark has the list's id: until then there must be no list with it.
    is_marked: bool,
    /// `None`: it could not be opened yet.
    journal: Option<Journal>,
    lines: usize,
    /// The number of the last line.
    seq: u64,
    /// How it was left; `None`: what is in it is not known for sure.
    left: Option<Identity>,
}

/// Which file is at a path, as far as a look from outside tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    dev: u64,
    inode: u64,
    length: u64,
}

/// Which file is at `path`.
pub(super) fn identity(path: &Path) -> Option<Identity> {
    let there = std::fs::symlink_metadata(path).ok()?;
    Some(Identity { dev: there.dev(), inode: there.ino(), length: there.len() })
}

/// A list that was opened, and what there is to say of that.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) list: List,
    /// A loss that an operator has accepted.
    pub(super) accepted: Option<(state::AcceptanceRecord, LoadError)>,
    /// Why the file cannot be written at the moment, if it cannot.
    pub(super) unwritten: Option<FileError>,
}

impl File {
    /// Opens the file and reads the list. A file that can be read and not written is in force all the same.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub(super) fn open(directory: &StateDir) -> Result<Opened, LoadError> {
        let Replayed { list, id, seq, lines, is_unended, mark, accepted } = replay(directory)?;
        let path = directory.path(NAME);
        let is_known = id.is_some();
        let id = match id {
            Some(id) => id,
            None => new_id().map_err(|error| failed(&path, "make an id for it", error))?,
        };
        let latest = list.iter().filter_map(|(_, entry)| entry.record.source).map(|source| source.clock_ms);
        let at_least = latest.max().unwrap_or(0);
        let mark = Watermark::new(directory.path(watermark::NAME), id.clone(), mark.as_ref(), at_least);
        let mut file = Self { path, id, mark, is_marked: is_known, journal: None, lines, seq, left: None };
        let unwritten = file.prepare(&list, is_known && !is_unended).err();
        Ok(Opened { file, list, accepted, unwritten })
    }

    /// Makes the file one that lines can be added to. `is_whole`: it holds the list as it is.
    fn prepare(&mut self, list: &List, is_whole: bool) -> Result<(), FileError> {
        if is_whole {
            self.left = identity(&self.path);
            self.journal = Some(Journal::open(self.path.clone(), NO_ROTATION)?.journal);
        }
        if !is_whole || self.needs_compaction(list) {
            self.rewrite(list)?;
        }
        self.note()
    }

    /// Adds lines and makes them durable. `list` is the list with what they say, but for entries that are being dropped.
    ///
    /// # Errors
    /// When they cannot be written or not made durable. The same lines are to be given again; or else
    /// [`is_intact`](Self::is_intact) says whether the file has to be written anew.
    pub(super) fn add<'l>(
        &mut self,
        lines: impl ExactSizeIterator<Item = &'l Line>,
        list: impl FnOnce() -> List,
    ) -> Result<(), FileError> {
        if !self.is_intact() {
            if self.left.is_some() {
                warn!(file = %self.path.display(), "the file was changed or moved by another program; it is written anew");
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
            // Another file needs more room than a line does.
            Err(error) if is_full(&error) => return Err(error),
            Err(error) => {
                self.left = None;
                return self.rewrite(&list()).map_err(|_| error);
            }
        }
        // Whether they are durable is not known if this fails, and the system does not tell twice.
        self.left = None;
        if let Err(error) = journal.sync() {
            return self.rewrite(&list()).map_err(|_| error);
        }
        self.left = identity(&self.path);
        self.lines += count;
        self.seq += count as u64;
        Ok(())
    }

    /// Whether the file is as it was left.
    pub(super) fn is_intact(&self) -> bool {
        self.journal.is_some() && self.left.is_some() && self.left == identity(&self.path)
    }

    /// From here on, what is in the file is not known: the next write replaces all of it.
    pub(super) fn forget(&mut self) {
        self.left = None;
    }

    /// Whether most of what is in the file says nothing any more.
    pub(super) fn needs_compaction(&self, list: &List) -> bool {
        self.lines > 2 * list.len() + COMPACTION_SLACK
    }

    /// Writes the list, and nothing else: without the entries that are being dropped.
    ///
    /// # Errors
    /// When that fails; then the file is as it was, or the new one.
    pub(super) fn rewrite(&mut self, list: &List) -> Result<(), FileError> {
        self.left = None;
        if !self.is_marked {
            // First: a list without a mark would be taken for one that has lost it.
            self.mark.note(0)?;
            self.is_marked = true;
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
        self.left = identity(&self.path);
        Ok(())
    }

    /// Writes the number of the last line to the mark. To be called when lines are durable.
    ///
    /// # Errors
    /// When it cannot be written. The list is no less durable.
    pub(super) fn note(&mut self) -> Result<(), FileError> {
        self.mark.note(self.seq)
    }

    /// Makes the mark durable, and writes it anew where it was changed or moved.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn sync_mark(&mut self) -> Result<(), FileError> {
        if !self.mark.is_intact() {
            self.note()?;
        }
        self.mark.sync()
    }

    /// The list's clock.
    pub(super) fn clock(&self) -> ListClock {
        self.mark.clock()
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

fn failed(path: &Path, what: &'static str, error: io::Error) -> FileError {
    FileError { path: path.to_path_buf(), what, error }
}
