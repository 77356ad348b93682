//! The background thread that writes the keys in force to the state directory.
//!
//! At most one write is in progress and one is pending. A reload that is accepted meanwhile
//! replaces the pending one. The write in progress is completed, because frequent reloads would
//! otherwise keep all of them from the disk. The exception is memory: if a large set is
//! outdated and the next one is about to be read, there would be three sets in memory. Then the
//! write is cancelled, and the newest keys are written.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::{debug, info, warn};

use super::accepted::ACCEPTED_FILE;
use super::manifest::{MANIFEST, Manifest, PREFIX, SUFFIX, header_crc32, is_compiled_file_name};
use super::paced::{Pace, PacedReader, PacedWriter, copy};
use super::sealed::SealedError;
use super::{LastGoodStore, SharedStore, State};
use crate::reload::FileState;
use keyward_engine::snapshot::{RowPolicies, Snapshot, compiled};
use keyward_state::time::{self, Instant};
use keyward_state::{self as state, FileError, disk};

/// The lowest priority: keys are stored for a restart, while requests are answered now.
const NICENESS: i32 = 19;

/// Delay before the first retry, unless other keys come into force before. It doubles with each
/// failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The longest delay between two attempts.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// How long a shutdown waits for keys that were accepted right before it.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Keys from which on an outdated set, of about 32 MiB, must not stay in memory while another is
/// read.
const LARGE_SET: usize = 1 << 18;

/// Cancelled writes in succession after which the log says that keys are not being stored.
const WARN_AFTER_CANCELLATIONS: u32 = 3;

/// Keys that came into force, and their source.
pub(in crate::reload) struct Job {
    pub(in crate::reload) snapshot: Arc<Snapshot>,
    pub(in crate::reload) policies: RowPolicies,
    /// The source, open, if it is a compiled file.
    pub(in crate::reload) compiled: Option<File>,
    pub(in crate::reload) source: String,
    pub(in crate::reload) state: FileState,
    pub(in crate::reload) parse_settings: String,
    pub(in crate::reload) accepted_at: u32,
}

/// The write in progress.
pub(super) struct Writing {
    pub(super) generation: u64,
    pub(super) keys: usize,
    pub(super) cancelled: Arc<AtomicBool>,
}

impl LastGoodStore {
    /// Queues keys that have come into force. Does not wait for the disk.
    pub(in crate::reload) fn enqueue(&self, job: Job) {
        let replaced = {
            let mut state = self.shared.state();
            (state.in_use, state.unusable, state.retry_at) = (None, None, None);
            state.pending.replace(job)
        };
        // Freed outside the lock.
        drop(replaced);
        self.shared.changed.notify_all();
        time::wake();
    }

