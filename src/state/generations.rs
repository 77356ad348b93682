//! Numbers for snapshots that are not used twice, whenever the daemon ends: reserved durably, a block at a time.
//!
//! The file `generation` holds the last number of the block that is in use, with a checksum. It is replaced before the first
//! number of a block is used, so that the next start, after kill -9 too, goes on above everything that may have been used.
//!
//! Where the file cannot be written, or says nothing that can be used although the directory has been used before, numbers go
//! on from the calendar: above every number that was reserved, and above those of an earlier start in the same trouble.

use std::io::Write;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::error;

use super::{StateDir, read, replace};

/// The name of the file.
const FILE: &str = "generation";

/// Numbers that are reserved at once: a disk is waited for in one reload of a thousand. A start leaves the rest of a block unused.
const BLOCK: u64 = 1_000;

/// Numbers for each second of the calendar: more than a daemon uses in one. They stay below 2^53 until the year 2242, so that
/// every JSON parser reads them exactly.
const PER_SECOND: u64 = 1 << 20;

/// Hands out the numbers of snapshots, ascending.
#[derive(Debug)]
pub struct Generations {
    /// `None`: there is none, and numbers start at 1 each time.
    directory: Option<Arc<StateDir>>,
    last: u64,
    /// The last number that is reserved.
    reserved: u64,
    /// The last attempt to reserve some failed: they may be used again after a restart.
    is_failing: bool,
}

impl Generations {
    /// Goes on above what was reserved in `directory`. `used` is a number that is known to have been used there; 0 if none is.
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

    /// Tries again to reserve numbers, if that has failed.
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
                        self.last = self.last.max(by_calendar());
                    }
                }
            }
        }
    }
}

/// The highest number that may have been used in `directory`; `used` is known to have been.
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
    error!(file = %path.display(), problem, "which generations have been used is not known; they go on from the calendar");
    by_calendar().max(used)
}

/// As if `PER_SECOND` numbers had been used in each second since 1970.
fn by_calendar() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().saturating_mul(PER_SECOND)
}

/// As in `1000 9ae0daaf` and a newline.
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
    fn numbers_begin_at_1_and_never_repeat_over_restarts() {
        let path = tempfile::tempdir().expect("a directory");
        let directory = directory(path.path());
        let mut all = numbers(&directory, 0, BLOCK as usize + 5);
        assert_eq!(all[..2], [1, 2]);
        assert_eq!(all[BLOCK as usize], BLOCK + 1);
        // Nothing is written at the end: each is a kill -9.
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
    fn damaged_or_lost_file_never_leads_to_numbers_used_before() {
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
            "what is known to be used counts too"
        );
    }

    #[test]
    fn unwritable_file_does_not_repeat_numbers_and_says_so() {
        let path = tempfile::tempdir().expect("a directory");
        let directory = directory(path.path());
        numbers(&directory, 0, 3);
        // Something that a file cannot be written over, for root either.
        fs::create_dir(directory.path("generation.new")).expect("a directory");
        let mut generations = Generations::open(Some(Arc::clone(&directory)), 3);
        let first = generations.next_number();
        assert!(first > BLOCK && directory.health().unwritten().iter().any(|file| &*file.file == FILE));
        assert_eq!(generations.next_number(), first + 1);
        fs::remove_dir(directory.path("generation.new")).expect("removes");
        assert_eq!(generations.next_number(), first + 2);
        assert!(directory.health().unwritten().is_empty(), "it is tried again for each");
        assert!(numbers(&directory, 3, 1)[0] > first + 2);
    }
}
