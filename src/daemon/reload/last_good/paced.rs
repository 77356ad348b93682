//! Reading, writing and copying large files in the background: in steps that can be cancelled, with
//! syncs in between, and with pauses if the thread could not lower its priority.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::reload::FileState;
use keyward_state::disk;

/// Bytes between two checks for cancellation, and between pauses if the priority could not
/// be lowered.
const STEP_BYTES: u64 = 4 << 20;

/// Bytes between two syncs: one sync of the whole file would hold up all other I/O on that disk.
const SYNC_BYTES: u64 = 64 << 20;

/// Longest pause after a step.
const MAX_PAUSE: Duration = Duration::from_millis(100);

/// Whether and how fast to go on.
pub(super) struct Pace<'p> {
    pub(super) cancelled: &'p AtomicBool,
    pub(super) stopping: &'p AtomicBool,
    pub(super) has_low_priority: bool,
}

/// Bytes read or written since the last pause, and since the last sync.
struct Step {
    bytes: u64,
    unsynced: u64,
    began: Instant,
}

impl Step {
    fn new() -> Self {
        Self { bytes: 0, unsynced: 0, began: Instant::now() }
    }

    /// Counts `bytes`, and checks and pauses when a step of them is complete.
    fn advance(
        &mut self,
        bytes: u64,
        pace: &Pace<'_>,
        sync: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        self.bytes += bytes;
        self.unsynced += bytes;
        if self.bytes < STEP_BYTES {
            return Ok(());
        }
        if pace.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("newer keys have come into force"));
        }
        if self.unsynced >= SYNC_BYTES {
            sync()?;
            self.unsynced = 0;
        }
        // A service may not be allowed to change its priority. Then half of the time is left to
        // others.
        if !pace.has_low_priority && !pace.stopping.load(Ordering::Relaxed) {
            std::thread::sleep(self.began.elapsed().min(MAX_PAUSE));
        }
        (self.bytes, self.began) = (0, Instant::now());
        Ok(())
    }
}

/// A file that is written in steps.
pub(super) struct PacedWriter<'f> {
    file: &'f mut BufWriter<disk::File>,
    pace: &'f Pace<'f>,
    step: Step,
}

impl<'f> PacedWriter<'f> {
    pub(super) fn new(file: &'f mut BufWriter<disk::File>, pace: &'f Pace<'f>) -> Self {
        Self { file, pace, step: Step::new() }
    }
}

impl Write for PacedWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        let Self { file, pace, step } = self;
        step.advance(written as u64, pace, || file.get_ref().sync_data())?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for PacedWriter<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// A file that is read in steps.
pub(super) struct PacedReader<'f> {
    file: &'f File,
    pace: &'f Pace<'f>,
    step: Step,
}

impl<'f> PacedReader<'f> {
    pub(super) fn new(file: &'f File, pace: &'f Pace<'f>) -> Self {
        Self { file, pace, step: Step::new() }
    }

    pub(super) fn read_exact_at(&mut self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, at)?;
        self.step.advance(buffer.len() as u64, self.pace, || Ok(()))
    }
}

/// Copies a compiled source. Returns `false` if it differs from `state`, before or after the copy.
pub(super) fn copy(source: &File, state: &FileState, to: &File, pace: &Pace<'_>) -> io::Result<bool> {
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
        let wanted = (length - at).min(STEP_BYTES) as usize;
        let copied = if in_kernel {
            rustix::fs::copy_file_range(source, Some(&mut at.clone()), to, Some(&mut at.clone()), wanted)
        } else {
            Ok(0)
        };
        let copied = match copied {
            Ok(copied) if copied > 0 => copied,
            Err(rustix::io::Errno::NOSPC) => return Err(rustix::io::Errno::NOSPC.into()),
            // The file system does not support it; some report that by copying nothing.
            _ => {
                in_kernel = false;
                buffer.resize(wanted, 0);
                source.read_exact_at(&mut buffer, at)?;
                to.write_all_at(&buffer, at)?;
                wanted
            }
        };
        at += copied as u64;
        step.advance(copied as u64, pace, || to.sync_data())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelled_write_fails_at_its_next_step() {
        let (cancelled, stopping) = (AtomicBool::new(false), AtomicBool::new(false));
        let pace = Pace { cancelled: &cancelled, stopping: &stopping, has_low_priority: true };
        let (mut step, mut synced) = (Step::new(), 0);
        for _ in 0..2 * SYNC_BYTES / STEP_BYTES {
            let sync = || {
                synced += 1;
                Ok(())
            };
            step.advance(STEP_BYTES, &pace, sync).expect("it goes on");
        }
        assert_eq!(synced, 2);
        cancelled.store(true, Ordering::Relaxed);
        assert!(step.advance(STEP_BYTES, &pace, || Ok(())).is_err());
    }

    #[test]
    fn copy_has_every_byte() {
        let directory = tempfile::tempdir().expect("a directory");
        let [from, to] = ["from", "to"].map(|name| directory.path().join(name));
        let bytes: Vec<u8> = (0..2 * STEP_BYTES + 12_345).map(|number| (number % 251) as u8).collect();
        std::fs::write(&from, &bytes).expect("writes");
        let (cancelled, stopping) = (AtomicBool::new(false), AtomicBool::new(true));
        let pace = Pace { cancelled: &cancelled, stopping: &stopping, has_low_priority: false };
        let source = File::open(&from).expect("opens");
        copy_bytes(&source, &File::create(&to).expect("a file"), bytes.len() as u64, &pace).expect("copies");
        assert!(std::fs::read(&to).expect("reads") == bytes);
        // A source that has become shorter is an error.
        let longer = bytes.len() as u64 + 1;
        assert!(copy_bytes(&source, &File::create(&to).expect("a file"), longer, &pace).is_err());
    }
}
