//! Memory limits: whether there is enough memory for the next step of a load.
//!
//! An allocation that fails ends the process: the standard library aborts it if the address space
//! is limited, and the kernel kills it if a control group is. Both would end the service. So a load
//! checks before each step, and is refused in time. Small allocations are covered by a margin that
//! every check leaves free, and by the reserve of [`memory`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use keyward_memory as memory;

/// Address space and memory that every check leaves free, for small allocations of all threads
/// until the next check.
const MARGIN: usize = 4 << 20;

/// Address space of a thread, apart from its allocations: the standard library's stack, and one for
/// signals.
pub(super) const THREAD_BYTES: usize = (2 << 20) + (256 << 10);

/// Address space that the C library's allocator reserves for a thread.
pub(super) const ARENA_BYTES: usize = keyward_engine::snapshot::MALLOC_HEAP_BYTES;

/// The mount point of control groups, and that of the memory controller of version 1.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
const CGROUP_V1_MEMORY_ROOT: &str = "/sys/fs/cgroup/memory";

/// Version 1 expresses "no limit" as a large number: values from this one on are no limits.
const UNLIMITED: u64 = 1 << 60;

/// The limit that leaves too little memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The limit of the process's address space, RLIMIT_AS.
    #[error(
        "the address space of the process is limited to {} MiB (RLIMIT_AS; LimitAS= in a unit, ulimit -v in a shell)",
        bytes >> 20
    )]
    AddressSpace {
        /// The size that RLIMIT_AS allows.
        bytes: u64,
    },
    /// Any other reason for a mapping to fail.
    #[error("the system has no more to give (vm.overcommit_memory, vm.max_map_count)")]
    System,
    /// The memory limit of a control group.
    #[error(
        "{} limits this process and its group to {} MiB (MemoryMax= in a unit, or the container's memory limit)",
        file.display(), bytes >> 20
    )]
    Cgroup {
        /// The file that has the limit.
        file: PathBuf,
        /// The size that the file allows.
        bytes: u64,
    },
}

impl From<MemoryError> for io::Error {
    fn from(error: MemoryError) -> Self {
        Self::new(io::ErrorKind::OutOfMemory, error)
    }
}

impl MemoryError {
    /// The limit that an [`OutOfMemory`](io::ErrorKind::OutOfMemory) error is about.
    pub(super) fn from_io(error: io::Error) -> Self {
        error.downcast().unwrap_or_else(|_| mapping_limit())
    }
}

/// The memory limits of this process.
pub(super) struct MemoryLimits {
    cgroups: Vec<Cgroup>,
}

impl MemoryLimits {
    /// Reads the limits that are in force now.
    pub(super) fn new() -> Self {
        memory::ensure_reserve();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self { cgroups: limited_cgroups(&own, Path::new(CGROUP_ROOT), Path::new(CGROUP_V1_MEMORY_ROOT)) }
    }

    /// Checks that there is memory for `bytes`, and address space for `address_space` more.
    ///
    /// # Errors
    /// The limit that is too low.
    pub(super) fn require(&self, bytes: usize, address_space: usize) -> Result<(), MemoryError> {
        self.require_mapped(bytes.saturating_add(address_space))?;
        self.cgroups.iter().try_for_each(|cgroup| cgroup.require(bytes as u64))
    }

    /// Checks that there is address space for `bytes`, with two system calls. Memory is not
    /// checked.
    ///
    /// # Errors
    /// The limit that is too low.
    pub(super) fn require_mapped(&self, bytes: usize) -> Result<(), MemoryError> {
        if memory::has_reserve() && memory::can_map(bytes.saturating_add(MARGIN)) {
            Ok(())
        } else {
            Err(mapping_limit())
        }
    }
}

fn mapping_limit() -> MemoryError {
    getrlimit(Resource::As).current.map_or(MemoryError::System, |bytes| MemoryError::AddressSpace { bytes })
}

