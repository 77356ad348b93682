//! A file of JSON Lines that only grows, and what keeps every line of it whole.
//!
//! * A batch of lines is one write. A daemon that is killed in the middle leaves a torn last line behind, which the next
//!   one cuts off when it opens the file; a write that fails is cut off at once. So what fails can be written again, and
//!   nothing is in the file twice.
//! * A file that would grow past its size is renamed to `name.1` (`.1` to `.2`, and so on), and a new one begun; the oldest
//!   goes. Lines are never divided between files.
//! * [`append`](Journal::append) makes lines visible to whoever follows the file; [`sync`](Journal::sync) makes them
//!   survive a loss of power.
//! * Somebody else may rotate the file as well: one that has been moved away or emptied is noticed before the next batch.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use tracing::warn;

use super::disk::{self, File, sync_directory};
use super::{FileError, failed};

/// Bytes read at once in search of the last line.
const BLOCK: u64 = 64 * 1024;

/// How large a file may become, and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes after which a new file is begun. A batch that is larger has a file of its own.
    pub max_file_size: u64,
    /// Old files that are kept beside the one being written; 0 keeps none.
    pub keep: u32,
}

/// A file that is written at its end.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    rotation: Rotation,
    /// A write failed and could not be cut off: what is behind this length is nobody's.
    torn_at: Option<u64>,
}

/// A journal, as it was found.
#[derive(Debug)]
pub struct OpenedJournal {
    /// The journal.
    pub journal: Journal,
    /// Its last line, without the newline: of the file being written, or else of the one before it.
    pub last_line: Option<Vec<u8>>,
}

impl Journal {
    /// Opens the journal at `path`, and makes it if it is missing. What is behind its last whole line is cut off, with a
    /// warning: a line ends in a newline and is JSON.
    ///
    /// # Errors
    /// When the file cannot be opened, read or cut.
    pub fn open(path: PathBuf, rotation: Rotation) -> Result<OpenedJournal, FileError> {
        let file = open_file(&path)?;
        let length = length(&file).map_err(failed(&path, "look at it"))?;
        let last = last_line(&file, length).map_err(failed(&path, "read its end"))?;
        if last.end < length {
            file.set_len(last.end).map_err(failed(&path, "cut a torn line off"))?;
            warn!(
                file = %path.display(),
                bytes = length - last.end,
                "the last line was torn and has been cut off: the daemon was killed while it wrote"
            );
        }
        sync_directory(&path).map_err(failed(&path, "make its name durable"))?;
        let last_line = last.line.or_else(|| last_line_of(&numbered(&path, 1)));
        Ok(OpenedJournal { journal: Self { path, file, rotation, torn_at: None }, last_line })
    }

    /// Writes whole lines, each ended by a newline: all of them or, if it fails, none. They go into a new file if this one
    /// would become too large.
    ///
    /// # Errors
    /// When it cannot be written; the same lines can be given again.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), FileError> {
        debug_assert!(lines.is_empty() || lines.ends_with(b"\n"));
        self.mend()?;
        self.follow()?;
        let mut length = self.length()?;
        if length > 0 && length.saturating_add(lines.len() as u64) > self.rotation.max_file_size {
            self.rotate()?;
            length = self.length()?;
        }
        self.file.write_all(lines).map_err(|error| {
            self.torn_at = Some(length);
            // Where it cannot be cut off now, it is tried again before the next write.
            let _later = self.mend();
            failed(&self.path, "write to it")(error)
        })
    }

    /// Makes what has been appended survive a loss of power.
    ///
    /// # Errors
    /// When the system cannot say so. The lines are in the file and are not to be given again: who follows it has seen them.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file.sync_data().map_err(failed(&self.path, "make it durable"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn length(&self) -> Result<u64, FileError> {
        length(&self.file).map_err(failed(&self.path, "look at it"))
    }

    /// Cuts off what a failed write has left.
    fn mend(&mut self) -> Result<(), FileError> {
        if let Some(whole) = self.torn_at {
            // Somebody may have emptied the file since.
            if self.length()? > whole {
                self.file.set_len(whole).map_err(failed(&self.path, "cut a failed write off"))?;
            }
            self.torn_at = None;
        }
        Ok(())
    }

    /// Opens the file again if the one that is open has been moved away or removed.
    fn follow(&mut self) -> Result<(), FileError> {
        let own = self.file.metadata().map_err(failed(&self.path, "look at it"))?;
        let is_there = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino()));
        if !is_there {
            self.file = open_file(&self.path)?;
            sync_directory(&self.path).map_err(failed(&self.path, "make its name durable"))?;
        }
        Ok(())
    }

    /// Moves the files up by one, and begins a new one. Where it was interrupted before, a number is free, and only the
    /// files below it move: none is lost twice.
    fn rotate(&mut self) -> Result<(), FileError> {
        self.sync()?;
        let rename = |from: &Path, to: &Path| disk::rename(from, to).map_err(failed(from, "rotate it"));
        if self.rotation.keep == 0 {
            disk::remove_file(&self.path).map_err(failed(&self.path, "rotate it"))?;
        } else {
            let oldest = self.rotation.keep;
            let free = (1..oldest).find(|number| !numbered(&self.path, *number).exists()).unwrap_or(oldest);
            for number in (1..free).rev() {
                rename(&numbered(&self.path, number), &numbered(&self.path, number + 1))?;
            }
            rename(&self.path, &numbered(&self.path, 1))?;
        }
        self.file = open_file(&self.path)?;
        sync_directory(&self.path).map_err(failed(&self.path, "make its name durable"))
    }
}

/// An old file of a journal: 1 is the latest.
pub(super) fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn open_file(path: &Path) -> Result<File, FileError> {
    File::open(path, OpenOptions::new().read(true).append(true)).map_err(failed(path, "open it"))
}

fn length(file: &std::fs::File) -> io::Result<u64> {
    file.metadata().map(|metadata| metadata.len())
}

/// The last whole line of a file.
struct Last {
    line: Option<Vec<u8>>,
    /// Where it ends, its newline included: what is behind is torn.
    end: u64,
}

pub(super) fn last_line_of(path: &Path) -> Option<Vec<u8>> {
    let file = std::fs::File::open(path).ok()?;
    let length = length(&file).ok()?;
    last_line(&file, length).ok()?.line
}

/// Searches backwards for a line that ends in a newline and is JSON. A loss of power can leave holes of zeros behind, so
/// that a newline alone says little.
fn last_line(file: &std::fs::File, length: u64) -> io::Result<Last> {
    let Some(mut end) = newline_before(file, length)? else {
        return Ok(Last { line: None, end: 0 });
    };
    loop {
        let before = newline_before(file, end)?;
        let start = before.map_or(0, |newline| newline + 1);
        let mut line = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
        file.read_exact_at(&mut line, start)?;
        if serde_json::from_slice::<IgnoredAny>(&line).is_ok() {
            return Ok(Last { line: Some(line), end: end + 1 });
        }
        match before {
            Some(newline) => end = newline,
            None => return Ok(Last { line: None, end: 0 }),
        }
    }
}

/// Position of the last newline in the first `end` bytes.
fn newline_before(file: &std::fs::File, mut end: u64) -> io::Result<Option<u64>> {
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        block.resize(usize::try_from(end - start).map_err(io::Error::other)?, 0);
        file.read_exact_at(&mut block, start)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            return Ok(Some(start + at as u64));
        }
        end = start;
    }
    Ok(None)
}
