//! A state directory for the targets that read and write files.
//!
//! It is in memory if possible: syncing files takes milliseconds on a disk, and libFuzzer runs
//! millions of inputs. libFuzzer ends without removing it; `tests/fuzz/run` sets TMPDIR, and removes
//! that.

use std::path::Path;
use std::sync::Arc;

use keyward_state::StateDir;
use tempfile::TempDir;

/// A file system in memory.
const IN_MEMORY: &str = "/dev/shm";

/// A directory that is removed when the thread ends.
pub(crate) struct Scratch {
    pub(crate) state: Arc<StateDir>,
    directory: TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let is_chosen = std::env::var_os("TMPDIR").is_some();
        let in_memory = (!is_chosen).then_some(Path::new(IN_MEMORY)).filter(|path| path.is_dir());
        let directory = in_memory.and_then(|path| tempfile::tempdir_in(path).ok());
        let directory = directory.unwrap_or_else(|| tempfile::tempdir().expect("a directory"));
        let state = StateDir::open(directory.path(), true).expect("it is writable").expect("it is there");
        Self { state: Arc::new(state), directory }
    }

    /// Replaces the file `name`, or removes it.
    pub(crate) fn put(&self, name: &str, content: Option<&[u8]>) {
        let path = self.directory.path().join(name);
        match content {
            Some(content) => std::fs::write(path, content).expect("it is writable"),
            None => drop(std::fs::remove_file(path)),
        }
    }

    /// The content of the file `name`, if it exists.
    pub(crate) fn get(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.directory.path().join(name)).ok()
    }
}
