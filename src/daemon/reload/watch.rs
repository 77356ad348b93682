//! Notices that the export may have changed. It need not be right, only in time: what it reports is
//! compared, and what it misses the poll finds.
//!
//! Every directory is watched that the kernel goes through on its way along the path ([`walk`]),
//! symbolic links included, and of each only the name that is looked up there: a new release, a
//! directory that is created again, or a link that is turned shows in the directory above it, and a
//! busy parent such as /tmp wakes nothing but a comparison of names. The file is watched by itself
//! as well, because behind a bind mount of a single file its own directory is another one.
//!
//! A directory is watched before a name is looked up in it: whatever is put there later is an
//! event.
//!
//! The `notify` crate keeps its watches by path, the kernel by inode. The two are kept in step by
//! these rules:
//!
//! * Each place is stored with its device and inode. Where another directory has taken a path, the
//!   path is unwatched first; otherwise the crate would keep the watch of the old directory for
//!   ever.
//! * One inode is watched under one path only: events of an inode carry the path that was watched
//!   last, and unwatching either path ends the watch of both.
//! * All places are watched again at each renewal, including those that have not changed. The crate
//!   removes the watch of a path when it reads that the path was deleted or renamed, even if that
//!   path has been watched again since. It reports the event first, so that a renewal follows. An
//!   inode number that is used again, and so looks unchanged, is covered too.
//!
//! Watches are renewed on a thread of their own. The crate answers a call only when it has read all
//! pending events, which may take as long as a busy directory stays busy. A reload must not wait
//! for that, and its callback must not wait for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{fs, io, mem, thread};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{ErrorKind, Event, RecommendedWatcher, RecursiveMode, Watcher};
use rustix::io::Errno;
use tracing::{debug, info, warn};

/// Symbolic links that a path may lead through: as many as the kernel follows.
const MAX_LINKS: usize = 40;

/// Watches a path. Its threads end with it.
pub(super) struct Watch {
    path: PathBuf,
    changed: Arc<dyn Fn() + Send + Sync>,
    /// `None`: the system has none to give; that is tried again.
    running: Option<Arc<Shared>>,
    /// What the log has said of that.
    refused: Option<String>,
}

impl Watch {
    /// Watches `path`; `changed` is called from other threads on anything that might matter, an
    /// overflow of the system's queue included.
    ///
    /// Where the system has no watches left, the poll is all there is; that is logged, not an
    /// error.
    pub(super) fn new(path: &Path, changed: impl Fn() + Send + Sync + 'static) -> Self {
        let mut watch =
            Self { path: path.to_path_buf(), changed: Arc::new(changed), running: None, refused: None };
        watch.renew();
        watch
    }

    /// Watches `path` from now on, which may be another than before, and whatever it leads through
    /// now. Returns at once; `changed` is called if anything has been watched that was not before.
    pub(super) fn follow(&mut self, path: &Path) {
        if self.path != path {
            self.path = path.to_path_buf();
        }
        self.renew();
    }

