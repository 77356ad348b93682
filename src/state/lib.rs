//! The files that outlive the daemon.
//!
//! * [`StateDir`] is the state directory, locked by one daemon.
//! * A [`Journal`] is an append-only file of JSON Lines.
//! * [`replace`] replaces a whole file.
//! * [`WriteHealth`] lists the files that cannot be written at the moment.
//! * [`Acceptance`] is an operator's one-time decision for the next start.
//! * [`Generations`] numbers the states of all keys without repetition.
//! * [`disk`] has all calls that write, sync and rename, so that tests can observe their order.
//! * [`time`] has the clock and the timed waits, so that a test can simulate them.
//!
//! All of them guarantee: a daemon that is killed at any moment leaves files that the next one can
//! read; only the daemon's user can access a file (0600); and no symbolic link leads out of the
//! directory, so in a directory that others can write to, such as /tmp, only the state is at risk.

#![forbid(unsafe_code)]
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the modules' pages are for readers of the source, links included"
)]

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

mod accept;
mod dir;
pub mod disk;
mod generations;
mod health;
mod journal;
mod lazy_journal;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod time;
mod timestamp;

#[cfg(test)]
mod tests;

pub use accept::{AcceptError, Acceptance, AcceptanceRecord, accept, is_accepted};
pub use dir::{StateDir, StateDirError, first_state_file};
pub use generations::Generations;
pub use health::{Unwritten, WriteHealth};
pub use journal::{Journal, OpenedJournal, Rotation};
pub use lazy_journal::LazyJournal;
pub use time::current_second;
pub use timestamp::Timestamp;

/// The permissions of every file: the content may show who uses what.
const FILE_MODE: u32 = 0o600;

/// Without it, opening a named pipe would wait for the other end.
const O_NONBLOCK: i32 = OFlags::NONBLOCK.bits() as i32;
const O_NOFOLLOW: i32 = OFlags::NOFOLLOW.bits() as i32;

/// An operation on a file failed.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot {action}: {error}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// The operation, as it follows "cannot".
    pub action: &'static str,
    /// The system's error.
    #[source]
    pub error: io::Error,
}

/// Converts an [`io::Error`] about `path`.
fn failed<'a>(path: &'a Path, action: &'static str) -> impl Fn(io::Error) -> FileError + use<'a> {
    move |error| FileError { path: path.to_path_buf(), action, error }
}

/// Opens a file of the state directory, and creates it if it is missing.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<std::fs::File> {
    let file = options.create(true).mode(FILE_MODE).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

/// Opens an existing file of the state directory for reading.
///
/// # Errors
/// When it cannot be opened, or is not a regular file.
pub fn open_to_read(path: &Path) -> io::Result<std::fs::File> {
    let file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

/// The whole file at `path`, if there is one. `max_bytes` is more than any valid file has: the
/// memory of the daemon must not depend on what another program has left there.
///
/// # Errors
/// When the file exists and cannot be read, or is larger than `max_bytes`.
pub fn read(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, FileError> {
    let content = open_to_read(path).and_then(|file| {
        let (mut content, mut length) = (Vec::new(), file.metadata()?.len());
        if length <= max_bytes {
            // It may grow meanwhile.
            file.take(max_bytes.saturating_add(1)).read_to_end(&mut content)?;
            length = content.len() as u64;
        }
        if length > max_bytes {
            return Err(io::Error::other(format!(
                "it is larger than {max_bytes} bytes, and so is not the file that the daemon has written"
            )));
        }
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

/// Replaces the file at `path` by the content that `write` writes. After a crash at any moment
/// there is the complete old or the complete new file. When this returns without an error, the new
/// file survives a loss of power.
///
/// The new file is written beside the old one, with `.new` added to its name. So only one thread at
/// a time may replace a file.
///
/// # Errors
/// When any operation fails. Then the old file is unchanged, with one exception: if the new name
/// cannot be made durable, the new file is in place, but may be gone after a loss of power.
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
        // Frees the space of the unfinished file. It may not exist.
        let _ = disk::remove_file(&new);
        return Err(error);
    }
    disk::sync_directory(path).map_err(failed(path, "make its new name durable"))
}
