//! Notices that the export may have changed. It need not be right, only in time: what it reports is compared, and what it
//! misses the poll finds.
//!
//! Every directory is watched that the kernel goes through on its way along the path ([`walk`]), symbolic links included, and of
//! each only the name that is looked up there: a new release, a directory that is created again, or a link that is turned shows in
//! the directory above it, and a busy parent such as /tmp wakes nothing else. The file is watched by itself as well, because
//! behind a bind mount of a single file its own directory is another one.
//!
//! Directories are told apart by their watch descriptors. The kernel gives one to each inode: the same directory under any path has
//! the same, and another directory that takes its path has another. So all watches are asked for again after every event, after every
//! reload and at every poll, and those that are not given again are removed.
//!
//! A directory is watched before a name is looked up in it: whatever is put there later is an event.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tracing::{debug, info, warn};

/// Symbolic links that a path may lead through: as many as the kernel follows.
const MAX_LINKS: usize = 40;

/// Bytes of events that are read at once: some hundred.
const EVENTS: usize = 16 << 10;

/// What may change the way that a path leads through a directory.
const IN_DIRECTORY: WatchFlags = WatchFlags::ONLYDIR
    .union(WatchFlags::EXCL_UNLINK)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

/// What may change a file. That it was closed says that its writer has ended. Reading is no event.
const OF_FILE: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

/// The directory or file itself is not what it was, or is not watched any more.
const OF_ITSELF: ReadFlags =
    ReadFlags::DELETE_SELF.union(ReadFlags::MOVE_SELF).union(ReadFlags::UNMOUNT).union(ReadFlags::IGNORED);

/// Watches a path. Its thread ends with it.
pub(super) struct Watch {
    path: PathBuf,
    changed: Arc<dyn Fn() + Send + Sync>,
    /// `None`: the system has none to give; that is tried again.
    running: Option<Arc<Running>>,
    /// What the log has said of that.
    refused: Option<String>,
}

struct Running {
    inotify: OwnedFd,
    /// Written to when the thread is to end.
    stop: OwnedFd,
    watched: Mutex<Watched>,
}

/// What is watched now.
struct Watched {
    path: PathBuf,
    /// By watch descriptor.
    places: BTreeMap<i32, Watching>,
    /// What the log has said of places that cannot be watched.
    failures: BTreeMap<PathBuf, Errno>,
}

/// A directory with the names that matter in it, or the file.
#[derive(Debug, Default)]
struct Watching {
    path: PathBuf,
    names: BTreeSet<OsString>,
}

impl Watch {
    /// Watches `path`; `changed` is called from a thread of its own on anything that might matter, an overflow of the
    /// system's queue included.
    ///
    /// Where the system has no watches left, the poll is all there is; that is logged, not an error.
    pub(super) fn new(path: &Path, changed: impl Fn() + Send + Sync + 'static) -> Self {
        let mut watch =
            Self { path: path.to_path_buf(), changed: Arc::new(changed), running: None, refused: None };
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
        if let Some(running) = &self.running {
            let mut watched = running.watched();
            watched.path.clone_from(&self.path);
            watched.renew(&running.inotify);
            return;
        }
        match Running::start(&self.path, Arc::clone(&self.changed)) {
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
            let _ends = rustix::io::write(&running.stop, &1_u64.to_ne_bytes());
        }
    }
}