    fn renew(&mut self) {
        if let Some(running) = &self.running {
            return running.update(|state| {
                state.path.clone_from(&self.path);
                state.asked += 1;
            });
        }
        match start(&self.path, Arc::clone(&self.changed)) {
            Ok(running) => {
                if self.refused.take().is_some() {
                    info!("the source is watched again");
                }
                self.running = Some(running);
            }
            Err(error) => {
                let error = match Errno::from_io_error(&error) {
                    Some(Errno::MFILE) => {
                        format!("{error}; fs.inotify.max_user_instances limits how many there can be")
                    }
                    _ => error.to_string(),
                };
                if self.refused.as_ref() != Some(&error) {
                    warn!(error, "cannot watch files; changes of the source are found by polling");
                    self.refused = Some(error);
                }
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.update(|state| state.is_over = true);
        }
    }
}

/// Starts the crate's thread and the one that renews the watches. The first renewal is due.
fn start(path: &Path, changed: Arc<dyn Fn() + Send + Sync>) -> io::Result<Arc<Shared>> {
    let state = State { path: path.to_path_buf(), asked: 1, ..State::default() };
    let shared = Arc::new(Shared { state: Mutex::new(state), updated: Condvar::new() });
    // A watcher whose thread could not be started panics on every call, and when it is dropped; the
    // crate reports no error. So a thread is tried first. If none is left a moment later, the
    // watcher is not dropped.
    let _ended = thread::Builder::new().spawn(|| ())?.join();
    let (handler, report) = (Arc::clone(&shared), Arc::clone(&changed));
    let watcher = notify::recommended_watcher(move |event| handler.handle(event, &*report));
    let watcher = watcher.map_err(|error| match error.kind {
        ErrorKind::Io(error) => error,
        _ => io::Error::other(error),
    })?;
    if Arc::strong_count(&shared) == 1 {
        mem::forget(watcher);
        return Err(io::Error::new(io::ErrorKind::WouldBlock, "no thread is left"));
    }
    let own = Arc::clone(&shared);
    let mut watches = Watches { watcher, shared: own, places: BTreeMap::new(), failures: BTreeMap::new() };
    thread::Builder::new().name("watch".into()).spawn(move || watches.run(&*changed))?;
    Ok(shared)
}

/// What the threads share. The crate's thread takes the lock for each event: it is never held while
/// the crate is called.
struct Shared {
    state: Mutex<State>,
    updated: Condvar,
}

#[derive(Default)]
struct State {
    path: PathBuf,
    /// The names that matter in each directory that is watched, or is about to be. None for the
    /// file.
    names: BTreeMap<PathBuf, BTreeSet<OsString>>,
    /// Renewals that were asked for, by an event or otherwise.
    asked: u64,
    /// How many of them had been asked for when the renewal began that was finished last.
    done: u64,
    /// Whether the next renewal is due to an event.
    is_event: bool,
    is_over: bool,
    /// Paths of all events that have been weighed.
    #[cfg(test)]
    weighed: BTreeSet<PathBuf>,
}

/// What an event may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Nothing,
    /// What is in the file.
    Content,
    /// Which file it is.
    Way,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, update: impl FnOnce(&mut State)) {
        update(&mut self.lock());
        self.updated.notify_all();
    }

    /// Called by the crate's thread. A change is reported at once, because a renewal may be long in
    /// coming.
    fn handle(&self, event: notify::Result<Event>, changed: &dyn Fn()) {
        let effect = match &event {
            Ok(event) => self.weigh(event),
            Err(error) => {
                debug!(%error, "file watch");
                Effect::Way
            }
        };
        if effect == Effect::Way {
            self.update(|state| {
                state.asked += 1;
                state.is_event = true;
            });
        }
        #[cfg(test)]
        self.update(|state| state.weighed.extend(event.into_iter().flat_map(|event| event.paths)));
        if effect != Effect::Nothing {
            changed();
        }
    }

    fn weigh(&self, event: &Event) -> Effect {
        if event.need_rescan() {
            return Effect::Way;
        }
        let effect = match event.kind {
            // That a file was closed says that its writer has ended, and after writes to mapped
            // memory nothing else does.
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Data(_)) => Effect::Content,
            // Reading the export must not be the cause of the next reading.
            EventKind::Access(_) => return Effect::Nothing,
            _ => Effect::Way,
        };
        let state = self.lock();
        let matters = |path: &PathBuf| {
            let is_name = |directory: &Path| {
                let names = state.names.get(directory).zip(path.file_name());
                names.is_some_and(|(names, name)| names.contains(name))
            };
            state.names.contains_key(path) || path.parent().is_some_and(is_name)
        };
        if event.paths.iter().any(matters) { effect } else { Effect::Nothing }
    }

    /// Waits until a renewal is due. `None`: the watch has ended.
    fn next(&self) -> Option<Renewal> {
        let is_idle = |state: &mut State| state.asked == state.done && !state.is_over;
        let mut state = self.updated.wait_while(self.lock(), is_idle).unwrap_or_else(PoisonError::into_inner);
        let is_event = mem::take(&mut state.is_event);
        (!state.is_over).then(|| Renewal { path: state.path.clone(), asked: state.asked, is_event })
    }
}

/// One that is due, as [`State`] describes it.
struct Renewal {
    path: PathBuf,
    asked: u64,
    is_event: bool,
}

/// A file system and an inode in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

/// Why a place is not watched.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Refusal {
    /// The system has no watch left.
    NoneLeft,
    Unreadable,
    Other(String),
}

/// The side of the thread that renews.
struct Watches {
    watcher: RecommendedWatcher,
    shared: Arc<Shared>,
    /// What is watched: directories and the file.
    places: BTreeMap<PathBuf, Identity>,
    /// What the log has said of places that cannot be watched.
    failures: BTreeMap<PathBuf, Refusal>,
}

/// What a renewal has found so far.
#[derive(Default)]
struct Found {
    places: BTreeMap<PathBuf, Identity>,
    failures: BTreeMap<PathBuf, Refusal>,
    names: BTreeMap<PathBuf, BTreeSet<OsString>>,
    /// Whether any place is watched that was not before.
    has_new: bool,
    /// The last of them that is a directory.
    new_directory: Option<PathBuf>,
}

impl Watches {
    fn run(&mut self, changed: &dyn Fn()) {
        while let Some(Renewal { path, asked, is_event }) = self.shared.next() {
            let has_new = self.renew(&path);
            // What happened in a directory before it was watched was no event.
            if is_event || has_new {
                changed();
            }
            self.shared.update(|state| state.done = asked);
        }
    }

