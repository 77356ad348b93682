//! Generations: the numbers of states of all keys. They ascend and are never reused while the
//! directory can be written. They are reserved durably in blocks, ahead of their use, so that taking
//! one never waits for the disk.
//!
//! The file `generation` has the last reserved number, with a checksum. The next start, even after
//! kill -9, continues above it, and so above all numbers that may have been used. An existing file is
//! written in place: that needs no space, so a full disk does not prevent it.
//!
//! Numbers continue from the system time if no reserved number is left because the file cannot be
//! written (on a read-only file system, on one that needs space to overwrite, after an error of the
//! disk), or if the file is missing or damaged in a directory that has been used. Such numbers are
//! above all that were reserved, and above those of an earlier daemon with the same problem, unless
//! the system time was set back. They are reserved as soon as the file can be written. A daemon that
//! ends before that leaves a file that does not know them: the next one continues lower.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::error;

use super::time::now;
use super::{FileError, StateDir, disk, failed, read, replace};

/// The name of the file.
const FILE: &str = "generation";

/// Maximum length of the file: two numbers.
const MAX_BYTES: u64 = 64;

/// Numbers in a block. A start leaves the rest of a block unused.
const BLOCK: u64 = 100_000;

/// With fewer reserved numbers than this, the next block is reserved. They last for as many reloads
/// and revocations while the disk cannot be written.
const LOW: u64 = BLOCK / 2;

/// Numbers per second of the system time: more than a daemon uses. They stay below 2^53 until the
/// year 2242, so every JSON parser reads them exactly.
const PER_SECOND: u128 = 1 << 20;

/// Allocates generations, in ascending order. Clones share the numbers.
#[derive(Clone, Debug)]
pub struct Generations {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Without a directory, numbers begin at 1 at each start.
    directory: Option<Arc<StateDir>>,
    /// Never locked while the disk is used.
    numbers: Mutex<Numbers>,
    /// Serializes reservations.
    reserving: Mutex<()>,
}

#[derive(Debug)]
struct Numbers {
    last: u64,
    /// The last reserved number.
    reserved: u64,
    /// Whether any were reserved since the start, or could not be.
    has_begun: bool,
    /// Whether the last reservation failed.
    is_failing: bool,
    /// Whether the last number is not a reserved one.
    is_unreserved: bool,
}

impl Generations {
    /// Continues above the numbers that were reserved in `directory`. `used` is a number that is
    /// known to have been used there; 0 if none is. [`reserve`](Self::reserve) has to be called
    /// before the first number is taken.
    pub fn open(directory: Option<Arc<StateDir>>, used: u64) -> Self {
        let last = directory.as_deref().map_or(0, |directory| last_used(directory, used));
        let numbers =
            Numbers { last, reserved: last, has_begun: false, is_failing: false, is_unreserved: false };
        let (numbers, reserving) = (Mutex::new(numbers), Mutex::new(()));
        Self { shared: Arc::new(Shared { directory, numbers, reserving }) }
    }

    /// The next number. Does not wait for the disk.
    pub fn next_number(&self) -> u64 {
        let mut numbers = self.numbers();
        if self.shared.directory.is_some() && numbers.last >= numbers.reserved && !numbers.is_unreserved {
            numbers.is_unreserved = true;
            numbers.last = numbers.last.max(from_system_time());
        }
        numbers.last = numbers.last.saturating_add(1);
        numbers.last
    }

    /// Whether more numbers should be reserved. A failed attempt is left to [`retry`](Self::retry).
    pub fn is_low(&self) -> bool {
        let numbers = self.numbers();
        let may_reserve = self.shared.directory.is_some() && numbers.has_begun && !numbers.is_failing;
        may_reserve && numbers.left() < LOW
    }

    /// Retries a failed reservation.
    pub fn retry(&self) {
        if self.numbers().is_failing {
            self.reserve();
        }
    }

