//! Writing the keys that are in force to the state directory, in the background.
//!
//! One write is under way, and at most one waits: a reload that is accepted meanwhile replaces the one that waits. A write that
//! is under way is completed, so that reloads that follow each other closely do not keep every one of them from the disk. The
//! exception is memory: where a large set has been superseded and the next one is about to be read, there would be three of
//! them; then the write is given up, and the newest keys are written instead.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tracing::{debug, info};

use super::accepted::ACCEPTED;
use super::manifest::{MANIFEST, Manifest, PREFIX, SUFFIX, head_crc32, is_own};
use super::{LastGood, Shared, Slot};
use crate::reload::FileState;
use keyward_engine::snapshot::{RowPolicies, Snapshot};
use keyward_state::{self as state, FileError, disk};

/// The lowest priority there is: keys are kept for a restart, and requests are answered now.
const NICE: i32 = 19;

/// Bytes that are written or copied before it is looked whether to go on, and paused where the priority could not be lowered.
const STEP: u64 = 4 << 20;

/// Bytes after which the disk is waited for: a sync of the whole file at its end would hold up everything else on that disk.
const SYNC_EVERY: u64 = 64 << 20;

/// Longest pause after a step.
const MAX_PAUSE: Duration = Duration::from_millis(100);

/// How long after a first failure the writing is tried again, if no other keys come into force before. The time doubles with
/// each failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The longest time between two attempts.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// How long the daemon's end waits for keys that were accepted right before it.
const STOP: Duration = Duration::from_secs(2);

/// Keys from which on a superseded set is too much memory to be held while another is read: some 32 MiB.
const LARGE: usize = 1 << 18;

/// Keys that came into force, and where they came from.
pub(in crate::reload) struct Job {
    pub(in crate::reload) snapshot: Arc<Snapshot>,
    pub(in crate::reload) policies: RowPolicies,
    /// The source, open, if it is a compiled file.
    pub(in crate::reload) compiled: Option<File>,
    pub(in crate::reload) source: String,
    pub(in crate::reload) state: FileState,
    pub(in crate::reload) reading: String,
    pub(in crate::reload) accepted_at: u32,
}

/// A write that is under way.
pub(super) struct Writing {
    generation: u64,
    keys: usize,
    give_up: Arc<AtomicBool>,
}

impl LastGood {
    /// Has keys written that have come into force. Waits for no disk.
    pub(in crate::reload) fn keep(&self, job: Job) {
        let replaced = {
            let mut slot = self.shared.slot();
            (slot.in_use, slot.unusable, slot.retry_at) = (None, None, None);
            slot.pending.replace(job)
        };
        // Freed when the lock is not held any more.
        drop(replaced);
        self.shared.changed.notify_all();
    }

    /// Another set of keys is about to be read while `in_force` is served: a large one that is neither is given up.
    pub(in crate::reload) fn make_room(&self, in_force: u64) {
        if let Some(writing) = &self.shared.slot().writing
            && writing.generation != in_force
            && writing.keys >= LARGE
        {
            writing.give_up.store(true, Ordering::Relaxed);
        }
    }

    /// The daemon ends: waits a moment for what is still to be written. What is abandoned then leaves the keys before it.
    pub fn stop(&self) {
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::Relaxed);
        shared.changed.notify_all();
        let is_busy = |slot: &mut Slot| slot.writing.is_some() || slot.is_due(Instant::now());
        let waited = shared.changed.wait_timeout_while(shared.slot(), STOP, is_busy);
        if waited.is_ok_and(|(_, timeout)| timeout.timed_out()) {
            info!(
                "the keys in force are not on the disk yet; a start beside a bad source would serve those before them"
            );
        }
    }
}

impl Slot {
    fn is_due(&self, now: Instant) -> bool {
        self.pending.is_some() && self.retry_at.is_none_or(|at| at <= now)
    }
}