    /// Watches what the path leads through now, and nothing else. Returns whether any of it was not
    /// watched before.
    fn renew(&mut self, path: &Path) -> bool {
        let is_first = self.places.is_empty();
        let mut found = Found::default();
        let file = walk(path, |directory, name| self.watch(&mut found, directory, Some(name)));
        // Opening a named pipe or a device is none of a watch's business, but watching one does no
        // harm either.
        if let Some(file) = &file {
            self.watch(&mut found, file, None);
        }
        for path in self.places.keys().filter(|path| !found.places.contains_key(*path)) {
            unwatch(&mut self.watcher, path);
        }
        report(&self.failures, &found.failures);
        if !is_first && let Some(directory) = &found.new_directory {
            info!(directory = %directory.display(), "the source's path leads through another directory; it is watched now");
        }
        self.shared.update(|state| state.names = found.names);
        (self.places, self.failures) = (found.places, found.failures);
        found.has_new
    }

    /// Watches a directory, of which `name` matters, or the file.
    fn watch(&mut self, found: &mut Found, path: &Path, name: Option<&OsStr>) {
        // Replaced since it was looked up, here and below: the directory above reports that.
        let Ok(metadata) = fs::symlink_metadata(path) else { return };
        if metadata.is_symlink() || (name.is_some() && !metadata.is_dir()) {
            return;
        }
        let identity = Identity { device: metadata.dev(), inode: metadata.ino() };
        // By the path under which it is watched already, if another leads to it too.
        let known = found.places.iter().find(|(_, other)| **other == identity);
        let known = known.map(|(path, _)| path.clone());
        let place = known.as_deref().unwrap_or(path);
        found.names.entry(place.to_path_buf()).or_default().extend(name.map(OsStr::to_os_string));
        // Before it is watched: its events are weighed from the first on.
        self.shared
            .lock()
            .names
            .entry(place.to_path_buf())
            .or_default()
            .extend(name.map(OsStr::to_os_string));
        if known.is_some() {
            return;
        }
        let is_watched = self.places.get(path) == Some(&identity);
        let is_stale = |(at, of): &(&PathBuf, &Identity)| (*at == path) != (**of == identity);
        let stale: Vec<_> = self.places.iter().filter(is_stale).map(|(at, _)| at.clone()).collect();
        for path in stale {
            unwatch(&mut self.watcher, &path);
            self.places.remove(&path);
        }
        match self.watcher.watch(path, RecursiveMode::NonRecursive) {
            Ok(()) => {
                found.places.insert(path.to_path_buf(), identity);
                if !is_watched {
                    debug!(path = %path.display(), "watching");
                    found.has_new = true;
                    if name.is_some() {
                        found.new_directory = Some(path.to_path_buf());
                    }
                }
            }
            Err(error) => {
                if let Some(refusal) = Refusal::of(&error) {
                    found.failures.insert(path.to_path_buf(), refusal);
                }
            }
        }
    }
}

impl Refusal {
    /// `None`: there is nothing to watch. It was replaced since it was looked up, and the directory
    /// above reports that.
    fn of(error: &notify::Error) -> Option<Self> {
        let errno = match &error.kind {
            ErrorKind::PathNotFound => return None,
            ErrorKind::MaxFilesWatch => return Some(Self::NoneLeft),
            ErrorKind::Io(error) => Errno::from_io_error(error),
            _ => None,
        };
        match errno {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            Some(Errno::ACCESS) => Some(Self::Unreadable),
            Some(errno) => Some(Self::Other(errno.to_string())),
            None => Some(Self::Other(error.to_string())),
        }
    }
}

fn unwatch(watcher: &mut RecommendedWatcher, path: &Path) {
    debug!(path = %path.display(), "watch removed");
    let _already_gone = watcher.unwatch(path);
}

/// Logs the places that cannot be watched, once for each reason that a place has, and once for all
/// where no watch is left.
fn report(before: &BTreeMap<PathBuf, Refusal>, failures: &BTreeMap<PathBuf, Refusal>) {
    let mut is_told = before.values().any(|refusal| *refusal == Refusal::NoneLeft);
    for (path, refusal) in failures {
        if before.get(path) == Some(refusal) {
            continue;
        }
        let path = path.display();
        match refusal {
            Refusal::NoneLeft if mem::replace(&mut is_told, true) => {}
            Refusal::NoneLeft => warn!(
                %path,
                "cannot watch: no watch is left; changes there are found by polling. fs.inotify.max_user_watches limits how \
                 many there can be"
            ),
            // To go through a directory takes less than to watch it.
            Refusal::Unreadable => info!(
                %path,
                "cannot watch a directory that the daemon's user may not read; if what the source's path leads through is \
                 replaced there, that is found by polling"
            ),
            Refusal::Other(error) => {
                warn!(%path, error, "cannot watch; changes there are found by polling");
            }
        }
    }
}

/// Goes along `path` as the kernel does, and calls `visit` with each directory and the name that is
/// looked up in it, before that is done. Returns what the path leads to; `None` where there is
/// nothing, or looking there is not permitted.
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
