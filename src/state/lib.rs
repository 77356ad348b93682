//! Files that outlive the daemon: nothing but files, whatever is in them.
//!
//! * [`StateDir`] is the directory, locked: one daemon has it.
//! * A [`Journal`] is written at its end only, a batch of whole lines at a time ([`lines`]).
//! * [`replace`] writes a whole file anew.
//! * [`WriteHealth`] lists the files that are not being written at the moment.
//! * [`Acceptance`] is an operator's one-time decision, left in the directory for the next start.
//! * [`Generations`] numbers snapshots, and never twice the same.
//! * Both write, sync and rename through [`disk`], where a test observes the order.
//!
//! What all of them keep to: a daemon that is killed at any moment leaves behind files that the next one can read; a file
//! is the daemon's user's alone (0600); and no path leads out of the directory through a symbolic link, so that a
//! directory that others can write to, such as /tmp, can cost the state but nobody's files.

#![forbid(unsafe_code)]
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the modules' pages are for readers of the source, links included"
)]

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::OFlags;

mod accept;
mod dir;
pub mod disk;
mod generations;
mod health;
mod late;
pub mod lines;

#[cfg(test)]
mod tests;

pub use accept::{AcceptError, Acceptance, AcceptanceRecord, accept, is_accepted};
pub use dir::{StateDir, StateDirError};
pub use generations::Generations;
pub use health::{Unwritten, WriteHealth};
pub use late::LazyJournal;
pub use lines::{Journal, Rotation};

/// Permissions of every file: what is in it may say who uses what.
const FILE_MODE: u32 = 0o600;

/// A pipe in the place of a file would otherwise wait for its other end.
const O_NONBLOCK: i32 = OFlags::NONBLOCK.bits() as i32;
const O_NOFOLLOW: i32 = OFlags::NOFOLLOW.bits() as i32;

/// What could not be done to which file.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot {what}: {error}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What was tried.
    pub what: &'static str,
    /// What the system says.
    pub error: io::Error,
}

/// Completes an [`io::Error`] about `path`.
fn failed<'a>(path: &'a Path, what: &'static str) -> impl Fn(io::Error) -> FileError + use<'a> {
    move |error| FileError { path: path.to_path_buf(), what, error }
}

/// Opens a file of the state directory, and makes it if it is missing.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<std::fs::File> {
    let file = options.create(true).mode(FILE_MODE).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

/// Opens a file of the state directory that is there.
///
/// # Errors
/// When it cannot be opened, or is no regular file of the directory's own.
pub fn open_to_read(path: &Path) -> io::Result<std::fs::File> {
    let file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

/// The time by the calendar, to the second: more is of no use to a reader.
pub fn current_second() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// The whole file at `path`, if there is one.
///
/// # Errors
/// When it is there and cannot be read.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let content = open_to_read(path).and_then(|mut file| {
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        Ok(content)
    });
    match content {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, "read it")(error)),
    }
}

/// Removes the file at `path`, durably, if there is one.
///
/// # Errors
/// When that fails.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match disk::remove_file(path) {
        Ok(()) => disk::sync_directory(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(failed(path, "remove it"))
}

/// Replaces the file at `path` by what `write` writes: after a crash at any moment it is the old one or the new one, whole.
/// When this returns without an error, the new one survives a loss of power.
///
/// One thread at a time may replace a file: what is being written is beside it, under its name and `.new`.
///
/// # Errors
/// When anything fails; then the old file is as it was, but for one case: where the name cannot be made durable, the new
/// one is there and may be gone after a loss of power.
pub fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<disk::File>) -> io::Result<()>,
) -> Result<(), FileError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let written = disk::File::open(&new, OpenOptions::new().write(true).truncate(true)).and_then(|file| {
        let mut writer = BufWriter::new(file);
        write(&mut writer)?;
        writer.flush()?;
        writer.get_ref().sync_all()
    });
    let replaced = match written {
        Ok(()) => disk::rename(&new, path).map_err(failed(path, "replace it")),
        Err(error) => Err(failed(&new, "write it")(error)),
    };
    if let Err(error) = replaced {
        // On a full disk the room is worth more than the half of a file.
        let _not_there = disk::remove_file(&new);
        return Err(error);
    }
    disk::sync_directory(path).map_err(failed(path, "make its new name durable"))
}
