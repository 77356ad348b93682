//! The system calls that durability depends on, so that tests can observe their order.
//!
//! In production each function is the call that it is named after. In tests, a `trace::Trace` of a
//! directory records the calls on its files, says what a power cut would lose at that moment, and
//! can have a call fail.

use std::fs::{self, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Deref;
use std::path::Path;

#[cfg(any(test, feature = "trace"))]
pub mod trace;

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
            trace::call(trace::Call::Create(path.to_owned()))?;
        }
        let file = super::open(path, options)?;
        #[cfg(any(test, feature = "trace"))]
        let path = path.to_owned();
        Ok(Self {
            file,
            #[cfg(any(test, feature = "trace"))]
            path,
        })
    }

    /// fdatasync(2): the content survives a loss of power, and with it the length.
    pub fn sync_data(&self) -> io::Result<()> {
        #[cfg(any(test, feature = "trace"))]
        trace::call(trace::Call::Sync(self.path.clone()))?;
        self.file.sync_data()
    }

    /// fsync(2): as [`sync_data`](Self::sync_data), and all metadata.
    pub(super) fn sync_all(&self) -> io::Result<()> {
        #[cfg(any(test, feature = "trace"))]
        trace::call(trace::Call::Sync(self.path.clone()))?;
        self.file.sync_all()
    }

    /// ftruncate(2)
    pub fn set_len(&self, length: u64) -> io::Result<()> {
        #[cfg(any(test, feature = "trace"))]
        trace::call(trace::Call::Write(self.path.clone()))?;
        self.file.set_len(length)
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
        trace::call(trace::Call::Write(self.path.clone()))?;
        #[cfg(any(test, feature = "trace"))]
        let bytes = trace::shorten(&self.path, bytes);
        self.file.write(bytes)
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
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(test, feature = "trace"))]
    trace::call(trace::Call::Rename(from.to_owned(), to.to_owned()))?;
    fs::rename(from, to)
}

/// unlink(2)
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    #[cfg(any(test, feature = "trace"))]
    trace::call(trace::Call::Remove(path.to_owned()))?;
    fs::remove_file(path)
}

/// mkdir(2)
pub(super) fn create_directory(path: &Path, builder: &fs::DirBuilder) -> io::Result<()> {
    builder.create(path)?;
    #[cfg(any(test, feature = "trace"))]
    trace::call(trace::Call::CreateDirectory(path.to_owned()))?;
    Ok(())
}

/// fsync(2) on the directory that `path` is in: the names in it survive a loss of power.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    #[cfg(any(test, feature = "trace"))]
    trace::call(trace::Call::SyncDirectory(directory.to_owned()))?;
    fs::File::open(directory)?.sync_all()
}
