//! Memory for a load: whether there is enough for its next step.
//!
//! Code that allocates cannot go on without what it asks for: where the address space is limited, the process is aborted, and where a
//! control group is, it is killed, with the keys that it serves. So a load asks before each step, and is refused in time. What is small
//! is not asked for one by one: a margin has to be left, and [`memory`] has a reserve beside that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use crate::reload::ReloadError;
use keyward_memory as memory;

/// Address space and memory that has to be left by every step, for small allocations of all threads until the next one.
const MARGIN: usize = 4 << 20;

/// Address space that a thread takes beside what it allocates: the standard library's stack, and a second one for signals.
pub(super) const THREAD: usize = (2 << 20) + (256 << 10);

/// Address space in which the C library's allocator grows for a thread.
pub(super) const HEAP: usize = keyward_engine::snapshot::MALLOC_HEAP_BYTES;

/// Where control groups are, and the one with the memory of version 1.
const GROUPS: &str = "/sys/fs/cgroup";
const MEMORY_GROUPS: &str = "/sys/fs/cgroup/memory";

/// Limits of version 1 from here on are none: it has no word for that.
const UNLIMITED: u64 = 1 << 60;

/// What does not let the process have enough memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// RLIMIT_AS.
    #[error(
        "the address space of the process is limited to {} MiB (RLIMIT_AS; LimitAS= in a unit, ulimit -v in a shell)",
        bytes >> 20
    )]
    AddressSpace {
        /// The limit.
        bytes: u64,
    },
    /// Anything else that mappings can fail for.
    #[error("the system has no more to give (vm.overcommit_memory, vm.max_map_count)")]
    System,
    /// The limit of a control group.
    #[error(
        "{} limits this process and its group to {} MiB (MemoryMax= in a unit, or the container's memory limit)",
        file.display(), bytes >> 20
    )]
    Group {
        /// Where the limit is.
        file: PathBuf,
        /// The limit.
        bytes: u64,
    },
}

impl From<MemoryError> for io::Error {
    fn from(shortage: MemoryError) -> Self {
        Self::new(io::ErrorKind::OutOfMemory, shortage)
    }
}

impl ReloadError {
    /// That a file could not be read, or that there was not enough memory for it.
    pub(super) fn io(path: &Path, error: io::Error) -> Self {
        let path = path.to_path_buf();
        if error.kind() != io::ErrorKind::OutOfMemory {
            return Self::Io { path, error };
        }
        let shortage = error.downcast::<MemoryError>().unwrap_or_else(|_| mapping_limit());
        Self::Memory { path, shortage }
    }
}

/// The limits that this process is under.
pub(super) struct MemoryLimits {
    groups: Vec<Group>,
}

impl MemoryLimits {
    /// Looks them up.
    pub(super) fn new() -> Self {
        memory::ensure_reserve();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self { groups: groups(&own, Path::new(GROUPS), Path::new(MEMORY_GROUPS)) }
    }

    /// Whether there is room for so many bytes that will be written to, and for so many more of address space.
    ///
    /// # Errors
    /// What is in the way.
    pub(super) fn require(&self, bytes: usize, beside: usize) -> Result<(), MemoryError> {
        self.require_mapped(bytes.saturating_add(beside))?;
        self.groups.iter().try_for_each(|group| group.require(bytes as u64))
    }

    /// Whether there is address space for so many bytes, which takes two system calls. Nothing is said of memory.
    ///
    /// # Errors
    /// What is in the way.
    pub(super) fn require_mapped(&self, bytes: usize) -> Result<(), MemoryError> {
        match memory::has_reserve() && memory::can_map(bytes.saturating_add(MARGIN)) {
            true => Ok(()),
            false => Err(mapping_limit()),
        }
    }
}

fn mapping_limit() -> MemoryError {
    getrlimit(Resource::As).current.map_or(MemoryError::System, |bytes| MemoryError::AddressSpace { bytes })
}

/// A control group with a limit.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    limit: PathBuf,
    usage: PathBuf,
    stat: PathBuf,
    /// What of its usage the kernel takes back before it kills.
    caches: [&'static str; 2],
}

