//! Generations: the numbers of snapshots, which are never reused while the directory can be written.
//! They are reserved durably in blocks.
//!
//! The file `generation` has the last number of the current block, with a checksum. It is replaced
//! before the first number of a block is used. So the next start, even after kill -9, continues
//! above all numbers that may have been used.
//!
//! If the file cannot be written, or is missing or damaged in a directory that has been used,
//! numbers continue from the system time: above every number that was reserved, and above those of
//! an earlier start with the same problem.

use std::io::Write;
use std::sync::Arc;

use tracing::error;

use super::time::now;
use super::{StateDir, read, replace};

/// The name of the file.
const FILE: &str = "generation";

/// Numbers in a block: one reload in a thousand waits for the disk. A start leaves the rest of a
/// block unused.
const BLOCK: u64 = 1_000;

/// Numbers per second of the system time: more than a daemon uses. They stay below 2^53 until the
/// year 2242, so every JSON parser reads them exactly.
const PER_SECOND: u64 = 1 << 20;

/// Allocates the numbers of snapshots, in ascending order.
#[derive(Debug)]
pub struct Generations {
    /// Without a directory, numbers begin at 1 at each start.
    directory: Option<Arc<StateDir>>,
    last: u64,
    /// The last reserved number.
    reserved: u64,
    /// Whether the last reservation failed, so numbers may be reused after a restart.
    is_failing: bool,
}

impl Generations {
    /// Continues above the numbers that were reserved in `directory`. `used` is a number that is
    /// known to have been used there; 0 if none is.
    pub fn open(directory: Option<Arc<StateDir>>, used: u64) -> Self {
        let last = directory.as_deref().map_or(0, |directory| last_used(directory, used));
        Self { directory, last, reserved: last, is_failing: false }
    }

    /// The next number.
    pub fn next_number(&mut self) -> u64 {
        if self.last >= self.reserved {
            self.reserve();
        }
        self.last = self.last.saturating_add(1);
        self.last
    }

    /// Retries a failed reservation.
    pub fn retry(&mut self) {
        if self.is_failing {
            self.reserve();
        }
    }

    fn reserve(&mut self) {
        if let Some(directory) = &self.directory {
            let until = self.last.saturating_add(BLOCK);
            match replace(&directory.path(FILE), |file| file.write_all(encode(until).as_bytes())) {
                Ok(()) => {
                    directory.health().written(FILE);
                    (self.reserved, self.is_failing) = (until, false);
                }
                Err(error) => {
                    directory.health().failed(FILE, &error);
                    if !std::mem::replace(&mut self.is_failing, true) {
                        self.last = self.last.max(from_system_time());
                    }
                }
            }
        }
    }
}

/// The highest number that may have been used in `directory`. `used` is known to have been used.
fn last_used(directory: &StateDir, used: u64) -> u64 {
    let path = directory.path(FILE);
    let problem = match read(&path) {
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

/// The number after `PER_SECOND` numbers in each second since 1970.
fn from_system_time() -> u64 {
    u64::try_from(now().as_second()).unwrap_or(0).saturating_mul(PER_SECOND)
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
        let mut generations = Generations::open(Some(Arc::clone(directory)), used);
        (0..count).map(|_| generations.next_number()).collect()
    }

    #[test]
    fn numbers_begin_at_1_and_never_repeat_across_restarts() {
        let path = tempfile::tempdir().expect("a directory");
        let directory = directory(path.path());
        let mut all = numbers(&directory, 0, BLOCK as usize + 5);
        assert_eq!(all[..2], [1, 2]);
        assert_eq!(all[BLOCK as usize], BLOCK + 1);
        // Nothing is written at the end, as after a kill -9.
        (0..50).for_each(|_| all.extend(numbers(&directory, 0, 3)));
        assert!(all.is_sorted_by(|a, b| a < b), "{all:?}");
        assert_eq!(fs::metadata(directory.path(FILE)).expect("a file").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn without_a_directory_numbers_begin_at_1() {
        let mut generations = Generations::open(None, 0);
        assert_eq!((generations.next_number(), generations.next_number()), (1, 2));
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

    #[test]
    fn unwritable_file_is_reported_and_numbers_do_not_repeat() {
        let path = tempfile::tempdir().expect("a directory");
        let directory = directory(path.path());
        numbers(&directory, 0, 3);
        // Not even root can write a file over a directory.
        fs::create_dir(directory.path("generation.new")).expect("a directory");
        let mut generations = Generations::open(Some(Arc::clone(&directory)), 3);
        let first = generations.next_number();
        assert!(first > BLOCK && directory.health().unwritten().iter().any(|file| &*file.file == FILE));
        assert_eq!(generations.next_number(), first + 1);
        fs::remove_dir(directory.path("generation.new")).expect("removes");
        assert_eq!(generations.next_number(), first + 2);
        assert!(directory.health().unwritten().is_empty(), "each number retries the reservation");
        assert!(numbers(&directory, 3, 1)[0] > first + 2);
    }
}
