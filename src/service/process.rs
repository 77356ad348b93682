//! What the kernel reports about this process: memory, processor time, threads and descriptors.

use std::fs;
use std::io;
use std::sync::OnceLock;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, Timespec, clock_gettime};

const STAT: &str = "/proc/self/stat";
const DESCRIPTORS: &str = "/proc/self/fd";

/// The process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Process {
    /// When it was started, in Unix seconds. The first reading decides, so that the time is the same
    /// in all.
    pub start_unix_s: f64,
    /// Processor time.
    pub cpu_s: f64,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Virtual memory in bytes.
    pub virtual_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open descriptors.
    pub open_fds: u64,
    /// The limit of open descriptors; `u64::MAX` if there is none.
    pub max_fds: u64,
}

/// The part of `/proc/self/stat` that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    /// In clock ticks, as `started`.
    cpu: u64,
    threads: u64,
    /// Since the boot.
    started: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Process {
    /// Reads the current values.
    ///
    /// # Errors
    /// When `/proc` is not mounted, or is not Linux's.
    pub fn read() -> io::Result<Self> {
        static START_UNIX_S: OnceLock<f64> = OnceLock::new();
        let stat = Stat::parse(&fs::read(STAT)?).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{STAT}: not as in proc(5)"))
        })?;
        let seconds = |ticks: u64| ticks as f64 / clock_ticks_per_second() as f64;
        Ok(Self {
            start_unix_s: *START_UNIX_S.get_or_init(|| boot_unix_s() + seconds(stat.started)),
            cpu_s: seconds(stat.cpu),
            resident_bytes: stat.resident_pages.saturating_mul(page_size() as u64),
            virtual_bytes: stat.virtual_bytes,
            threads: stat.threads,
            open_fds: open_descriptors()?,
            max_fds: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        })
    }
}

impl Stat {
    /// Parses the line. The name of the program, in parentheses, may contain spaces and parentheses.
    fn parse(line: &[u8]) -> Option<Self> {
        let name_end = line.iter().rposition(|byte| *byte == b')')?;
        let fields: Vec<&str> =
            str::from_utf8(line.get(name_end + 1..)?).ok()?.split_ascii_whitespace().collect();
        // proc(5) counts from 1, and the first one here is number 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu: field(14)?.checked_add(field(15)?)?,
            threads: field(20)?,
            started: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// When the system was booted. `/proc/stat` has it too, but is not visible to a service with
/// `ProcSubset=pid`.
fn boot_unix_s() -> f64 {
    let seconds = |time: Timespec| time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
    seconds(clock_gettime(ClockId::Realtime)) - seconds(clock_gettime(ClockId::Boottime))
}

/// The number of open descriptors. Since Linux 6.2 it is the size of the directory, which takes as
/// long for a million of them as for one. An older kernel says 0, and they are counted. A process may
/// list its own directory, even if it is not dumpable and the directory therefore belongs to root.
fn open_descriptors() -> io::Result<u64> {
    match fs::metadata(DESCRIPTORS)?.len() {
        0 => listed_descriptors(),
        size => Ok(size),
    }
}

/// The number of entries without that of the listing itself.
fn listed_descriptors() -> io::Result<u64> {
    Ok((fs::read_dir(DESCRIPTORS)?.count() as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    use super::*;

    const LINE: &str = "4242 (keyward) S 1 4242 4242 0 -1 4194560 2904 6509 4 0 250 50 1 4 20 0 9 0 1234 \
                        536870912 2048 18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0\n";

    #[test]
    fn fields_are_those_of_the_manual() {
        let expected =
            Stat { cpu: 300, threads: 9, started: 1_234, virtual_bytes: 536_870_912, resident_pages: 2_048 };
        assert_eq!(Stat::parse(LINE.as_bytes()), Some(expected));
        for name in ["(a b) c", ") S 1 2 3 (", "", "\u{fc}"] {
            let line = LINE.replace("keyward", name);
            assert_eq!(Stat::parse(line.as_bytes()), Some(expected), "{name:?}");
        }
        let line = [b"1 (\xff", &LINE.as_bytes()[6..]].concat();
        assert_eq!(Stat::parse(&line), Some(expected), "a name may be any bytes");
    }

    #[test]
    fn other_text_is_refused() {
        let fields = LINE.split(' ').count();
        for length in 0..24 {
            let cut: Vec<&str> = LINE.split(' ').take(length.min(fields)).collect();
            assert_eq!(Stat::parse(cut.join(" ").trim_end().as_bytes()), None, "{length} fields");
        }
        for (from, to) in
            [(" 250 ", " -1 "), (" 250 ", " 18446744073709551615 "), (" 2048 ", " x "), (")", "")]
        {
            assert_eq!(Stat::parse(LINE.replacen(from, to, 1).as_bytes()), None, "{to:?}");
        }
    }

    #[test]
    fn descriptors_are_counted_with_and_without_the_size_of_the_directory() {
        let count = || [open_descriptors().expect("a number"), listed_descriptors().expect("a list")];
        let before = count();
        let held: Vec<File> = (0..1_000).map(|_| File::open("/dev/null").expect("opens")).collect();
        let after = count();
        drop(held);
        // Other tests of this process open some too.
        for (before, after) in before.into_iter().zip(after) {
            assert!((900..1_100).contains(&(after - before)), "{before} {after}");
        }
    }

    #[test]
    fn this_process_has_started_and_uses_memory() {
        let process = Process::read().expect("/proc");
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs_f64();
        assert!((now - 3_600.0..=now + 1.0).contains(&process.start_unix_s), "{process:?}");
        assert!(process.virtual_bytes >= process.resident_bytes && process.resident_bytes > 100_000);
        assert!(process.threads >= 1 && process.open_fds >= 3 && process.max_fds >= process.open_fds);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(Process::read().expect("/proc").start_unix_s, process.start_unix_s);
    }
}