impl Group {
    fn require(&self, bytes: u64) -> Result<(), MemoryError> {
        // What cannot be read limits nothing: it is the kernel that does.
        let number = |file: &Path| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
        let Some(limit) = number(&self.limit).filter(|limit| *limit < UNLIMITED) else { return Ok(()) };
        let Some(usage) = number(&self.usage) else { return Ok(()) };
        let stat = fs::read_to_string(&self.stat).unwrap_or_default();
        let lines = stat.lines().filter_map(|line| line.split_once(' '));
        let caches = lines.filter(|(name, _)| self.caches.contains(name));
        let caches: u64 = caches.filter_map(|(_, number)| number.parse::<u64>().ok()).sum();
        match usage.saturating_sub(caches).saturating_add(bytes).saturating_add(MARGIN as u64) <= limit {
            true => Ok(()),
            false => Err(MemoryError::Group { file: self.limit.clone(), bytes: limit }),
        }
    }
}

/// The groups that limit a process, from its own up to the root: `own` is what /proc says of it. In a container the paths there can be those
/// of the host, which are not to be seen; its root is.
fn groups(own: &str, version_2: &Path, version_1: &Path) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, names, caches) = if controllers.is_empty() {
            (version_2, ["memory.max", "memory.current"], ["inactive_file", "active_file"])
        } else if controllers.split(',').any(|controller| controller == "memory") {
            let names = ["memory.limit_in_bytes", "memory.usage_in_bytes"];
            (version_1, names, ["total_inactive_file", "total_active_file"])
        } else {
            continue;
        };
        let above = Path::new(path.trim_start_matches('/')).ancestors().map(|path| root.join(path));
        groups.extend(above.filter(|directory| directory.join(names[0]).exists()).map(|directory| Group {
            limit: directory.join(names[0]),
            usage: directory.join(names[1]),
            stat: directory.join("memory.stat"),
            caches,
        }));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(root: &Path, path: &str, files: &[(&str, &str)]) {
        let directory = root.join(path);
        fs::create_dir_all(&directory).expect("a directory");
        files.iter().for_each(|(name, text)| fs::write(directory.join(name), text).expect("a file"));
    }

    #[test]
    fn tightest_limit_of_all_groups_above_decides() {
        let root = tempfile::tempdir().expect("a directory");
        let (v2, v1) = (root.path().join("v2"), root.path().join("v1"));
        let stat = "anon 5\ninactive_file 10485760\nactive_file 10485760\n";
        group(
            &v2,
            "a/b",
            &[("memory.max", "max\n"), ("memory.current", "104857600\n"), ("memory.stat", stat)],
        );
        group(
            &v2,
            "a",
            &[("memory.max", "209715200\n"), ("memory.current", "125829120\n"), ("memory.stat", stat)],
        );
        let found = groups("0::/a/b\n", &v2, &v1);
        assert_eq!(found.len(), 2, "the root has no limit: {found:?}");
        let require = |groups: &[Group], mebibytes: u64| {
            groups
                .iter()
                .try_for_each(|group| group.require(mebibytes << 20))
                .map_err(|error| error.to_string())
        };
        // 200 are the limit, 120 are used, 20 of them are caches, and 4 are left.
        assert_eq!(require(&found, 96), Ok(()));
        let error = require(&found, 97).expect_err("too much");
        assert!(error.contains("v2/a/memory.max limits") && error.contains("200 MiB"), "{error}");

        let limits = [("memory.limit_in_bytes", "104857600"), ("memory.usage_in_bytes", "52428800")];
        group(&v1, "", &limits);
        let own = "5:cpu,cpuacct:/x\n4:memory:/docker/not/seen\n0::/elsewhere\n";
        let found = groups(own, &v2, &v1);
        assert_eq!((found.len(), require(&found, 46)), (1, Ok(())));
        assert!(require(&found, 47).is_err());
        group(&v1, "", &[("memory.limit_in_bytes", "9223372036854771712")]);
        assert_eq!(require(&found, 1 << 30), Ok(()), "no limit");
        assert!(groups("", &v2, &v1).is_empty());
    }

    #[test]
    fn shortage_travels_in_an_error_of_the_system() {
        let shortage = MemoryError::AddressSpace { bytes: 64 << 20 };
        let failure = ReloadError::io("keys".as_ref(), shortage.clone().into());
        assert!(matches!(&failure, ReloadError::Memory { shortage: told, .. } if *told == shortage));
        assert!(failure.to_string().contains("limited to 64 MiB (RLIMIT_AS"), "{failure}");
        assert!(matches!(
            ReloadError::io("k".as_ref(), io::ErrorKind::NotFound.into()),
            ReloadError::Io { .. }
        ));
    }

    #[test]
    fn more_than_any_system_has_is_refused() {
        let room = MemoryLimits::new();
        assert_eq!(room.require(1 << 10, 0), Ok(()));
        assert!(room.require_mapped(1 << 60).is_err() && room.require(usize::MAX, 1).is_err());
    }
}