impl Shared {
    /// The thread.
    pub(super) fn run(&self) {
        let is_polite = rustix::process::setpriority_process(None, NICE)
            .inspect_err(|error| debug!(%error, "keys are kept at the priority of the workers, with pauses"))
            .is_ok();
        while let Some((job, give_up)) = self.next() {
            let pace = Pace { give_up: &give_up, stopping: &self.stopping, is_polite };
            let written = self.write(&job, &pace);
            self.finish(job, written, give_up.load(Ordering::Relaxed));
        }
    }

    /// Waits for what is to be written next; `None` at the end.
    fn next(&self) -> Option<(Job, Arc<AtomicBool>)> {
        let mut slot = self.slot();
        loop {
            let now = Instant::now();
            if slot.is_due(now)
                && let Some(job) = slot.pending.take()
            {
                let give_up = Arc::new(AtomicBool::new(false));
                let (generation, keys) = (job.snapshot.generation(), job.snapshot.len());
                slot.writing = Some(Writing { generation, keys, give_up: Arc::clone(&give_up) });
                return Some((job, give_up));
            }
            if self.stopping.load(Ordering::Relaxed) {
                return None;
            }
            let patience = slot.retry_at.map_or(MAX_RETRY, |at| at.saturating_duration_since(now));
            slot = match self.changed.wait_timeout(slot, patience) {
                Ok((slot, _)) => slot,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn finish(&self, job: Job, written: Result<Manifest, FileError>, was_given_up: bool) {
        let generation = job.snapshot.generation();
        match &written {
            Ok(manifest) => {
                debug!(
                    generation,
                    keys = manifest.keys,
                    bytes = manifest.bytes,
                    "the keys in force are kept"
                );
                self.directory.health().written(MANIFEST);
                // It names the source, too.
                self.directory.health().written(ACCEPTED);
                self.drop_taken_away_before(generation);
            }
            Err(_) if was_given_up => debug!(generation, "others came into force before the keys were kept"),
            Err(error) => self.directory.health().failed(MANIFEST, error),
        }
        let mut slot = self.slot();
        slot.writing = None;
        let mut done = Some(job);
        match written {
            Ok(manifest) => {
                slot.stored = Some(manifest);
                slot.failures = 0;
            }
            Err(_) if was_given_up || slot.pending.is_some() => {}
            Err(_) => {
                let retry = FIRST_RETRY.saturating_mul(1 << slot.failures.min(6)).min(MAX_RETRY);
                slot.failures = slot.failures.saturating_add(1);
                slot.retry_at = Some(Instant::now() + retry);
                slot.pending = done.take();
            }
        }
        drop(slot);
        self.changed.notify_all();
        // The last to hold a snapshot frees it: here, if it has been superseded.
        drop(done);
    }

    fn write(&self, job: &Job, pace: &Pace<'_>) -> Result<Manifest, FileError> {
        let directory = self.directory.path("");
        let stored = self.slot().stored.clone();
        let global_policy = job.snapshot.global_policy();
        let mut manifest = Manifest {
            generation: job.snapshot.generation(),
            file: String::new(),
            bytes: 0,
            head_crc32: 0,
            keys: job.snapshot.len(),
            source: job.source.clone(),
            state: job.state,
            written_at: job.snapshot.meta().source_time,
            accepted_at: job.accepted_at,
            reading: job.reading.clone(),
            peppers: super::manifest::peppers(global_policy),
        };
        // The same file, read in the same way: its rows are there already, whatever plans and peppers have become.
        if let Some(stored) = &stored
            && stored.is_of(&job.state, &job.reading)
            && stored.keys == manifest.keys
            && state::open_to_read(&directory.join(&stored.file))
                .and_then(|file| stored.names(&file))
                .unwrap_or(false)
        {
            (manifest.file, manifest.bytes, manifest.head_crc32) =
                (stored.file.clone(), stored.bytes, stored.head_crc32);
            manifest.write(&directory)?;
            return Ok(manifest);
        }
        clean(&directory, stored.as_ref());
        manifest.file = name_of(manifest.generation, stored.as_ref());
        let written = self.write_file(job, &mut manifest, pace).and_then(|()| manifest.write(&directory));
        clean(&directory, if written.is_ok() { Some(&manifest) } else { stored.as_ref() });
        written.map(|()| manifest)
    }

    /// Writes the compiled file, durably, and completes the manifest.
    fn write_file(&self, job: &Job, manifest: &mut Manifest, pace: &Pace<'_>) -> Result<(), FileError> {
        let path = self.directory.path(&manifest.file);
        state::replace(&path, |file| {
            let is_copied = match &job.compiled {
                Some(source) => copy(source, &job.state, file.get_ref(), pace)?,
                None => false,
            };
            if !is_copied {
                file.get_ref().set_len(0)?;
                let mut file = Paced { file, pace, step: Step::new() };
                job.snapshot.table().compile(&job.policies, &mut file, manifest.written_at, &mut |_| {})?;
                file.flush()?;
            }
            manifest.bytes = file.get_ref().metadata()?.len();
            Ok(())
        })?;
        let failed = |error| FileError { path: path.clone(), what: "read it again", error };
        let file = state::open_to_read(&path).map_err(failed)?;
        manifest.head_crc32 = head_crc32(&file).map_err(failed)?;
        Ok(())
    }
}

/// The file that is not being replaced has another name, so that the manifest that names it holds until the next one is there.
fn name_of(generation: u64, stored: Option<&Manifest>) -> String {
    let name = |number: u64| format!("{PREFIX}{number}{SUFFIX}");
    let first = name(generation);
    match stored {
        Some(stored) if stored.file == first => name(generation.wrapping_add(1)),
        _ => first,
    }
}

/// Removes the files in `directory` that were written here, but for the one that `manifest` names.
pub(super) fn clean(directory: &Path, manifest: Option<&Manifest>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_garbage = name.to_str().is_some_and(|name| {
            let is_kept = manifest.is_some_and(|manifest| manifest.file == name);
            (is_own(name) && !is_kept) || name.strip_suffix(".new") == Some(MANIFEST)
        });
        if is_garbage && let Err(error) = std::fs::remove_file(entry.path()) {
            debug!(file = %entry.path().display(), %error, "a file that is not needed any more cannot be removed");
        }
    }
}

/// Copies a compiled source that is as it was when it was loaded; `false` if it is not, or was not all the time.
fn copy(source: &File, state: &FileState, to: &File, pace: &Pace<'_>) -> io::Result<bool> {
    if FileState::of_open(source)? != *state {
        return Ok(false);
    }
    if rustix::fs::ioctl_ficlone(to, source).is_err() {
        copy_bytes(source, to, state.size(), pace)?;
    }
    Ok(FileState::of_open(source)? == *state)
}

fn copy_bytes(source: &File, to: &File, length: u64, pace: &Pace<'_>) -> io::Result<()> {
    let (mut at, mut step, mut buffer) = (0, Step::new(), Vec::new());
    let mut in_kernel = true;
    while at < length {
        let wanted = (length - at).min(STEP) as usize;
        let copied = match in_kernel {
            true => {
                rustix::fs::copy_file_range(source, Some(&mut at.clone()), to, Some(&mut at.clone()), wanted)
            }
            false => Ok(0),
        };
        let copied = match copied {
            Ok(copied) if copied > 0 => copied,
            Err(rustix::io::Errno::NOSPC) => return Err(rustix::io::Errno::NOSPC.into()),
            // Some file systems cannot, and some say so by copying nothing.
            _ => {
                in_kernel = false;
                buffer.resize(wanted, 0);
                source.read_exact_at(&mut buffer, at)?;
                to.write_all_at(&buffer, at)?;
                wanted
            }
        };
        at += copied as u64;
        step.wrote(copied as u64, pace, || to.sync_data())?;
    }
    Ok(())
}

/// How fast to write.
struct Pace<'p> {
    give_up: &'p AtomicBool,
    stopping: &'p AtomicBool,
    is_polite: bool,
}

/// What has been written since the last pause, and since the last sync.
struct Step {
    bytes: u64,
    unsynced: u64,
    began: Instant,
}

impl Step {
    fn new() -> Self {
        Self { bytes: 0, unsynced: 0, began: Instant::now() }
    }

