//! Records the calls in [`disk`](super) for tests, and makes them fail.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A system call that was made, or is about to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A new file is created.
    Create(PathBuf),
    /// The content or the length of a file is changed.
    Write(PathBuf),
    /// fsync or fdatasync of a file.
    Sync(PathBuf),
    /// rename(2), from the first path to the second.
    Rename(PathBuf, PathBuf),
    /// unlink(2)
    Remove(PathBuf),
    /// mkdir
    CreateDirectory(PathBuf),
    /// fsync of a directory.
    SyncDirectory(PathBuf),
}

/// Decides whether a call fails.
pub type Fails = fn(&Call) -> bool;

/// Records the calls of all threads on files below a directory, until it is dropped.
pub struct Trace {
    state: Arc<State>,
}

struct State {
    directory: PathBuf,
    calls: Mutex<Vec<Call>>,
    failing: Mutex<Option<Fails>>,
    /// The number of bytes that a write writes at most.
    max_write: AtomicUsize,
}

static TRACES: Mutex<Vec<Weak<State>>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Decides about each call of all threads, before it is made.
pub trait Interceptor: Send + Sync {
    /// Called before `call` is made. This may wait. An error makes the call fail.
    ///
    /// # Errors
    /// When the call is to fail. It is not made then.
    fn before(&self, call: &Call) -> io::Result<()>;

    /// Called after `call` was made successfully.
    fn after(&self, call: &Call);

    /// How many of the `length` bytes of a write are written: at least one.
    fn shortened(&self, path: &Path, length: usize) -> usize;
}

static INTERCEPTOR: Mutex<Option<Arc<dyn Interceptor>>> = Mutex::new(None);

/// Sets the interceptor of this process, or removes it.
pub fn intercept(interceptor: Option<Arc<dyn Interceptor>>) {
    *lock(&INTERCEPTOR) = interceptor;
}

/// Makes `call` by `operation`, unless it is made to fail.
pub(super) fn make<T>(call: Call, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let interceptor = lock(&INTERCEPTOR).clone();
    if let Some(interceptor) = &interceptor {
        interceptor.before(&call)?;
    }
    // A directory that exists already is not created.
    let is_recorded_after = matches!(call, Call::CreateDirectory(_));
    if !is_recorded_after {
        record(&call)?;
    }
    let result = operation()?;
    if is_recorded_after {
        record(&call)?;
    }
    if let Some(interceptor) = &interceptor {
        interceptor.after(&call);
    }
    Ok(result)
}

/// The part of `bytes` that one write to `path` writes.
pub(super) fn shortened<'b>(path: &Path, bytes: &'b [u8]) -> &'b [u8] {
    let traces: Vec<_> = lock(&TRACES).iter().filter_map(Weak::upgrade).collect();
    let limits = traces.iter().filter(|trace| path.starts_with(&trace.directory));
    let limit = limits.map(|trace| trace.max_write.load(Ordering::Relaxed)).min();
    let length = bytes.len().min(limit.unwrap_or(usize::MAX));
    let interceptor = lock(&INTERCEPTOR).clone();
    let length = interceptor.map_or(length, |interceptor| interceptor.shortened(path, length));
    bytes.get(..length).unwrap_or(bytes)
}

/// Records `call` in the traces of its directory. Fails if a trace says so.
fn record(call: &Call) -> io::Result<()> {
    let traces: Vec<_> = lock(&TRACES).iter().filter_map(Weak::upgrade).collect();
    for trace in traces.iter().filter(|trace| call.path().starts_with(&trace.directory)) {
        if lock(&trace.failing).is_some_and(|fails| fails(call)) {
            return Err(io::Error::other("a test has this call fail"));
        }
        let mut calls = lock(&trace.calls);
        // Long content takes several writes.
        if calls.last() != Some(call) {
            calls.push(call.clone());
        }
    }
    Ok(())
}

impl Call {
    /// The file or directory that the call is made on; of a rename, the new name.
    pub fn path(&self) -> &Path {
        match self {
            Self::Create(path)
            | Self::Write(path)
            | Self::Sync(path)
            | Self::Rename(_, path)
            | Self::Remove(path)
            | Self::CreateDirectory(path)
            | Self::SyncDirectory(path) => path,
        }
    }
}

impl Trace {
    /// Traces the calls below `directory` until this is dropped.
    pub fn of(directory: &Path) -> Self {
        let state = Arc::new(State {
            directory: directory.to_owned(),
            calls: Mutex::default(),
            failing: Mutex::default(),
            max_write: AtomicUsize::new(usize::MAX),
        });
        let mut traces = lock(&TRACES);
        traces.retain(|trace| trace.strong_count() > 0);
        traces.push(Arc::downgrade(&state));
        Self { state }
    }

    /// From now on, calls for which `fails` returns true return an error and are not made.
    pub fn fail(&self, fails: Fails) {
        *lock(&self.state.failing) = Some(fails);
    }

    /// From now on, a write writes at most `bytes`, as write(2) may at any time.
    pub fn shorten_writes(&self, bytes: usize) {
        self.state.max_write.store(bytes, Ordering::Relaxed);
    }

    /// The calls so far. Repetitions of a call in a row count as one.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.state.calls).clone()
    }

    /// Descriptions of what a loss of power at this moment could undo, or could have damaged since
    /// the trace began. Empty if everything that was written survives.
    pub fn volatile(&self) -> Vec<String> {
        let mut damaged = Vec::new();
        let (mut contents, mut names) = (BTreeSet::new(), BTreeSet::new());
        let parent = |path: &Path| path.parent().unwrap_or(path).to_owned();
        for call in self.calls() {
            match call {
                Call::Create(path) | Call::CreateDirectory(path) => {
                    names.insert(parent(&path));
                }
                Call::Write(path) => {
                    contents.insert(path);
                }
                Call::Sync(path) => {
                    contents.remove(&path);
                }
                Call::Rename(from, to) => {
                    if contents.remove(&from) {
                        damaged.push(format!("{} was renamed before its content was synced", from.display()));
                    }
                    contents.remove(&to);
                    names.insert(parent(&to));
                }
                Call::Remove(path) => {
                    contents.remove(&path);
                    names.insert(parent(&path));
                }
                Call::SyncDirectory(path) => {
                    names.remove(&path);
                }
            }
        }
        let contents = contents.iter().map(|path| format!("the content of {}", path.display()));
        let names = names.iter().map(|path| format!("the names in {}", path.display()));
        damaged.into_iter().chain(contents).chain(names).collect()
    }
}
