//! The simulated disk: every call on the state directory passes here before it is made.
//!
//! * A planned *crash* happens before a call, or in the middle of a write. From then on no call is
//!   made, so the daemon is as good as killed.
//! * A *power cut* takes from the directory what was not synced: content of files in part or
//!   completely, and the latest changes of names.
//! * Single calls fail, and writes are shortened.
//! * The writer of the last good keys is *held* until the test lets it go on, so that its calls come
//!   in an order that depends on nothing but the seed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;

use keyward_state::disk::trace::{Call, Interceptor};
use keyward_state::simulation;

use crate::random::Random;

pub struct Disk {
    directory: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    random: Random,
    /// Calls until the crash; `None`: none is planned.
    crash_in: Option<u64>,
    is_crashed: bool,
    /// Calls until one fails, and how.
    failures: Vec<(u64, io::ErrorKind)>,
    shortens_writes: bool,
    /// Whether the writer of the last good keys may go on.
    is_released: bool,
    /// Whether it may go on once the balances have been saved.
    is_released_by_save: bool,
    is_saved: bool,
    /// Names of files that have been replaced since [`Disk::take_replaced`].
    replaced: Vec<String>,
    /// The durable content of files that have been written since their last sync.
    unsynced: BTreeMap<PathBuf, Vec<u8>>,
    /// Changes of names since the directory was synced.
    names: Vec<NameChange>,
    /// What `before` has read for `after`.
    content_before: BTreeMap<PathBuf, Vec<u8>>,
    /// All calls, for the report of a failure.
    calls: Vec<String>,
    failed: u64,
}

#[derive(Debug)]
enum NameChange {
    Created(PathBuf),
    Renamed { from: PathBuf, to: PathBuf, replaced: Option<Vec<u8>> },
    Removed(PathBuf, Vec<u8>),
}

impl Disk {
    pub fn new(directory: &Path, seed: u64) -> Self {
        let state = State {
            random: Random::new(seed),
            crash_in: None,
            is_crashed: false,
            failures: Vec::new(),
            shortens_writes: false,
            is_released: false,
            is_released_by_save: false,
            is_saved: false,
            replaced: Vec::new(),
            unsynced: BTreeMap::new(),
            names: Vec::new(),
            content_before: BTreeMap::new(),
            calls: Vec::new(),
            failed: 0,
        };
        Self { directory: directory.to_owned(), state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    pub fn plan_crash(&self, calls: u64) {
        self.lock().crash_in = Some(calls);
    }

    pub fn crash_now(&self) {
        self.lock().is_crashed = true;
        self.changed.notify_all();
    }

    pub fn is_crashed(&self) -> bool {
        self.lock().is_crashed
    }

    pub fn fail_in(&self, calls: u64, error: io::ErrorKind) {
        self.lock().failures.push((calls, error));
    }

    /// The calls that have failed so far.
    pub fn failed(&self) -> u64 {
        self.lock().failed
    }

    pub fn shorten_writes(&self, shortens: bool) {
        self.lock().shortens_writes = shortens;
    }

    /// Lets the writer of the last good keys go on, or holds it.
    pub fn release_writer(&self, is_released: bool) {
        let mut state = self.lock();
        (state.is_released, state.is_released_by_save) = (is_released, false);
        drop(state);
        self.changed.notify_all();
    }

    /// Lets the writer of the last good keys go on once the balances have been saved, as the last of
    /// them are at the end of a daemon.
    pub fn release_writer_by_save(&self) {
        let mut state = self.lock();
        (state.is_released_by_save, state.is_saved) = (true, false);
    }

    /// The files that have been replaced since the last call of this.
    pub fn take_replaced(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().replaced)
    }

    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// Makes the disk usable again after a crash, for the next daemon. After a power cut, the
    /// directory loses what was not durable.
    pub fn restart(&self, is_power_cut: bool) {
        let mut state = self.lock();
        if is_power_cut {
            cut_power(&mut state);
        }
        (state.is_crashed, state.crash_in) = (false, None);
        (state.is_released, state.is_released_by_save) = (false, false);
        state.failures.clear();
        state.unsynced.clear();
        state.names.clear();
        state.replaced.clear();
        state.calls.push(if is_power_cut { "POWER CUT" } else { "RESTART" }.to_owned());
    }
}

/// Undoes the changes that were not durable: an arbitrary part of each file's content, and the
/// names from an arbitrary change on.
fn cut_power(state: &mut State) {
    let lasting = state.random.index(state.names.len() + 1);
    for change in state.names.split_off(lasting).into_iter().rev() {
        match change {
            NameChange::Created(path) => {
                let _ = fs::remove_file(&path);
                state.unsynced.remove(&path);
            }
            NameChange::Renamed { from, to, replaced } => {
                let _ = fs::rename(&to, &from);
                if let Some(durable) = state.unsynced.remove(&to) {
                    state.unsynced.insert(from, durable);
                }
                if let Some(replaced) = replaced {
                    fs::write(&to, replaced).expect("restores");
                }
            }
            NameChange::Removed(path, content) => fs::write(&path, content).expect("restores"),
        }
    }
    for (path, durable) in std::mem::take(&mut state.unsynced) {
        let Ok(mut full) = fs::read(&path) else { continue };
        // What was durable before an append stays. A sector is written as a whole or not at all.
        let least = if full.starts_with(&durable) { durable.len() } else { 0 };
        let is_one_sector = durable.len() == full.len() && full.len() <= 512;
        let kept = least + state.random.index(full.len() - least + 1);
        match state.random.below(4) {
            0 => {}
            1 => full = durable,
            _ if is_one_sector => full = durable,
            2 => full.truncate(kept),
            // The length is durable, and the content is not.
            _ => full[kept..].fill(0),
        }
        fs::write(&path, full).expect("cuts");
    }
}

/// Whether the call is one of the writer of the last good keys, which the test holds.
fn is_of_held_writer(call: &Call) -> bool {
    let name = call.path().file_name().unwrap_or_default().to_string_lossy();
    let is_of_keys = name.starts_with("last_good") || matches!(call, Call::SyncDirectory(_));
    is_of_keys && thread::current().name() == Some("keys-writer")
}

impl Interceptor for Disk {
    fn before(&self, call: &Call) -> io::Result<()> {
        if !call.path().starts_with(&self.directory) {
            return Ok(());
        }
        let mut state = self.lock();
        if is_of_held_writer(call) && !state.is_released && !state.is_crashed {
            drop(state);
            state = simulation::hold(|| {
                let is_held = |state: &mut State| !state.is_released && !state.is_crashed;
                self.changed.wait_while(self.lock(), is_held).expect("not poisoned")
            });
        }
        if let Some(left) = state.crash_in {
            state.crash_in = left.checked_sub(1);
            state.is_crashed |= left == 0;
        }
        if state.is_crashed {
            self.changed.notify_all();
            return Err(io::Error::other("the daemon has crashed"));
        }
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = match call {
            Call::Rename(from, to) => format!("rename {} {}", name(from), name(to)),
            Call::Create(path) => format!("create {}", name(path)),
            Call::Write(path) => format!("write {}", name(path)),
            Call::Sync(path) => format!("sync {}", name(path)),
            Call::Remove(path) => format!("remove {}", name(path)),
            Call::CreateDirectory(_) => "create the directory".to_owned(),
            Call::SyncDirectory(_) => "sync the directory".to_owned(),
        };
        let mut failing = None;
        state.failures.retain_mut(|(left, error)| {
            let is_due = *left == 0;
            *left = left.saturating_sub(1);
            if is_due {
                failing = Some(*error);
            }
            !is_due
        });
        if let Some(error) = failing {
            state.failed += 1;
            if state.is_released_by_save {
                state.is_released = true;
                self.changed.notify_all();
            }
            state.calls.push(format!("{text}: fails, {error:?}"));
            return Err(error.into());
        }
        state.calls.push(text);
        if let Call::Write(path) | Call::Remove(path) | Call::Rename(_, path) = call
            && let Ok(content) = fs::read(path)
        {
            state.content_before.insert(path.clone(), content);
        }
        Ok(())
    }

