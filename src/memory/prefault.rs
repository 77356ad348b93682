//! Prefaulting: backing memory with pages before it is used.
//!
//! The system provides a page when it is first written to, and clears it then. Clearing takes
//! longer than filling, and a single thread that fills a table would wait for it page by page.
//! Prefaulting does it on several processors at once.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::thread;

use rustix::mm::{Advice, madvise};

use super::HUGE_PAGE;

/// The smallest block that is worth several threads.
pub(super) const MIN_BYTES: usize = 16 << 20;

/// Maximum number of threads that prefault one block. More do not make it faster.
const MAX_THREADS: usize = 8;

thread_local! {
    /// Whether blocks that this thread allocates are prefaulted.
    static ENABLED: Cell<bool> = const { Cell::new(false) };
}

/// Prefaults the large blocks that `allocate` allocates, completely. Use it for memory whose size
/// is exact and that will all be used; otherwise use [`prefault_ahead`](super::prefault_ahead)
/// while it is filled.
pub fn with_prefault<T>(allocate: impl FnOnce() -> T) -> T {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            ENABLED.set(false);
        }
    }
    ENABLED.set(true);
    let _reset = Reset;
    allocate()
}

/// Whether a block of this size is to be prefaulted when it is allocated.
pub(super) fn is_wanted(size: usize) -> bool {
    size >= MIN_BYTES && ENABLED.get()
}

/// Prefaults `bytes`, which begin at a page boundary, with several threads. If the system does not
/// support it (Linux before 5.14), the memory is faulted in when it is written to.
pub(super) fn prefault(bytes: &mut [MaybeUninit<u8>]) {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let part = bytes.len().div_ceil(threads).next_multiple_of(HUGE_PAGE).max(HUGE_PAGE);
    thread::scope(|scope| {
        for part in bytes.chunks_mut(part) {
            let populate = move || {
                // SAFETY: The range is `part`, extended to the end of its last page.
                // MADV_POPULATE_WRITE changes no byte, whether it belongs to `part` or not.
                let _ = unsafe { madvise(part.as_mut_ptr().cast(), part.len(), Advice::LinuxPopulateWrite) };
            };
            // Without a thread, the part is faulted in when it is written to.
            let _ = thread::Builder::new().name("prefault".into()).spawn_scoped(scope, populate);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HugePages, HugeVec};

    #[test]
    fn prefaulted_block_is_usable_and_later_blocks_are_not_prefaulted() {
        let mut bytes: HugeVec<u8> = with_prefault(|| HugeVec::with_capacity_in(MIN_BYTES + 5, HugePages));
        assert!(!is_wanted(MIN_BYTES));
        bytes.resize(MIN_BYTES + 5, 7);
        assert!(bytes.iter().all(|byte| *byte == 7));
    }
}
