//! Notices that the export may have changed. It need not be right, only in time: what it reports is compared, and what it
//! misses the poll finds.
//!
//! The directory is watched, not the file: a watch on a file dies when another is renamed over it. Where the path leads
//! through symbolic links, the directory of the file that they lead to is watched as well, so that writing to that
//! file in place is noticed too; Kubernetes swaps a link beside the first.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tracing::{debug, warn};

/// Watches the directories that a path leads through.
pub(super) struct Watch {
    path: PathBuf,
    watcher: Option<RecommendedWatcher>,
    directories: BTreeSet<PathBuf>,
}

impl Watch {
    /// Watches `path`; `changed` is called from a thread of its own on anything that might matter, an overflow of the
    /// system's queue included.
    ///
    /// Where the system has no watches left, the poll is all there is; that is logged, not an error.
    pub(super) fn new(path: &Path, changed: impl Fn() + Send + 'static) -> Self {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
            // Reading the export is an event too; it must not be the cause of the next reading.
            Ok(event) if event.kind.is_access() && !event.need_rescan() => {}
            Ok(_) => changed(),
            Err(error) => {
                debug!(%error, "file watch");
                changed();
            }
        });
        let watcher = watcher
            .inspect_err(
                |error| warn!(%error, "cannot watch files; changes of the source are found by polling"),
            )
            .ok();
        let mut watch = Self { path: path.to_path_buf(), watcher, directories: BTreeSet::new() };
        watch.renew();
        watch
    }

    /// Follows the links of `path` anew, which may be another than before; to be called after each change.
    pub(super) fn follow(&mut self, path: &Path) {
        if self.path != path {
            self.path = path.to_path_buf();
        }
        self.renew();
    }

    fn renew(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let wanted = directories(&self.path);
        for gone in self.directories.difference(&wanted) {
            let _already_gone = watcher.unwatch(gone);
        }
        let watched = wanted.into_iter().filter(|directory| {
            self.directories.contains(directory)
                || watcher
                    .watch(directory, RecursiveMode::NonRecursive)
                    .inspect_err(|error| {
                        warn!(%error, directory = %directory.display(), "cannot watch; changes there are found by polling");
                    })
                    .is_ok()
        });
        self.directories = watched.collect();
    }
}

/// The directory of the path, and that of the file which it leads to.
fn directories(path: &Path) -> BTreeSet<PathBuf> {
    let parent = |path: &Path| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_path_buf(),
        None => PathBuf::from("/"),
    };
    let mut directories = BTreeSet::from([parent(path)]);
    if let Ok(target) = path.canonicalize() {
        let own = parent(path).canonicalize().ok();
        let target = parent(&target);
        if own.as_ref() != Some(&target) {
            directories.insert(target);
        }
    }
    directories
}
