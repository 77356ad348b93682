//! Notices that the export may have changed. It need not be right, only in time: what it reports is compared, and what it
//! misses the poll finds.
//!
//! Every directory is watched that the kernel goes through on its way along the path ([`walk`]), symbolic links included, and
//! of each only the name that is looked up there: a new release, a directory that is created again, or a link that is turned
//! shows in the directory above it, and a busy parent such as /tmp wakes nothing else. The file is watched by itself as well,
//! because behind a bind mount of a single file its own directory is another one.
//!
//! A watch belongs to an inode, and `notify` knows it by its path. A directory that is replaced keeps its path and loses its
//! watch, so each is remembered with the identity of what was watched. All of them are compared after every event, after every
//! reload and at every poll; those that have changed are watched anew, and those that are not on the path any more are removed.
//!
//! A directory is watched before a name is looked up in it: whatever is put there later is an event.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::SystemTime;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{ErrorKind, Event, RecommendedWatcher, RecursiveMode, Watcher};
use rustix::io::Errno;
use tracing::{debug, info, warn};

/// Symbolic links that a path may lead through: as many as the kernel follows.
const MAX_LINKS: usize = 40;

/// Watches a path. Its thread ends with it.
pub(super) struct Watch {
    path: PathBuf,
    changed: Arc<dyn Fn() + Send + Sync>,
    /// `None`: the system has none to give; that is tried again.
    watched: Option<Arc<Mutex<Watched>>>,
    /// What the log has said of that.
    refused: Option<String>,
}

/// What is watched now.
struct Watched {
    watcher: RecommendedWatcher,
    path: PathBuf,
    places: BTreeMap<PathBuf, Place>,
    /// What the log has said of places that cannot be watched.
    failures: BTreeMap<PathBuf, String>,
}

/// A directory with the names that matter in it, or the file.
#[derive(Debug)]
struct Place {
    identity: Identity,
    names: BTreeSet<OsString>,
}

/// What tells an inode from those that had its path, or its number, before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    dev: u64,
    inode: u64,
    /// Where the file system knows it.
    created: Option<SystemTime>,
}

impl Identity {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(Self { dev: metadata.dev(), inode: metadata.ino(), created: metadata.created().ok() })
    }
}

impl Watch {
    /// Watches `path`; `changed` is called from a thread of its own on anything that might matter, an overflow of the
    /// system's queue included.
    ///
    /// Where the system has no watches left, the poll is all there is; that is logged, not an error.
    pub(super) fn new(path: &Path, changed: impl Fn() + Send + Sync + 'static) -> Self {
        let mut watch =
            Self { path: path.to_path_buf(), changed: Arc::new(changed), watched: None, refused: None };
        watch.renew();
        watch
    }

    /// Watches `path` from now on, which may be another than before, and whatever it leads through now.
    pub(super) fn follow(&mut self, path: &Path) {
        if self.path != path {
            self.path = path.to_path_buf();
        }
        self.renew();
    }

    fn renew(&mut self) {
        if let Some(watched) = &self.watched {
            let mut watched = lock(watched);
            watched.path.clone_from(&self.path);
            return watched.renew();
        }
        match start(&self.path, Arc::clone(&self.changed)) {
            Ok(watched) => {
                if self.refused.take().is_some() {
                    info!("the source is watched again");
                }
                self.watched = Some(watched);
            }
            Err(error) => {
                let error = format!("{error} (fs.inotify.max_user_instances limits how many there can be)");
                if self.refused.as_ref() != Some(&error) {
                    warn!(error, "cannot watch files; changes of the source are found by polling");
                    self.refused = Some(error);
                }
            }
        }
    }
}

fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(path: &Path, changed: Arc<dyn Fn() + Send + Sync>) -> notify::Result<Arc<Mutex<Watched>>> {
    // A watch is changed by asking the thread that calls this, so events are handled by another one.
    let (send, events) = channel();
    let watcher = notify::recommended_watcher(move |event| _ = send.send(event))?;
    let mut watched =
        Watched { watcher, path: path.to_path_buf(), places: BTreeMap::new(), failures: BTreeMap::new() };
    watched.renew();
    let watched = Arc::new(Mutex::new(watched));
    let own = Arc::downgrade(&watched);
    thread::Builder::new().name("watch".into()).spawn(move || handle(&events, &own, &*changed))?;
    Ok(watched)
}

/// Handles events until the watch is dropped, and with it the sender.
fn handle(events: &Receiver<notify::Result<Event>>, watched: &Weak<Mutex<Watched>>, changed: &dyn Fn()) {
    while let Ok(event) = events.recv() {
        let Some(watched) = watched.upgrade() else { return };
        let matters = {
            let mut watched = lock(&watched);
            // What has arrived together is one change. Events that never end must not keep it from being reported.
            let more: Vec<_> = events.try_iter().take(MAX_TOGETHER).collect();
            let matters = std::iter::once(event).chain(more).fold(false, |matters, event| {
                let own = event.map_or_else(|error| note(&error), |event| watched.matters(&event));
                matters | own
            });
            if matters {
                watched.renew();
            }
            matters
        };
        if matters {
            changed();
        }
    }
}

/// Events that are handled together, at most.
const MAX_TOGETHER: usize = 256;

/// An error may stand for events that were lost.
fn note(error: &notify::Error) -> bool {
    debug!(%error, "file watch");
    true
}