    fn after(&self, call: &Call) {
        if !call.path().starts_with(&self.directory) {
            return;
        }
        let mut state = self.lock();
        let content_before = state.content_before.remove(call.path());
        match call {
            Call::Create(path) => {
                state.names.push(NameChange::Created(path.clone()));
                state.unsynced.insert(path.clone(), Vec::new());
            }
            Call::Write(path) => {
                state.unsynced.entry(path.clone()).or_insert_with(|| content_before.unwrap_or_default());
            }
            Call::Sync(path) => {
                state.unsynced.remove(path);
            }
            Call::Rename(from, to) => {
                let durable = state.unsynced.remove(from);
                match durable {
                    Some(durable) => state.unsynced.insert(to.clone(), durable),
                    None => state.unsynced.remove(to),
                };
                state.is_saved |= to.ends_with("balances");
                let (from, to) = (from.clone(), to.clone());
                state.replaced.push(to.file_name().unwrap_or_default().to_string_lossy().into_owned());
                state.names.push(NameChange::Renamed { from, to, replaced: content_before });
            }
            Call::Remove(path) => {
                state.unsynced.remove(path);
                state.names.push(NameChange::Removed(path.clone(), content_before.unwrap_or_default()));
            }
            Call::CreateDirectory(_) => {}
            Call::SyncDirectory(_) => {
                state.names.clear();
                if state.is_released_by_save && state.is_saved {
                    state.is_released = true;
                    self.changed.notify_all();
                }
            }
        }
    }

    fn shortened(&self, path: &Path, length: usize) -> usize {
        let mut state = self.lock();
        if !path.starts_with(&self.directory) || state.is_crashed || length < 2 {
            return length;
        }
        // A write in which the daemon crashes is made in part, and the next one not at all.
        let is_torn = state.crash_in == Some(0) && state.random.one_in(2);
        if is_torn {
            state.crash_in = Some(1);
        }
        if is_torn || (state.shortens_writes && state.random.one_in(3)) {
            return 1 + state.random.index(length - 1);
        }
        length
    }
}