    /// Reserves numbers if few are left, and retries a reservation that has failed. Waits for the
    /// disk.
    pub fn reserve(&self) {
        let Some(directory) = &self.shared.directory else { return };
        let _reserving = self.shared.reserving.lock().unwrap_or_else(PoisonError::into_inner);
        let until = {
            let mut numbers = self.numbers();
            if !numbers.is_failing && numbers.left() >= LOW {
                return;
            }
            numbers.has_begun = true;
            numbers.last.saturating_add(BLOCK)
        };
        match write(&directory.path(FILE), &encode(until)) {
            Ok(()) => {
                directory.health().written(FILE);
                let mut numbers = self.numbers();
                (numbers.reserved, numbers.is_failing) = (until, false);
                numbers.is_unreserved &= numbers.last > until;
            }
            Err(error) => {
                directory.health().failed(FILE, &error);
                self.numbers().is_failing = true;
            }
        }
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.shared.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Numbers {
    /// Reserved numbers that are not used yet.
    fn left(&self) -> u64 {
        self.reserved.saturating_sub(self.last)
    }
}

/// Writes the file durably, in place if there is one.
fn write(path: &Path, content: &str) -> Result<(), FileError> {
    let has_room = std::fs::symlink_metadata(path).is_ok_and(|file| file.len() <= content.len() as u64);
    if has_room && write_in_place(path, content).is_ok() {
        return Ok(());
    }
    replace(path, |file| file.write_all(content.as_bytes()))
}

/// If this fails, the content of the file is uncertain.
fn write_in_place(path: &Path, content: &str) -> Result<(), FileError> {
    let file = disk::File::open_existing(path).map_err(failed(path, "open it"))?;
    // An earlier replacement may have failed at this.
    disk::sync_directory(path).map_err(failed(path, "make its name durable"))?;
    file.write_all_at(content.as_bytes(), 0).map_err(failed(path, "write it"))?;
    file.sync_data().map_err(failed(path, "make it durable"))
}

/// The highest number that may have been used in `directory`. `used` is known to have been used.
fn last_used(directory: &StateDir, used: u64) -> u64 {
    let path = directory.path(FILE);
    let problem = match read(&path, MAX_BYTES) {
        Ok(Some(content)) => match decode(&content) {
            Some(reserved) => return reserved.max(used),
            None => "its checksum does not match".to_owned(),
        },
        Ok(None) if used == 0 => return 0,
        Ok(None) => "it is gone".to_owned(),
        Err(error) => error.to_string(),
    };
    error!(file = %path.display(), problem, "which generations have been used is not known; they continue from the system time");
    from_system_time().max(used)
}

/// The number after `PER_SECOND` numbers in each second since 1970. Two daemons that start within a
/// second get different ones.
fn from_system_time() -> u64 {
    let microseconds = u128::try_from(now().as_microsecond()).unwrap_or(0);
    u64::try_from(microseconds * PER_SECOND / 1_000_000).unwrap_or(u64::MAX)
}

/// Encodes as in `1000 9ae0daaf`, followed by a newline.
fn encode(reserved: u64) -> String {
    let number = reserved.to_string();
    format!("{number} {:08x}\n", crc32fast::hash(number.as_bytes()))
}

fn decode(content: &[u8]) -> Option<u64> {
    let (number, _) = str::from_utf8(content).ok()?.split_once(' ')?;
    let number = number.parse().ok()?;
    (encode(number).as_bytes() == content).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn directory(path: &std::path::Path) -> Arc<StateDir> {
        Arc::new(StateDir::open(path, true).expect("opens").expect("a directory"))
    }

    fn numbers(directory: &Arc<StateDir>, used: u64, count: usize) -> Vec<u64> {
        let generations = Generations::open(Some(Arc::clone(directory)), used);
        take(&generations, count)
    }

    /// As a daemon takes them: more are reserved before they run out.
    fn take(generations: &Generations, count: usize) -> Vec<u64> {
        let next = |_| {
            generations.reserve();
            generations.next_number()
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn numbers_begin_at_1_and_never_repeat_across_restarts() {
        let path = tempfile::tempdir().expect("a directory");
        let directory = directory(path.path());
        let mut all = numbers(&directory, 0, BLOCK as usize + 5);
        assert_eq!(all[..2], [1, 2]);
        assert_eq!(all[BLOCK as usize], BLOCK + 1, "no number is left out");
        // Nothing is written at the end, as after a kill -9.
        (0..50).for_each(|_| all.extend(numbers(&directory, 0, 3)));
        assert!(all.is_sorted_by(|a, b| a < b), "{all:?}");
        assert_eq!(fs::metadata(directory.path(FILE)).expect("a file").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn without_a_directory_numbers_begin_at_1() {
        let generations = Generations::open(None, 0);
        assert_eq!((generations.next_number(), generations.next_number()), (1, 2));
        assert!(!generations.is_low());
    }

    #[test]
    fn damaged_or_lost_file_never_causes_reused_numbers() {
        let path = tempfile::tempdir().expect("a directory");
        let directory = directory(path.path());
        let used = numbers(&directory, 0, 7)[6];
        let file = directory.path(FILE);
        let whole = fs::read(&file).expect("a file");
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&file, &damaged).expect("writes");
            assert!(numbers(&directory, used, 1)[0] > BLOCK, "{damaged:?}");
        }
        fs::write(&file, "").expect("writes");
        assert!(numbers(&directory, used, 1)[0] > BLOCK);
        fs::remove_file(&file).expect("removes");
        assert!(numbers(&directory, used, 1)[0] > BLOCK);
        fs::write(&file, &whole).expect("writes");
        assert_eq!(
            numbers(&directory, 5 * BLOCK, 1)[0],
            5 * BLOCK + 1,
            "above the number that is known to be used"
        );
    }

    /// Not even root can write over a directory.
    fn block(file: &Path) {
        fs::remove_file(file).expect("removes");
        fs::create_dir(file).expect("a directory");
    }

    #[test]
    fn unwritable_file_is_reported_and_numbers_do_not_repeat() {
        let path = tempfile::tempdir().expect("a directory");
        let directory = directory(path.path());
        numbers(&directory, 0, 3);
        let file = directory.path(FILE);
        block(&file);
        let generations = Generations::open(Some(Arc::clone(&directory)), 3);
        let first = take(&generations, 1)[0];
        assert!(first > BLOCK && directory.health().unwritten().iter().any(|file| &*file.file == FILE));
        assert_eq!(generations.next_number(), first + 1);
        assert!(numbers(&directory, 3, 1)[0] > first + 1, "a daemon that starts in the same second");
        fs::remove_dir(&file).expect("removes");
        assert_eq!(take(&generations, 1)[0], first + 2);
        assert!(directory.health().unwritten().is_empty(), "the reservation is retried");
        assert!(numbers(&directory, 3, 1)[0] > first + 2);
    }

    /// Numbers are reserved so far ahead that a disk that fails for a while changes nothing.
    #[test]
    fn reserved_numbers_are_used_while_the_disk_fails() {
        let path = tempfile::tempdir().expect("a directory");
        let directory = directory(path.path());
        let generations = Generations::open(Some(Arc::clone(&directory)), 0);
        assert_eq!(take(&generations, LOW as usize + 1)[LOW as usize], LOW + 1);
        assert!(!directory.path("generation.new").exists() && generations.is_low());
        block(&directory.path(FILE));
        generations.reserve();
        assert!(!generations.is_low(), "the attempt has failed, and is not repeated by commands");
        for number in LOW + 2..=BLOCK {
            assert_eq!(generations.next_number(), number);
        }
        assert!(generations.next_number() > from_system_time() / 2, "none is left");
    }

    /// A disk without space for another file.
    #[test]
    fn full_disk_does_not_prevent_a_reservation() {
        let path = tempfile::tempdir().expect("a directory");
        let directory = directory(path.path());
        let before = numbers(&directory, 0, 3);
        fs::create_dir(directory.path("generation.new")).expect("an obstacle for a new file");
        let after = numbers(&directory, 0, 3);
        assert_eq!((before[0], after[0]), (1, BLOCK + 1));
        assert_eq!(numbers(&directory, 0, 1), [2 * BLOCK + 1]);
        assert!(directory.health().unwritten().is_empty());
    }

    #[test]
    fn clones_share_the_numbers() {
        let generations = Generations::open(None, 0);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let generations = generations.clone();
                std::thread::spawn(move || (0..1000).map(|_| generations.next_number()).collect::<Vec<_>>())
            })
            .collect();
        let mut all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().expect("ends")).collect();
        all.sort_unstable();
        assert_eq!(all, (1..=4000).collect::<Vec<_>>());
    }
}
