//! Renews the watches of all places that a path leads through.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::{ErrorKind, RecommendedWatcher, RecursiveMode, Watcher};
use rustix::io::Errno;
use tracing::{debug, info, warn};

use super::path::walk;
use super::{Renewal, SharedWatchState};

/// The state of the thread that renews the watches.
pub(super) struct Renewer {
    watcher: RecommendedWatcher,
    shared: Arc<SharedWatchState>,
    /// The watched directories, and the file.
    watched: BTreeMap<PathBuf, Identity>,
    /// The errors that have been logged.
    errors: BTreeMap<PathBuf, WatchError>,
}

/// A file system and an inode in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

/// Why a path cannot be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
enum WatchError {
    /// The system has no watch left.
    NoneLeft,
    /// The directory is not readable.
    UnreadableDirectory,
    /// The file is not readable.
    UnreadableFile,
    Other(String),
}

/// The result of a renewal so far.
#[derive(Default)]
struct Progress {
    watched: BTreeMap<PathBuf, Identity>,
    errors: BTreeMap<PathBuf, WatchError>,
    names: BTreeMap<PathBuf, BTreeSet<OsString>>,
    /// Whether anything is newly watched.
    has_new: bool,
    /// The last directory that is newly watched.
    new_directory: Option<PathBuf>,
}

impl Renewer {
    pub(super) fn new(watcher: RecommendedWatcher, shared: Arc<SharedWatchState>) -> Self {
        Self { watcher, shared, watched: BTreeMap::new(), errors: BTreeMap::new() }
    }

    /// The thread's main function.
    pub(super) fn run(&mut self, changed: &dyn Fn()) {
        while let Some(Renewal { path, requested, is_event }) = self.shared.next_renewal() {
            let has_new = self.renew(&path);
            // Changes in a directory before it was watched were no events.
            if is_event || has_new {
                changed();
            }
            self.shared.update(|state| state.completed = requested);
        }
    }

    /// Watches what the path leads through now, and nothing else. Returns whether any of it is
    /// newly watched.
    fn renew(&mut self, path: &Path) -> bool {
        let is_first = self.watched.is_empty();
        let mut progress = Progress::default();
        let file = walk(path, |directory, name| self.watch(&mut progress, directory, Some(name)));
        // Whether it is a regular file does not matter here: watching a pipe or a device does no
        // harm.
        if let Some(file) = &file {
            self.watch(&mut progress, file, None);
        }
        for path in self.watched.keys().filter(|path| !progress.watched.contains_key(*path)) {
            unwatch(&mut self.watcher, path);
        }
        log_errors(&self.errors, &progress.errors);
        if !is_first && let Some(directory) = &progress.new_directory {
            info!(directory = %directory.display(), "the source's path leads through another directory; it is watched now");
        }
        self.shared.update(|state| state.names = progress.names);
        (self.watched, self.errors) = (progress.watched, progress.errors);
        progress.has_new
    }

    /// Watches a directory in which `name` matters, or the file.
    fn watch(&mut self, progress: &mut Progress, path: &Path, name: Option<&OsStr>) {
        // If it was replaced since it was looked up, here or below, the directory above reports
        // that.
        let Ok(metadata) = fs::symlink_metadata(path) else { return };
        if metadata.is_symlink() || (name.is_some() && !metadata.is_dir()) {
            return;
        }
        let identity = Identity { device: metadata.dev(), inode: metadata.ino() };
        // The path under which the inode is watched already, if another path leads to it as well.
        let known = progress.watched.iter().find(|(_, other)| **other == identity);
        let known = known.map(|(path, _)| path.clone());
        let watched_path = known.as_deref().unwrap_or(path);
        let new_names = || name.map(OsStr::to_os_string);
        progress.names.entry(watched_path.to_path_buf()).or_default().extend(new_names());
        // Before it is watched, so that its first event is classified correctly.
        self.shared.lock().names.entry(watched_path.to_path_buf()).or_default().extend(new_names());
        if known.is_some() {
            return;
        }
        let is_watched = self.watched.get(path) == Some(&identity);
        let is_stale = |(at, of): &(&PathBuf, &Identity)| (*at == path) != (**of == identity);
        let stale: Vec<_> = self.watched.iter().filter(is_stale).map(|(at, _)| at.clone()).collect();
        for path in stale {
            unwatch(&mut self.watcher, &path);
            self.watched.remove(&path);
        }
        match self.watcher.watch(path, RecursiveMode::NonRecursive) {
            Ok(()) => {
                progress.watched.insert(path.to_path_buf(), identity);
                if !is_watched {
                    debug!(path = %path.display(), "watching");
                    progress.has_new = true;
                    if name.is_some() {
                        progress.new_directory = Some(path.to_path_buf());
                    }
                }
            }
            Err(error) => {
                if let Some(error) = WatchError::of(&error, name.is_none()) {
                    progress.errors.insert(path.to_path_buf(), error);
                }
            }
        }
    }
}

impl WatchError {
    /// `None` if the path does not exist. It was replaced since it was looked up, and the directory
    /// above reports that.
    fn of(error: &notify::Error, is_file: bool) -> Option<Self> {
        let errno = match &error.kind {
            ErrorKind::PathNotFound => return None,
            ErrorKind::MaxFilesWatch => return Some(Self::NoneLeft),
            ErrorKind::Io(error) => Errno::from_io_error(error),
            _ => None,
        };
        match errno {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            Some(Errno::ACCESS) if is_file => Some(Self::UnreadableFile),
            Some(Errno::ACCESS) => Some(Self::UnreadableDirectory),
            Some(errno) => Some(Self::Other(errno.to_string())),
            None => Some(Self::Other(error.to_string())),
        }
    }
}

fn unwatch(watcher: &mut RecommendedWatcher, path: &Path) {
    debug!(path = %path.display(), "watch removed");
    // The kernel removes the watch of a deleted path itself.
    let _ = watcher.unwatch(path);
}

/// Logs the paths that cannot be watched: once for each error of a path, and only once if no watch
/// is left.
fn log_errors(before: &BTreeMap<PathBuf, WatchError>, errors: &BTreeMap<PathBuf, WatchError>) {
    let mut is_logged = before.values().any(|error| *error == WatchError::NoneLeft);
    for (path, error) in errors {
        if before.get(path) == Some(error) {
            continue;
        }
        let path = path.display();
        match error {
            WatchError::NoneLeft if mem::replace(&mut is_logged, true) => {}
            WatchError::NoneLeft => warn!(
                %path,
                "cannot watch: no watch is left; changes there are found by polling. fs.inotify.max_user_watches limits how \
                 many there can be"
            ),
            // Passing through a directory requires fewer permissions than watching it.
            WatchError::UnreadableDirectory => info!(
                %path,
                "cannot watch a directory that the daemon's user may not read; if what the source's path leads through is \
                 replaced there, that is found by polling"
            ),
            WatchError::UnreadableFile => info!(
                %path,
                "cannot watch the source, which the daemon's user may not read; another file that is renamed over it is noticed \
                 if its directory can be watched, and a change of its permissions by polling"
            ),
            WatchError::Other(error) => {
                warn!(%path, error, "cannot watch; changes there are found by polling");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_file_is_not_called_a_directory() {
        let denied = || notify::Error::io(Errno::ACCESS.into());
        assert_eq!(WatchError::of(&denied(), true), Some(WatchError::UnreadableFile));
        assert_eq!(WatchError::of(&denied(), false), Some(WatchError::UnreadableDirectory));
    }
}