impl Running {
    fn start(path: &Path, changed: Arc<dyn Fn() + Send + Sync>) -> io::Result<Arc<Self>> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let mut watched =
            Watched { path: path.to_path_buf(), places: BTreeMap::new(), failures: BTreeMap::new() };
        watched.renew(&inotify);
        let running = Arc::new(Self { inotify, stop, watched: Mutex::new(watched) });
        let own = Arc::clone(&running);
        thread::Builder::new().name("watch".into()).spawn(move || own.run(&*changed))?;
        Ok(running)
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, changed: &dyn Fn()) {
        let mut buffer = [MaybeUninit::uninit(); EVENTS];
        let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            let mut ready =
                [PollFd::new(&self.inotify, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            match poll(&mut ready, None) {
                Ok(_) if !ready[1].revents().is_empty() => return,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return warn!(%error, "the source is not watched any more"),
            }
            let mut matters = false;
            // One buffer at a time: events that never end must not keep a change from being reported.
            loop {
                match events.next() {
                    Ok(event) => matters |= self.watched().matters(&event),
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(error) => return warn!(%error, "the source is not watched any more"),
                }
                if events.is_buffer_empty() {
                    break;
                }
            }
            if matters {
                self.watched().renew(&self.inotify);
                changed();
            }
        }
    }
}

impl Watched {
    /// Whether an event may have changed the file, or the way to it.
    fn matters(&self, event: &inotify::Event<'_>) -> bool {
        if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
            return true;
        }
        // Events of a watch that was removed may still be in the queue.
        let Some(watching) = self.places.get(&event.wd()) else { return false };
        match event.file_name() {
            _ if event.events().intersects(OF_ITSELF) => true,
            Some(name) => watching.names.contains(OsStr::from_bytes(name.to_bytes())),
            None => true,
        }
    }

    /// Watches what the path leads through now, and nothing else.
    fn renew(&mut self, inotify: &OwnedFd) {
        let mut places: BTreeMap<i32, Watching> = BTreeMap::new();
        let mut failures = BTreeMap::new();
        let mut watch =
            |path: &Path, name: Option<&OsStr>, flags| match inotify::add_watch(inotify, path, flags) {
                Ok(descriptor) => {
                    let place = places.entry(descriptor).or_default();
                    place.path = path.to_path_buf();
                    place.names.extend(name.map(OsStr::to_os_string));
                }
                // Replaced since it was looked up: the directory above reports that.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => _ = failures.insert(path.to_path_buf(), error),
            };
        let file = walk(&self.path, |directory, name| watch(directory, Some(name), IN_DIRECTORY));
        // Opening a named pipe or a device is none of a watch's business, but watching one does no harm either.
        if let Some(file) = &file {
            watch(file, None, OF_FILE);
        }
        self.report(&places, &failures);
        for (descriptor, place) in &self.places {
            if !places.contains_key(descriptor) {
                debug!(path = %place.path.display(), "watch removed");
                let _already_gone = inotify::remove_watch(inotify, *descriptor);
            }
        }
        (self.places, self.failures) = (places, failures);
    }

    /// Logs what is different from before.
    fn report(&self, places: &BTreeMap<i32, Watching>, failures: &BTreeMap<PathBuf, Errno>) {
        for (path, error) in failures {
            if self.failures.get(path) == Some(error) {
                continue;
            }
            let path = path.display();
            match *error {
                Errno::NOSPC => warn!(
                    %path, %error,
                    "cannot watch; changes there are found by polling. fs.inotify.max_user_watches limits how many watches there \
                     can be"
                ),
                // To go through a directory takes less than to watch it.
                Errno::ACCESS => info!(
                    %path, %error,
                    "cannot watch a directory that the daemon's user may not read; if what the source's path leads through is \
                     replaced there, that is found by polling"
                ),
                _ => warn!(%path, %error, "cannot watch; changes there are found by polling"),
            }
        }
        let new: Vec<_> =
            places.iter().filter(|(descriptor, _)| !self.places.contains_key(descriptor)).collect();
        for (_, place) in &new {
            debug!(path = %place.path.display(), "watching");
        }
        let is_directory = |place: &&Watching| !place.names.is_empty();
        if !self.places.is_empty()
            && let Some(directory) = new.iter().map(|(_, place)| *place).rfind(is_directory)
        {
            info!(directory = %directory.path.display(), "the source's path leads through another directory; it is watched now");
        }
    }
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
