//! Notices that the export may have changed. A report need not be right, only in time: the reload
//! thread compares the file's state, and its poll finds what the watch misses.
//!
//! The watch covers every directory that the kernel visits on the way along the path ([`path`]),
//! including those of symbolic links, and in each of them only the name that is looked up there. A
//! new release, a recreated directory, or a changed link shows in the directory above it; other
//! activity in a busy parent such as /tmp costs only a comparison of names. The file itself is
//! watched as well, because behind a bind mount of a single file its own directory is another one.
//!
//! A directory is watched before a name is looked up in it, so whatever is put there later is an
//! event.
//!
//! The `notify` crate identifies its watches by path, the kernel by inode. These rules keep the two
//! in step:
//!
//! * Each watched path is stored with its device and inode. If another directory has taken the
//!   path, the path is unwatched first; otherwise `notify` would retain the watch of the old
//!   directory.
//! * An inode is watched under one path only: its events carry the path that was watched last, and
//!   unwatching either path ends the watch of both.
//! * Each renewal watches all paths again, including unchanged ones. `notify` removes the watch of
//!   a path when it reads that the path was deleted or renamed, even if the path has been watched
//!   again since. It reports the event first, so a renewal follows. This also covers an inode
//!   number that is reused and so looks unchanged.
//!
//! A separate thread renews the watches ([`renewal`]). `notify` answers a call only after it has
//! read all pending events, which may take as long as a busy directory stays busy. A reload must
//! not wait for that, and the callback of `notify` must not wait for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{io, mem, thread};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{ErrorKind, Event};
use rustix::io::Errno;
use tracing::{debug, info, warn};

mod path;
mod renewal;
#[cfg(test)]
mod tests;

use renewal::Renewer;

/// Watches a path. Dropping it ends its threads.
pub(super) struct SourceWatch {
    path: PathBuf,
    changed: Arc<dyn Fn() + Send + Sync>,
    /// `None` if the system could not provide a watch. The next renewal retries.
    running: Option<Arc<SharedWatchState>>,
    /// The error that has been logged for that.
    logged_error: Option<String>,
}

impl SourceWatch {
    /// Watches `path`. `changed` is called from other threads on anything that might matter,
    /// including an overflow of the system's queue.
    ///
    /// If the system has no watches left, only the poll remains. That is logged, and is not an
    /// error.
    pub(super) fn new(path: &Path, changed: impl Fn() + Send + Sync + 'static) -> Self {
        let mut watch =
            Self { path: path.to_path_buf(), changed: Arc::new(changed), running: None, logged_error: None };
        watch.renew();
        watch
    }

    /// Watches `path`, which may differ from the previous one, and everything that it leads through
    /// now. Returns at once. `changed` is called if anything is newly watched.
    pub(super) fn follow(&mut self, path: &Path) {
        if self.path != path {
            self.path = path.to_path_buf();
        }
        self.renew();
    }

    fn renew(&mut self) {
        // In the model test, the poll alone finds changes, at the times that the test determines.
        #[cfg(feature = "simulation")]
        if keyward_state::simulation::time().is_some() {
            self.changed = Arc::new(|| ());
            return;
        }
        if let Some(running) = &self.running {
            return running.update(|state| {
                state.path.clone_from(&self.path);
                state.requested += 1;
            });
        }
        match start(&self.path, Arc::clone(&self.changed)) {
            Ok(running) => {
                if self.logged_error.take().is_some() {
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
                if self.logged_error.as_ref() != Some(&error) {
                    warn!(error, "cannot watch files; changes of the source are found by polling");
                    self.logged_error = Some(error);
                }
            }
        }
    }
}

impl Drop for SourceWatch {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.update(|state| state.is_stopped = true);
        }
    }
}

/// Starts the thread of `notify` and the thread that renews the watches. The first renewal is due
/// at once.
fn start(path: &Path, changed: Arc<dyn Fn() + Send + Sync>) -> io::Result<Arc<SharedWatchState>> {
    let state = State { path: path.to_path_buf(), requested: 1, ..State::default() };
    let shared = Arc::new(SharedWatchState { state: Mutex::new(state), updated: Condvar::new() });
    // A watcher whose thread could not be started panics on every call, and when it is dropped;
    // `notify` reports no error. So try a thread first. If none is left a moment later, do not drop
    // the watcher.
    let _ = thread::Builder::new().spawn(|| ())?.join();
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
    let mut renewer = Renewer::new(watcher, Arc::clone(&shared));
    thread::Builder::new().name("watch".into()).spawn(move || renewer.run(&*changed))?;
    Ok(shared)
}

/// The state that the threads share. The thread of `notify` takes the lock for each event, so the
/// lock is never held while `notify` is called.
struct SharedWatchState {
    state: Mutex<State>,
    updated: Condvar,
}

#[derive(Default)]
struct State {
    path: PathBuf,
    /// The names that matter in each directory that is watched or about to be. There are none for
    /// the file.
    names: BTreeMap<PathBuf, BTreeSet<OsString>>,
    /// The number of renewals that have been requested.
    requested: u64,
    /// The value of `requested` when the last completed renewal began.
    completed: u64,
    /// Whether an event has requested the next renewal.
    is_event: bool,
    is_stopped: bool,
    /// The paths of all events that have been handled.
    #[cfg(test)]
    handled: BTreeSet<PathBuf>,
}

/// What an event may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Nothing,
    /// The content of the file.
    Content,
    /// The file that the path leads to.
    Path,
}

/// A renewal that is due, as requested in [`State`].
struct Renewal {
    path: PathBuf,
    requested: u64,
    is_event: bool,
}

impl SharedWatchState {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, update: impl FnOnce(&mut State)) {
        update(&mut self.lock());
        self.updated.notify_all();
    }

    /// Called by the thread of `notify`. A change is reported at once, because the renewal may take
    /// long.
    fn handle(&self, event: notify::Result<Event>, changed: &dyn Fn()) {
        let effect = match &event {
            Ok(event) => self.classify(event),
            Err(error) => {
                debug!(%error, "file watch");
                Effect::Path
            }
        };
        if effect == Effect::Path {
            self.update(|state| {
                state.requested += 1;
                state.is_event = true;
            });
        }
        #[cfg(test)]
        self.update(|state| state.handled.extend(event.into_iter().flat_map(|event| event.paths)));
        if effect != Effect::Nothing {
            changed();
        }
    }

    fn classify(&self, event: &Event) -> Effect {
        if event.need_rescan() {
            return Effect::Path;
        }
        let effect = match event.kind {
            // Closing shows that a writer has ended. After writes to mapped memory, it is the only
            // event.
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Data(_)) => Effect::Content,
            // Reading the export must not cause the next reading.
            EventKind::Access(_) => return Effect::Nothing,
            _ => Effect::Path,
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

    /// Waits until a renewal is due. `None`: the watch has been dropped.
    fn next_renewal(&self) -> Option<Renewal> {
        let is_idle = |state: &mut State| state.requested == state.completed && !state.is_stopped;
        let mut state = self.updated.wait_while(self.lock(), is_idle).unwrap_or_else(PoisonError::into_inner);
        let is_event = mem::take(&mut state.is_event);
        (!state.is_stopped).then(|| Renewal {
            path: state.path.clone(),
            requested: state.requested,
            is_event,
        })
    }
}
