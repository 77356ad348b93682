//! A reserve of address space, so that a process that runs out of it can abandon a load instead of
//! aborting.
//!
//! Most code cannot continue without the memory that it asks for: a failed allocation aborts the
//! process. A load therefore asks [`can_map`] before each step, for as much as the step can take.
//! Small allocations in between are covered by the reserve: the global allocator releases it before
//! it fails, and the load notices that the reserve is gone.

use std::ffi::c_void;
use std::sync::atomic::{AtomicPtr, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Size of the reserve: more than the small allocations of a load between two calls of [`can_map`].
const RESERVE_BYTES: usize = 8 << 20;

/// The reserve of this process.
static RESERVE: Reserve = Reserve::new();

/// Whether `bytes` more could be mapped now, within the limit of address space and the system's
/// commit limit.
pub fn can_map(bytes: usize) -> bool {
    if bytes == 0 || cfg!(miri) {
        return true;
    }
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: This creates a new mapping at an address that the system chooses.
    let Ok(start) = (unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags) }) else {
        return false;
    };
    // SAFETY: The mapping was just created, and nothing refers to it.
    let _ = unsafe { munmap(start, bytes) };
    true
}

/// Maps the reserve unless it is mapped, and returns whether it is mapped now. It takes address
/// space but no memory.
pub fn ensure_reserve() -> bool {
    cfg!(miri) || RESERVE.ensure()
}

/// Whether the reserve is mapped. If it is not, it was needed, and no optional work should be
/// started.
pub fn has_reserve() -> bool {
    cfg!(miri) || RESERVE.is_mapped()
}

/// Address space that is mapped but not accessible.
struct Reserve {
    /// Null if it was released, or has not been mapped.
    start: AtomicPtr<c_void>,
}

impl Reserve {
    const fn new() -> Self {
        Self { start: AtomicPtr::new(std::ptr::null_mut()) }
    }

    fn is_mapped(&self) -> bool {
        !self.start.load(Ordering::Acquire).is_null()
    }

    fn ensure(&self) -> bool {
        if self.is_mapped() {
            return true;
        }
        let (none, flags) = (std::ptr::null_mut(), MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: This creates a new, inaccessible mapping at an address that the system chooses.
        let start = unsafe { mmap_anonymous(none, RESERVE_BYTES, ProtFlags::empty(), flags) };
        let Ok(start) = start else { return false };
        if self.start.compare_exchange(none, start, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // Another thread was faster, and its mapping is the reserve.
            // SAFETY: The mapping was just created, and nothing refers to it.
            let _ = unsafe { munmap(start, RESERVE_BYTES) };
        }
        true
    }

    fn release(&self) {
        let start = self.start.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if !start.is_null() {
            // SAFETY: `ensure` created the mapping with this length, and the swap gives it to one
            // thread only.
            let _ = unsafe { munmap(start, RESERVE_BYTES) };
        }
    }
}

/// Releases the reserve, so that a small allocation succeeds.
#[cold]
pub(crate) fn release_reserve() {
    RESERVE.release();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "Miri does not support these mappings")]
    fn only_what_the_system_would_map_can_be_mapped() {
        assert!(can_map(0) && can_map(2 << 20) && can_map((2 << 20) + 1));
        assert!(!can_map(1 << 60) && !can_map(usize::MAX));
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri does not support these mappings")]
    fn released_reserve_can_be_mapped_again() {
        let reserve = Reserve::new();
        assert!(!reserve.is_mapped() && reserve.ensure() && reserve.is_mapped());
        assert!(reserve.ensure(), "it is already mapped");
        reserve.release();
        assert!(!reserve.is_mapped());
        reserve.release();
        assert!(reserve.ensure() && reserve.is_mapped());
        reserve.release();
    }
}
