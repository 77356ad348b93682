//! The system calls that durability depends on, so that tests can observe their order.
//!
//! In production each function is the call that it is named after. In tests, a `trace::Trace` of a
//! directory records the calls on its files, says what a power cut would lose at that moment, and
//! can have a call fail. A `trace::Interceptor` decides about each call.

use std::fs::{self, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Deref;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

#[cfg(any(test, feature = "trace"))]
pub mod trace;

/// Makes a call of the system. In tests, it is recorded, and can be made to fail.
macro_rules! traced {
    ($call:ident($($path:expr),+), $operation:expr) => {{
        #[cfg(any(test, feature = "trace"))]
        {
            trace::make(trace::Call::$call($($path.to_owned()),+), || $operation)
        }
        #[cfg(not(any(test, feature = "trace")))]
        {
            $operation
        }
    }};
}

/// An open file whose writes and syncs can be traced. Everything else is done on the [`fs::File`]
/// itself.
#[derive(Debug)]
pub struct File {
    file: fs::File,
    #[cfg(any(test, feature = "trace"))]
    path: std::path::PathBuf,
}

impl File {
    /// Opens the file at `path`, and creates it if it is missing (see [`open`](super::open)).
    pub(super) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<Self> {
        #[cfg(any(test, feature = "trace"))]
        if !path.exists() {
            let file = trace::make(trace::Call::Create(path.to_owned()), || super::open(path, options))?;
            return Ok(Self { file, path: path.to_owned() });
        }
        let file = super::open(path, options)?;
        Ok(Self {
            file,
            #[cfg(any(test, feature = "trace"))]
            path: path.to_owned(),
        })
    }

    /// Opens the existing file at `path` to be written in place.
    ///
    /// # Errors
    /// When it cannot be opened or is not a regular file. A symbolic link is not followed.
    pub fn open_existing(path: &Path) -> io::Result<Self> {
        let file =
            OpenOptions::new().write(true).custom_flags(super::O_NOFOLLOW | super::O_NONBLOCK).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok(Self {
            file,
            #[cfg(any(test, feature = "trace"))]
            path: path.to_owned(),
        })
    }

    /// fdatasync(2): the content survives a loss of power, and with it the length.
    ///
    /// # Errors
    /// When the call fails.
    pub fn sync_data(&self) -> io::Result<()> {
        traced!(Sync(self.path), self.file.sync_data())
    }

    /// fsync(2): as [`sync_data`](Self::sync_data), and all metadata.
    pub(super) fn sync_all(&self) -> io::Result<()> {
        traced!(Sync(self.path), self.file.sync_all())
    }

    /// ftruncate(2)
    ///
    /// # Errors
    /// When the call fails.
    pub fn set_len(&self, length: u64) -> io::Result<()> {
        traced!(Write(self.path), self.file.set_len(length))
    }

    /// pwrite(2), until all bytes are written.
    ///
    /// # Errors
    /// When a call fails.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        traced!(Write(self.path), self.file.write_all_at(bytes, offset))
    }
}

impl Deref for File {
    type Target = fs::File;

    fn deref(&self) -> &fs::File {
        &self.file
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(any(test, feature = "trace"))]
        let bytes = trace::shortened(&self.path, bytes);
        traced!(Write(self.path), self.file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// rename(2)
///
/// # Errors
/// When the call fails.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    traced!(Rename(from, to), fs::rename(from, to))
}

/// unlink(2)
///
/// # Errors
/// When the call fails.
pub fn remove_file(path: &Path) -> io::Result<()> {
    traced!(Remove(path), fs::remove_file(path))
}

/// mkdir(2)
pub(super) fn create_directory(path: &Path, builder: &fs::DirBuilder) -> io::Result<()> {
    traced!(CreateDirectory(path), builder.create(path))
}

/// fsync(2) on the directory that `path` is in: the names in it survive a loss of power.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    traced!(SyncDirectory(directory), fs::File::open(directory)?.sync_all())
}