    fn wrote(
        &mut self,
        bytes: u64,
        pace: &Pace<'_>,
        sync: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        self.bytes += bytes;
        self.unsynced += bytes;
        if self.bytes < STEP {
            return Ok(());
        }
        if pace.give_up.load(Ordering::Relaxed) {
            return Err(io::Error::other("others have come into force"));
        }
        if self.unsynced >= SYNC_EVERY {
            sync()?;
            self.unsynced = 0;
        }
        // A service may not be allowed to lower its priority. Then half of the time is others'.
        if !pace.is_polite && !pace.stopping.load(Ordering::Relaxed) {
            std::thread::sleep(self.began.elapsed().min(MAX_PAUSE));
        }
        (self.bytes, self.began) = (0, Instant::now());
        Ok(())
    }
}

/// A file that is written step by step.
struct Paced<'f> {
    file: &'f mut BufWriter<disk::File>,
    pace: &'f Pace<'f>,
    step: Step,
}

impl Write for Paced<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        let Self { file, pace, step } = self;
        step.wrote(written as u64, pace, || file.get_ref().sync_data())?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Paced<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyward_state::StateDir;

    #[test]
    fn large_superseded_write_is_given_up_before_others_are_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(directory.path(), true).expect("opens").expect("is there");
        let last_good = LastGood::open(Some(&Arc::new(state)), true).expect("a thread").expect("kept");
        let given_up = |generation, keys, in_force| {
            let give_up = Arc::new(AtomicBool::new(false));
            let writing = Writing { generation, keys, give_up: Arc::clone(&give_up) };
            last_good.shared.slot().writing = Some(writing);
            last_good.make_room(in_force);
            give_up.load(Ordering::Relaxed)
        };
        assert!(given_up(1, LARGE, 2));
        assert!(!given_up(2, LARGE, 2), "it is served anyway");
        assert!(!given_up(1, LARGE - 1, 2), "it is completed, however fast others follow");
    }

    #[test]
    fn write_that_is_given_up_fails_at_its_next_step() {
        let (give_up, stopping) = (AtomicBool::new(false), AtomicBool::new(false));
        let pace = Pace { give_up: &give_up, stopping: &stopping, is_polite: true };
        let (mut step, mut synced) = (Step::new(), 0);
        for _ in 0..2 * SYNC_EVERY / STEP {
            let sync = || {
                synced += 1;
                Ok(())
            };
            step.wrote(STEP, &pace, sync).expect("it goes on");
        }
        assert_eq!(synced, 2);
        give_up.store(true, Ordering::Relaxed);
        assert!(step.wrote(STEP, &pace, || Ok(())).is_err());
    }

    #[test]
    fn copy_has_every_byte() {
        let directory = tempfile::tempdir().expect("a directory");
        let [from, to] = ["from", "to"].map(|name| directory.path().join(name));
        let bytes: Vec<u8> = (0..2 * STEP + 12_345).map(|number| (number % 251) as u8).collect();
        std::fs::write(&from, &bytes).expect("writes");
        let (give_up, stopping) = (AtomicBool::new(false), AtomicBool::new(true));
        let pace = Pace { give_up: &give_up, stopping: &stopping, is_polite: false };
        let source = File::open(&from).expect("opens");
        copy_bytes(&source, &File::create(&to).expect("a file"), bytes.len() as u64, &pace).expect("copies");
        assert!(std::fs::read(&to).expect("reads") == bytes);
        // Nothing comes of a source that has become shorter.
        let longer = bytes.len() as u64 + 1;
        assert!(copy_bytes(&source, &File::create(&to).expect("a file"), longer, &pace).is_err());
    }
}
