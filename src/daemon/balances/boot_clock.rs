//! The identity of this boot and the offset of CLOCK_BOOTTIME, which make clock readings of
//! different processes comparable.

use std::io;
use std::path::Path;

use tracing::info;

/// The kernel's id for this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The environment variable that holds the boot id where /proc does not show it. keyward.service
/// sets it, because a service with `ProcSubset=pid` sees only processes there.
const BOOT_ID_VARIABLE: &str = "KEYWARD_BOOT_ID";

/// The offsets that a time namespace adds to the kernel's clocks, one per line.
const TIME_OFFSETS: &str = "/proc/self/timens_offsets";

/// The boot id, which tells whether CLOCK_BOOTTIME has counted on since balances were saved.
/// Without it, the calendar is used instead.
pub(super) fn boot_id() -> Option<[u8; 16]> {
    #[cfg(feature = "simulation")]
    if let Some(time) = keyward_state::simulation::time() {
        return Some(time.boot_id);
    }
    let text = std::fs::read_to_string(BOOT_ID).ok().or_else(|| std::env::var(BOOT_ID_VARIABLE).ok());
    let id = text.as_deref().and_then(parse_boot_id);
    if id.is_none() {
        info!("the kernel's boot id is not available; saved balances are aged by the calendar");
    }
    id
}

/// The offset of CLOCK_BOOTTIME in this process's time namespace, in nanoseconds. It does not
/// change while the process runs. `None` if /proc does not show it.
pub(super) fn boottime_offset() -> Option<i64> {
    #[cfg(feature = "simulation")]
    if keyward_state::simulation::time().is_some() {
        return Some(0);
    }
    let namespace = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}"));
    match std::fs::read_to_string(TIME_OFFSETS) {
        // The file shows the offsets of child processes, which may be in another namespace than
        // this one.
        Ok(offsets) if namespace("time").ok()? == namespace("time_for_children").ok()? => {
            parse_boottime_offset(&offsets)
        }
        Ok(_) => None,
        // Without the file, either the kernel has no time namespaces or /proc is not mounted.
        Err(error) if error.kind() == io::ErrorKind::NotFound && Path::new("/proc/self/ns").exists() => {
            Some(0)
        }
        Err(_) => None,
    }
}

/// Parses the line of CLOCK_BOOTTIME: a name (a number in older kernels), seconds and nanoseconds.
fn parse_boottime_offset(text: &str) -> Option<i64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|name| ["boottime", "7"].contains(name))?;
        let [seconds, nanoseconds]: [i64; 2] = [words.next()?.parse().ok()?, words.next()?.parse().ok()?];
        seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
    })
}

/// Parses a UUID with hyphens (/proc) or without (systemd).
fn parse_boot_id(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    const_hex::decode_to_array(digits).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boottime_offset_is_read_from_its_line() {
        let text = "monotonic           5         6\nboottime       -100         7\n";
        assert_eq!(parse_boottime_offset(text), Some(-99_999_999_993));
        assert_eq!(parse_boottime_offset("1 5 6\n7 0 0\n"), Some(0));
        for invalid in
            ["", "monotonic 1 2\n", "boottime 1\n", "boottime x 0\n", "boottime 9223372036854775807 0\n"]
        {
            assert_eq!(parse_boottime_offset(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn boot_id_is_parsed_with_and_without_hyphens() {
        let id =
            Some([0xab, 0xcd, 0xef, 1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 0x23, 0x45, 0x67, 0x89]);
        assert_eq!(parse_boot_id("abcdef01-2345-6789-abcd-ef0123456789\n"), id);
        assert_eq!(parse_boot_id("abcdef0123456789abcdef0123456789"), id);
        for invalid in ["", "abcdef0123456789abcdef012345678", "abcdef0123456789abcdef01234567890", "x"] {
            assert_eq!(parse_boot_id(invalid), None, "{invalid}");
        }
    }
}