/// A control group with a memory limit.
#[derive(Debug, PartialEq, Eq)]
struct Cgroup {
    limit: PathBuf,
    usage: PathBuf,
    stat: PathBuf,
    /// The parts of the usage that the kernel reclaims before it kills a process.
    caches: [&'static str; 2],
}

impl Cgroup {
    fn require(&self, bytes: u64) -> Result<(), MemoryError> {
        // A file that cannot be read is no limit here; the kernel enforces the real one.
        let number = |file: &Path| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
        let Some(limit) = number(&self.limit).filter(|limit| *limit < UNLIMITED) else { return Ok(()) };
        let Some(usage) = number(&self.usage) else { return Ok(()) };
        let stat = fs::read_to_string(&self.stat).unwrap_or_default();
        let lines = stat.lines().filter_map(|line| line.split_once(' '));
        let caches = lines.filter(|(name, _)| self.caches.contains(name));
        let caches: u64 = caches.filter_map(|(_, number)| number.parse::<u64>().ok()).sum();
        if usage.saturating_sub(caches).saturating_add(bytes).saturating_add(MARGIN as u64) <= limit {
            Ok(())
        } else {
            Err(MemoryError::Cgroup { file: self.limit.clone(), bytes: limit })
        }
    }
}

/// The control groups that limit a process, from its own up to the root. `own` is the content of
/// its `/proc/<pid>/cgroup`. In a container the paths in it may be those of the host, which do not
/// exist there; the container's root does.
fn limited_cgroups(own: &str, version_2: &Path, version_1: &Path) -> Vec<Cgroup> {
    let mut cgroups = Vec::new();
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
        cgroups.extend(above.filter(|directory| directory.join(names[0]).exists()).map(|directory| Cgroup {
            limit: directory.join(names[0]),
            usage: directory.join(names[1]),
            stat: directory.join("memory.stat"),
            caches,
        }));
    }
    cgroups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reload::ReloadError;

    fn write_cgroup(root: &Path, path: &str, files: &[(&str, &str)]) {
        let directory = root.join(path);
        fs::create_dir_all(&directory).expect("a directory");
        files.iter().for_each(|(name, text)| fs::write(directory.join(name), text).expect("a file"));
    }

    #[test]
    fn tightest_limit_of_all_groups_above_decides() {
        let root = tempfile::tempdir().expect("a directory");
        let (v2, v1) = (root.path().join("v2"), root.path().join("v1"));
        let stat = "anon 5\ninactive_file 10485760\nactive_file 10485760\n";
        write_cgroup(
            &v2,
            "a/b",
            &[("memory.max", "max\n"), ("memory.current", "104857600\n"), ("memory.stat", stat)],
        );
        write_cgroup(
            &v2,
            "a",
            &[("memory.max", "209715200\n"), ("memory.current", "125829120\n"), ("memory.stat", stat)],
        );
        let found = limited_cgroups("0::/a/b\n", &v2, &v1);
        assert_eq!(found.len(), 2, "the root has no limit: {found:?}");
        let require = |cgroups: &[Cgroup], mebibytes: u64| {
            cgroups
                .iter()
                .try_for_each(|cgroup| cgroup.require(mebibytes << 20))
                .map_err(|error| error.to_string())
        };
        // Of a limit of 200 MiB, 120 are used, 20 of those are caches, and a margin of 4 is left
        // free.
        assert_eq!(require(&found, 96), Ok(()));
        let error = require(&found, 97).expect_err("too much");
        assert!(error.contains("v2/a/memory.max limits") && error.contains("200 MiB"), "{error}");

        let limits = [("memory.limit_in_bytes", "104857600"), ("memory.usage_in_bytes", "52428800")];
        write_cgroup(&v1, "", &limits);
        let own = "5:cpu,cpuacct:/x\n4:memory:/docker/not/seen\n0::/elsewhere\n";
        let found = limited_cgroups(own, &v2, &v1);
        assert_eq!((found.len(), require(&found, 46)), (1, Ok(())));
        assert!(require(&found, 47).is_err());
        write_cgroup(&v1, "", &[("memory.limit_in_bytes", "9223372036854771712")]);
        assert_eq!(require(&found, 1 << 30), Ok(()), "no limit");
        assert!(limited_cgroups("", &v2, &v1).is_empty());
    }

    #[test]
    fn memory_error_survives_conversion_to_io_error() {
        let limit = MemoryError::AddressSpace { bytes: 64 << 20 };
        let error = ReloadError::from_io("keys".as_ref(), limit.clone().into());
        assert!(matches!(&error, ReloadError::Memory { limit: found, .. } if *found == limit));
        assert!(error.to_string().contains("limited to 64 MiB (RLIMIT_AS"), "{error}");
        assert!(matches!(
            ReloadError::from_io("k".as_ref(), io::ErrorKind::NotFound.into()),
            ReloadError::Io { .. }
        ));
    }

    #[test]
    fn requirement_beyond_any_system_is_refused() {
        let limits = MemoryLimits::new();
        assert_eq!(limits.require(1 << 10, 0), Ok(()));
        assert!(limits.require_mapped(1 << 60).is_err() && limits.require(usize::MAX, 1).is_err());
    }
}
