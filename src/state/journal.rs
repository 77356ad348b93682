//! An append-only file of JSON Lines that never has a partial line.
//!
//! * Several lines are appended with one write. A daemon that is killed during a write leaves a
//!   torn last line, which the next one truncates when it opens the file. A failed write is
//!   truncated at once. So the same lines can be written again, and no line is in the file twice.
//! * A file that would exceed its maximum size is renamed to `name.1` (`.1` to `.2`, and so on),
//!   and a new one is started; the oldest is deleted. Lines are never split between files.
//! * [`append`](Journal::append) makes lines visible to readers of the file;
//!   [`sync`](Journal::sync) makes them survive a loss of power.
//! * Other programs may rotate the file as well: a file that was moved or emptied is noticed before
//!   the next write.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use tracing::warn;

use super::disk::{self, File, sync_directory};
use super::{FileError, failed};

/// Bytes that are read at a time in search of the last line.
const BLOCK: u64 = 64 * 1024;

/// The maximum size of a file, and the number of old files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes after which a new file is started. A larger write has a file of its own.
    pub max_file_size: u64,
    /// Old files that are kept besides the current one.
    pub keep: u32,
}

/// An append-only file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    rotation: Rotation,
    /// Set after a failed write that could not be truncated: bytes after this length are invalid.
    torn_at: Option<u64>,
}

/// The result of opening a journal.
#[derive(Debug)]
pub struct OpenedJournal {
    /// The journal.
    pub journal: Journal,
    /// The last line, without its newline, of the current file or else of the previous one.
    pub last_line: Option<Vec<u8>>,
}

impl Journal {
    /// Opens the journal at `path`, and creates it if it is missing. Anything after the last
    /// complete line is truncated, with a warning. A complete line is JSON and ends in a newline.
    ///
    /// # Errors
    /// When the file cannot be opened, read or truncated.
    pub fn open(path: PathBuf, rotation: Rotation) -> Result<OpenedJournal, FileError> {
        let file = open_file(&path)?;
        let length = length(&file).map_err(failed(&path, "read its metadata"))?;
        let last = last_line(&file, length).map_err(failed(&path, "read its end"))?;
        if last.end < length {
            file.set_len(last.end).map_err(failed(&path, "truncate a torn line"))?;
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

    /// Appends complete lines, each with a newline. If this fails, none of them is in the file. A
    /// new file is started if this one would become too large.
    ///
    /// # Errors
    /// When they cannot be written. The same lines can be appended again.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), FileError> {
        debug_assert!(lines.is_empty() || lines.ends_with(b"\n"));
        self.truncate_failed_write()?;
        self.reopen_if_moved()?;
        let mut length = self.length()?;
        if length > 0 && length.saturating_add(lines.len() as u64) > self.rotation.max_file_size {
            self.rotate()?;
            length = self.length()?;
        }
        self.file.write_all(lines).map_err(|error| {
            self.torn_at = Some(length);
            // If this fails, it is retried before the next write.
            let _ = self.truncate_failed_write();
            failed(&self.path, "write to it")(error)
        })
    }

    /// Makes all appended lines survive a loss of power.
    ///
    /// # Errors
    /// When the sync fails. The lines are in the file and must not be appended again: readers may
    /// have seen them.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file.sync_data().map_err(failed(&self.path, "make it durable"))
    }

    /// The path of the current file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn length(&self) -> Result<u64, FileError> {
        length(&self.file).map_err(failed(&self.path, "read its metadata"))
    }

    /// Truncates the remains of a failed write.
    fn truncate_failed_write(&mut self) -> Result<(), FileError> {
        if let Some(whole) = self.torn_at {
            // Another program may have emptied the file since.
            if self.length()? > whole {
                self.file.set_len(whole).map_err(failed(&self.path, "truncate a failed write"))?;
            }
            self.torn_at = None;
        }
        Ok(())
    }

    /// Opens a new file if the open one has been moved or removed.
    fn reopen_if_moved(&mut self) -> Result<(), FileError> {
        let own = self.file.metadata().map_err(failed(&self.path, "read its metadata"))?;
        let is_in_place = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino()));
        if !is_in_place {
            self.file = open_file(&self.path)?;
            sync_directory(&self.path).map_err(failed(&self.path, "make its name durable"))?;
        }
        Ok(())
    }

    /// Renames all files to the next number, and starts a new one. After an interrupted rotation a
    /// number is free, and only the files below it are renamed, so no further file is lost.
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

/// The path of an old file; 1 is the latest.
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

/// The last complete line of a file.
struct LastLine {
    line: Option<Vec<u8>>,
    /// The position after its newline. Anything after it is torn.
    end: u64,
}

pub(super) fn last_line_of(path: &Path) -> Option<Vec<u8>> {
    let file = std::fs::File::open(path).ok()?;
    let length = length(&file).ok()?;
    last_line(&file, length).ok()?.line
}

/// Searches backwards for a line that is JSON and ends in a newline. A newline alone is not enough:
/// a loss of power can leave zeros before it.
fn last_line(file: &std::fs::File, length: u64) -> io::Result<LastLine> {
    let Some(mut end) = newline_before(file, length)? else {
        return Ok(LastLine { line: None, end: 0 });
    };
    loop {
        let before = newline_before(file, end)?;
        let start = before.map_or(0, |newline| newline + 1);
        let mut line = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
        file.read_exact_at(&mut line, start)?;
        if serde_json::from_slice::<IgnoredAny>(&line).is_ok() {
            return Ok(LastLine { line: Some(line), end: end + 1 });
        }
        match before {
            Some(newline) => end = newline,
            None => return Ok(LastLine { line: None, end: 0 }),
        }
    }
}

/// The position of the last newline in the first `end` bytes.
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
