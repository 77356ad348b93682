//! The registry of files that cannot be written at the moment, since when, and why.
//!
//! Every thread that writes a file of the state directory reports the results here. `keyward
//! status` and systemd's status line show the list. The log has one line when the first write of a
//! file fails, and one when a write succeeds again.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{debug, error, info};

use super::current_second;

/// Called with the whole list after every change.
type Observer = Box<dyn Fn(&[Unwritten]) + Send + Sync>;

/// The registry. Clones share it.
#[derive(Clone, Default)]
pub struct WriteHealth {
    shared: Arc<Registry>,
}

#[derive(Default)]
struct Registry {
    files: Mutex<BTreeMap<Box<str>, State>>,
    observer: OnceLock<Observer>,
}

/// A file that cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwritten {
    /// The name of the file, or the path of a directory that cannot be used.
    pub file: Box<str>,
    /// When the first write failed, by the system time.
    pub since: Timestamp,
    /// How long ago that was, independent of changes of the system time.
    pub lasting: Duration,
    /// Why the latest write failed.
    pub error: String,
    /// Records that have been dropped since, because too many were waiting.
    pub dropped: u64,
}

struct State {
    since: Timestamp,
    since_instant: Instant,
    error: String,
    dropped: u64,
}

impl WriteHealth {
    /// Calls `observer` with the list, now and after every change. There can be one observer; a
    /// second one is ignored. It must not call into this registry.
    pub fn observe(&self, observer: impl Fn(&[Unwritten]) + Send + Sync + 'static) {
        let files = self.files();
        observer(&list(&files));
        // Fails if there is an observer already.
        let _ = self.shared.observer.set(Box::new(observer));
    }

    /// Reports that a write of `file` failed.
    pub fn failed(&self, file: &str, error: &dyn Display) {
        let error = error.to_string();
        let mut files = self.files();
        if let Some(state) = files.get_mut(file) {
            if state.error != error {
                debug!(file, error, "the file still cannot be written, for another reason");
                state.error = error;
                self.changed(&files);
            }
            return;
        }
        error!(
            file,
            error,
            "the file is not being written; what belongs in it is kept in memory and tried again: make room, or make \
             the state directory writable"
        );
        let state = State { since: current_second(), since_instant: Instant::now(), error, dropped: 0 };
        files.insert(file.into(), state);
        self.changed(&files);
    }

    /// Reports that there is no state directory at `path`, so nothing is stored while the daemon
    /// runs.
    pub(super) fn absent(&self, path: &str, error: &dyn Display) {
        let error =
            format!("no state directory: revocations, balances, usage and audit are not kept: {error}");
        let state = State { since: current_second(), since_instant: Instant::now(), error, dropped: 0 };
        let mut files = self.files();
        files.insert(path.into(), state);
        self.changed(&files);
    }

    /// Reports that records for `file` were dropped. They are counted while the file cannot be
    /// written.
    pub fn dropped(&self, file: &str, records: u64) {
        let mut files = self.files();
        if let Some(state) = files.get_mut(file) {
            state.dropped += records;
            self.changed(&files);
        }
    }

    /// Reports that a write of `file` succeeded.
    pub fn written(&self, file: &str) {
        let mut files = self.files();
        if let Some(State { since, dropped, .. }) = files.remove(file) {
            info!(file, %since, dropped, "the file is being written again");
            self.changed(&files);
        }
    }

    /// The files that cannot be written, by name.
    pub fn unwritten(&self) -> Vec<Unwritten> {
        list(&self.files())
    }

    fn changed(&self, files: &BTreeMap<Box<str>, State>) {
        if let Some(observer) = self.shared.observer.get() {
            observer(&list(files));
        }
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<Box<str>, State>> {
        self.shared.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for WriteHealth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("WriteHealth").field(&self.unwritten()).finish()
    }
}

fn list(files: &BTreeMap<Box<str>, State>) -> Vec<Unwritten> {
    let files = files.iter().map(|(file, state)| Unwritten {
        file: file.clone(),
        since: state.since,
        lasting: state.since_instant.elapsed(),
        error: state.error.clone(),
        dropped: state.dropped,
    });
    files.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(health: &WriteHealth) -> Vec<(String, String, u64)> {
        let unwritten = health.unwritten().into_iter();
        unwritten.map(|Unwritten { file, error, dropped, .. }| (file.into(), error, dropped)).collect()
    }

    #[test]
    fn file_is_listed_from_its_first_failure_until_a_success() {
        let health = WriteHealth::default();
        health.written("a");
        health.dropped("a", 1);
        assert_eq!(files(&health), []);
        health.failed("b", &"full");
        let since = health.unwritten()[0].since;
        health.clone().failed("a", &"read-only");
        health.failed("b", &"gone");
        health.dropped("b", 2);
        let listed = [("a".into(), "read-only".into(), 0), ("b".into(), "gone".into(), 2)];
        assert_eq!(files(&health), listed);
        assert_eq!(health.unwritten()[1].since, since, "the first failure counts");
        health.written("b");
        assert_eq!(files(&health), listed[..1]);
        health.failed("b", &"full");
        assert_eq!(files(&health)[1], ("b".into(), "full".into(), 0), "the count restarts");
    }

    #[test]
    fn observer_is_called_at_once_and_after_every_change() {
        let health = WriteHealth::default();
        health.failed("a", &"full");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let calls = Arc::clone(&seen);
        health.observe(move |unwritten| {
            let names = unwritten.iter().map(|file| file.file.to_string()).collect::<Vec<_>>();
            calls.lock().expect("not poisoned").push(names.join(" "));
        });
        health.failed("b", &"full");
        health.failed("b", &"full");
        health.written("a");
        health.written("a");
        assert_eq!(*seen.lock().expect("not poisoned"), ["a", "a b", "b"]);
    }
}