impl Watched {
    /// Whether an event may have changed the file, or the way to it.
    fn matters(&mut self, event: &Event) -> bool {
        if event.need_rescan() {
            return true;
        }
        // Reading is no change. That a file was closed says that its writer has ended.
        if event.kind.is_access() && event.kind != EventKind::Access(AccessKind::Close(AccessMode::Write)) {
            return false;
        }
        let is_gone = matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
        let mut matters = false;
        for path in &event.paths {
            if self.places.contains_key(path) {
                matters = true;
                if is_gone {
                    // Its watch has ended with it, or has moved along.
                    self.remove(path);
                }
            }
            let place = path.parent().and_then(|directory| self.places.get(directory));
            matters |= place.zip(path.file_name()).is_some_and(|(place, name)| place.names.contains(name));
        }
        matters
    }

    fn remove(&mut self, path: &Path) {
        debug!(path = %path.display(), "watch removed");
        self.places.remove(path);
        let _already_gone = self.watcher.unwatch(path);
    }

    /// Watches what the path leads through now, and nothing else.
    fn renew(&mut self) {
        let is_first = self.places.is_empty();
        let mut wanted: BTreeMap<PathBuf, BTreeSet<OsString>> = BTreeMap::new();
        let mut failures = BTreeMap::new();
        let mut last_new = None;
        let path = self.path.clone();
        let mut watch = |path: &Path, name: Option<&OsStr>| {
            wanted.entry(path.to_path_buf()).or_default().extend(name.map(OsStr::to_os_string));
            match self.watch(path) {
                Ok(is_new) => {
                    last_new =
                        Some(path.to_path_buf()).filter(|_| is_new && name.is_some()).or(last_new.take())
                }
                Err(error) => _ = failures.insert(path.to_path_buf(), error),
            }
        };
        let file = walk(&path, |directory, name| watch(directory, Some(name)));
        // A named pipe or a device is watched too, which does no harm.
        if let Some(file) = &file {
            watch(file, None);
        }
        failures.retain(|_, error| error.is_some());
        let failures = failures.into_iter().filter_map(|(path, error)| Some((path, error?)));
        self.report(failures.collect(), last_new.filter(|_| !is_first));
        let gone: Vec<_> = self.places.keys().filter(|path| !wanted.contains_key(*path)).cloned().collect();
        gone.iter().for_each(|path| self.remove(path));
        for (path, names) in wanted {
            if let Some(place) = self.places.get_mut(&path) {
                place.names = names;
            }
        }
    }

    /// Watches what is at `path`, if it is not watched yet; returns whether it was not.
    ///
    /// # Errors
    /// Why it cannot be watched; `None`: it is not there, which the directory above it reports.
    fn watch(&mut self, path: &Path) -> Result<bool, Option<String>> {
        // Before the watch: what replaces it later has another identity, and is watched anew.
        let identity = Identity::of(path).map_err(|error| explain(&error))?;
        if self.places.get(path).is_some_and(|place| place.identity == identity) {
            return Ok(false);
        }
        if self.places.contains_key(path) {
            self.remove(path);
        }
        self.watcher.watch(path, RecursiveMode::NonRecursive).map_err(|error| match &error.kind {
            ErrorKind::PathNotFound => None,
            ErrorKind::Io(io) => explain(io),
            ErrorKind::MaxFilesWatch => {
                Some(format!("{error}; fs.inotify.max_user_watches limits how many watches there can be"))
            }
            _ => Some(error.to_string()),
        })?;
        debug!(path = %path.display(), "watching");
        self.places.insert(path.to_path_buf(), Place { identity, names: BTreeSet::new() });
        Ok(true)
    }

    /// Logs what is different from before.
    fn report(&mut self, failures: BTreeMap<PathBuf, String>, new: Option<PathBuf>) {
        for (path, error) in &failures {
            if self.failures.get(path) != Some(error) {
                warn!(path = %path.display(), error, "cannot watch; changes there are found by polling");
            }
        }
        self.failures = failures;
        if let Some(directory) = new {
            let directory = directory.display();
            info!(%directory, "the source's path leads through another directory; it is watched now");
        }
    }
}

/// `None`: there is nothing to be watched.
fn explain(error: &io::Error) -> Option<String> {
    let is_absent = matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP));
    (!is_absent).then(|| error.to_string())
}

/// Goes along `path` as the kernel does, and calls `visit` with each directory and the name that is looked up in it, before that is
/// done. Returns what the path leads to; `None` where there is nothing, or nobody may look.
fn walk(path: &Path, mut visit: impl FnMut(&Path, &OsStr)) -> Option<PathBuf> {
    // Without symbolic links in it: what is above a directory is what its path says.
    let mut directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    let mut rest: Vec<OsString> = Vec::new();
    let push = |rest: &mut Vec<OsString>, path: &Path| {
        rest.extend(path.components().rev().map(|part| part.as_os_str().to_os_string()));
    };
    push(&mut rest, path);
    let mut links = 0;
    let mut found = None;
    while let Some(name) = rest.pop() {
        match Path::new(&name).components().next() {
            Some(Component::RootDir) => directory = PathBuf::from("/"),
            Some(Component::ParentDir) => _ = directory.pop(),
            Some(Component::Normal(_)) => {
                visit(&directory, &name);
                let next = directory.join(&name);
                if std::fs::symlink_metadata(&next).ok()?.is_symlink() {
                    links += 1;
                    if links > MAX_LINKS {
                        return None;
                    }
                    push(&mut rest, &std::fs::read_link(&next).ok()?);
                    continue;
                }
                found = Some(next.clone());
                directory = next;
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests;