    /// Cancels the write of a large set that the generation `in_force` has made outdated: another
    /// set is about to be read.
    pub(in crate::reload) fn cancel_outdated_write(&self, in_force: u64) {
        if let Some(writing) = &self.shared.state().writing
            && writing.generation != in_force
            && writing.keys >= LARGE_SET
        {
            writing.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// Waits, for a limited time, until pending keys are written; a write that has failed is tried
    /// once more. If they are not written, the previous keys stay on disk.
    pub fn stop(&self) {
        let shared = &self.shared;
        {
            // Under the lock, so that the writer does not miss it between its check and its wait.
            let mut state = shared.state();
            state.retry_at = None;
            shared.stopping.store(true, Ordering::Relaxed);
        }
        shared.changed.notify_all();
        time::wake();
        if !self.wait_idle() || shared.state().pending.is_some() {
            info!(
                "the keys in force are not stored yet: if the next start refuses the source, it serves the last good keys \
                 before them, or none if access has been taken away since"
            );
        }
    }

    /// Waits, for a limited time, until the writer has nothing to do, or waits to try again. Returns
    /// whether that is so.
    pub(crate) fn wait_idle(&self) -> bool {
        let is_busy = |state: &mut State| state.writing.is_some() || state.is_due(Instant::now());
        let waited = self.shared.changed.wait_timeout_while(self.shared.state(), STOP_TIMEOUT, is_busy);
        !waited.is_ok_and(|(_, timeout)| timeout.timed_out())
    }
}

impl State {
    fn is_due(&self, now: Instant) -> bool {
        self.pending.is_some() && self.retry_at.is_none_or(|at| at <= now)
    }
}

impl SharedStore {
    /// The thread's main function.
    pub(super) fn run(&self) {
        let has_low_priority = rustix::process::setpriority_process(None, NICENESS)
            .inspect_err(|error| debug!(%error, "the priority of this thread cannot be lowered; it pauses while it writes the last good keys"))
            .is_ok();
        while let Some((job, cancelled)) = self.next() {
            let pace = Pace { cancelled: &cancelled, stopping: &self.stopping, has_low_priority };
            let written = self.write(&job, &pace);
            self.finish(job, written, cancelled.load(Ordering::Relaxed));
        }
    }

    /// Waits for the next job; `None` at shutdown.
    fn next(&self) -> Option<(Job, Arc<AtomicBool>)> {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            if state.is_due(now)
                && let Some(job) = state.pending.take()
            {
                // A time in the past would have the next wait end at once, again and again.
                state.retry_at = None;
                let cancelled = Arc::new(AtomicBool::new(false));
                let (generation, keys) = (job.snapshot.table_generation(), job.snapshot.len());
                state.writing = Some(Writing { generation, keys, cancelled: Arc::clone(&cancelled) });
                return Some((job, cancelled));
            }
            if self.stopping.load(Ordering::Relaxed) {
                return None;
            }
            let timeout = state.retry_at.map_or(MAX_RETRY, |at| at.saturating_duration_since(now));
            let is_idle =
                |state: &mut State| !state.is_due(Instant::now()) && !self.stopping.load(Ordering::Relaxed);
            drop(state);
            state = time::wait_timeout_while(&self.changed, &self.state, timeout, is_idle);
        }
    }

    fn finish(&self, job: Job, written: Result<Manifest, FileError>, was_cancelled: bool) {
        let generation = job.snapshot.table_generation();
        match &written {
            Ok(manifest) => {
                debug!(
                    generation,
                    keys = manifest.keys,
                    bytes = manifest.bytes,
                    "the keys in force are stored for the next start"
                );
                self.directory.health().written(MANIFEST);
                self.remove_takeaways_before(generation);
            }
            Err(_) if was_cancelled => {
                debug!(generation, "newer keys came into force before these were stored")
            }
            Err(error) => self.directory.health().failed(MANIFEST, error),
        }
        let mut state = self.state();
        state.writing = None;
        let mut done = Some(job);
        match written {
            Ok(manifest) => {
                state.checked_file = Some(manifest.file.clone());
                state.stored = Some(manifest);
                state.is_manifest_uncertain = false;
                // The manifest names the accepted source, too.
                if state.accepted.as_ref().is_none_or(|accepted| accepted.generation <= generation) {
                    state.record_error = None;
                    self.directory.health().written(ACCEPTED_FILE);
                }
                (state.failures, state.cancellations) = (0, 0);
            }
            Err(_) if was_cancelled => {
                state.cancellations = state.cancellations.saturating_add(1);
                if state.cancellations == WARN_AFTER_CANCELLATIONS {
                    let stored = state.stored_generation();
                    warn!(
                        generation,
                        stored,
                        "reloads follow each other faster than their keys can be stored: after a restart with a bad \
                         source, there would be older keys or none"
                    );
                }
            }
            Err(_) if state.pending.is_some() => {}
            Err(_) => {
                let retry = FIRST_RETRY.saturating_mul(1 << state.failures.min(6)).min(MAX_RETRY);
                state.failures = state.failures.saturating_add(1);
                state.retry_at = Some(Instant::now() + retry);
                state.pending = done.take();
            }
        }
        drop(state);
        self.changed.notify_all();
        // Frees the snapshot, if it has been superseded.
        drop(done);
    }

    fn write(&self, job: &Job, pace: &Pace<'_>) -> Result<Manifest, FileError> {
        let directory = self.directory.path("");
        let is_certain = self.ascertain_manifest()?;
        let stored = self.state().stored.clone();
        let global_policy = job.snapshot.global_policy();
        let mut manifest = Manifest {
            generation: job.snapshot.table_generation(),
            file: String::new(),
            bytes: 0,
            head_crc32: 0,
            keys: job.snapshot.len(),
            source: job.source.clone(),
            state: job.state,
            written_at: job.snapshot.meta().source_time,
            accepted_at: job.accepted_at,
            parse_settings: job.parse_settings.clone(),
            peppers: super::manifest::pepper_fingerprints(global_policy),
        };
        // The same file, parsed with the same settings: its rows are on disk already. Plans and
        // peppers do not matter.
        if let Some(stored) = &stored
            && stored.is_of(&job.state, &job.parse_settings)
            && stored.keys == manifest.keys
            && self.is_intact(stored, pace)?
        {
            (manifest.file, manifest.bytes, manifest.head_crc32) =
                (stored.file.clone(), stored.bytes, stored.head_crc32);
            manifest.write(&directory)?;
            return Ok(manifest);
        }
        if is_certain {
            remove_leftover_files(&directory, stored.as_ref());
        }
        manifest.file = unused_file_name(manifest.generation, &directory);
        let written = self.write_file(job, &mut manifest, pace).and_then(|()| manifest.write(&directory));
        match &written {
            Ok(()) => remove_leftover_files(&directory, Some(&manifest)),
            Err(_) if self.may_be_named(&manifest) => self.state().is_manifest_uncertain = true,
            Err(_) => remove(&directory.join(&manifest.file)),
        }
        written.map(|()| manifest)
    }

    /// Reads the manifest again, and makes it durable, if it is not certain which one is on disk.
    /// Returns whether it is certain now.
    fn ascertain_manifest(&self) -> Result<bool, FileError> {
        if !self.state().is_manifest_uncertain {
            return Ok(true);
        }
        let path = self.directory.path(MANIFEST);
        disk::sync_directory(&path).map_err(|error| FileError {
            path: path.clone(),
            action: "make its new name durable",
            error,
        })?;
        let Ok(stored) = Manifest::read(&self.directory.path("")) else { return Ok(false) };
        let mut state = self.state();
        (state.stored, state.is_manifest_uncertain) = (stored, false);
        Ok(true)
    }

    /// Whether the manifest on disk may name the file of `manifest`, although replacing it has
    /// failed.
    fn may_be_named(&self, manifest: &Manifest) -> bool {
        match Manifest::read(&self.directory.path("")) {
            Ok(on_disk) => on_disk.is_some_and(|on_disk| on_disk.file == manifest.file),
            Err(SealedError::File(_)) => true,
            Err(SealedError::Damaged { .. } | SealedError::Format { .. }) => false,
        }
    }

    /// Whether the compiled file is as it was written. The first time, all of it is read.
    ///
    /// # Errors
    /// When newer keys came into force meanwhile.
    fn is_intact(&self, stored: &Manifest, pace: &Pace<'_>) -> Result<bool, FileError> {
        let path = self.directory.path(&stored.file);
        let Ok(file) = state::open_to_read(&path) else { return Ok(false) };
        if !stored.describes(&file).unwrap_or(false) {
            return Ok(false);
        }
        if self.state().checked_file.as_ref() == Some(&stored.file) {
            return Ok(true);
        }
        let mut reader = PacedReader::new(&file, pace);
        let checked = compiled::Reader::open(|at, buffer| reader.read_exact_at(buffer, at), stored.bytes)
            .and_then(compiled::Reader::check_blocks);
        match checked {
            Ok(()) => self.state().checked_file = Some(stored.file.clone()),
            Err(error) if pace.cancelled.load(Ordering::Relaxed) => {
                let error = std::io::Error::other(error);
                return Err(FileError { path, action: "read it again", error });
            }
            Err(error) => {
                warn!(file = %path.display(), %error, "the last good keys on disk are damaged, and are written again");
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the compiled file, durably, and completes `manifest`.
    fn write_file(&self, job: &Job, manifest: &mut Manifest, pace: &Pace<'_>) -> Result<(), FileError> {
        let path = self.directory.path(&manifest.file);
        state::replace(&path, |file| {
            let is_copied = match &job.compiled {
                Some(source) => copy(source, &job.state, file.get_ref(), pace)?,
                None => false,
            };
            if !is_copied {
                file.get_ref().set_len(0)?;
                let mut file = PacedWriter::new(file, pace);
                job.snapshot.table().compile(&job.policies, &mut file, manifest.written_at, &mut |_| {})?;
                file.flush()?;
            }
            manifest.bytes = file.get_ref().metadata()?.len();
            Ok(())
        })?;
        let failed = |error| FileError { path: path.clone(), action: "read it again", error };
        let file = state::open_to_read(&path).map_err(failed)?;
        manifest.head_crc32 = header_crc32(&file).map_err(failed)?;
        Ok(())
    }
}

/// The name of the next compiled file. No file has it, so that the manifest stays valid until the
/// next one replaces it.
fn unused_file_name(generation: u64, directory: &Path) -> String {
    let mut number = generation;
    loop {
        let name = format!("{PREFIX}{number}{SUFFIX}");
        if !directory.join(&name).exists() {
            return name;
        }
        number = number.wrapping_add(1);
    }
}

/// Removes all compiled files in `directory` except the one that `manifest` names.
pub(super) fn remove_leftover_files(directory: &Path, manifest: Option<&Manifest>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_garbage = name.to_str().is_some_and(|name| {
            let is_kept = manifest.is_some_and(|manifest| manifest.file == name);
            (is_compiled_file_name(name) && !is_kept) || name.strip_suffix(".new") == Some(MANIFEST)
        });
        if is_garbage {
            remove(&entry.path());
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = disk::remove_file(path) {
        debug!(file = %path.display(), %error, "a file that is no longer needed cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyward_state::StateDir;

    #[test]
    fn large_outdated_write_is_cancelled_before_a_load() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(directory.path(), true).expect("opens").expect("is there");
        let last_good = LastGoodStore::open(Some(&Arc::new(state)), true).expect("a thread").expect("kept");
        let is_cancelled = |generation, keys, in_force| {
            let cancelled = Arc::new(AtomicBool::new(false));
            let writing = Writing { generation, keys, cancelled: Arc::clone(&cancelled) };
            last_good.shared.state().writing = Some(writing);
            last_good.cancel_outdated_write(in_force);
            cancelled.load(Ordering::Relaxed)
        };
        assert!(is_cancelled(1, LARGE_SET, 2));
        assert!(!is_cancelled(2, LARGE_SET, 2), "it is in memory anyway");
        assert!(!is_cancelled(1, LARGE_SET - 1, 2), "a small set is completed");
    }
}
