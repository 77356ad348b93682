//! The allocator of the process: the system's, which releases the [reserve](crate::ensure_reserve) before it
//! fails, and on request overwrites memory before it frees it.
//!
//! Libraries that read requests keep them in buffers of their own, and free these without wiping them. A
//! process whose requests contain keys asks for [`wipe_freed_memory`], so that no key remains in memory
//! that nothing owns. Others pay for one load and one branch each time they free memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::reserve::release_reserve;

#[global_allocator]
static GLOBAL: Allocator = Allocator;

static WIPES: AtomicBool = AtomicBool::new(false);

/// From now on, freed memory is overwritten. It cannot be undone.
pub fn wipe_freed_memory() {
    WIPES.store(true, Ordering::Relaxed);
}

struct Allocator;

/// The result of `allocate`, which is called again if it fails.
fn with_reserve(allocate: impl Fn() -> *mut u8) -> *mut u8 {
    let block = allocate();
    if !block.is_null() {
        return block;
    }
    release_reserve();
    allocate()
}

// SAFETY: Blocks come from `System` and are returned to it with their layouts, and a failed `realloc` leaves
// its block unchanged. Only blocks that their owner gives up are written to. No method unwinds: releasing
// the reserve is one system call.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: The caller guarantees that the size of the layout is not zero, as `System` requires.
        with_reserve(|| unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: As in `alloc`.
        with_reserve(|| unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !WIPES.load(Ordering::Relaxed) {
            // SAFETY: The caller passes a block from this allocator and so from `System`, its layout, and a
            // size that `System` accepts. The second call happens only if the first left the block
            // unchanged.
            return with_reserve(|| unsafe { System.realloc(block, layout, size) });
        }
        // The system would free the old block, or its end, with its contents.
        // SAFETY: The caller guarantees that the size is not zero, and does not overflow with this alignment.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !new.is_null() {
            // SAFETY: Both blocks have this many bytes, and nothing else refers to the new one.
            unsafe { ptr::copy_nonoverlapping(block, new, layout.size().min(size)) };
            // SAFETY: The caller gives the old block up.
            unsafe { self.dealloc(block, layout) };
        }
        new
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if WIPES.load(Ordering::Relaxed) {
            // SAFETY: The caller has allocated `layout.size()` bytes there, and gives them up.
            unsafe { wipe(block, layout.size()) };
        }
        // SAFETY: The caller passes a block from this allocator and so from `System`, and its layout.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Overwrites memory that is about to be freed.
///
/// # Safety
/// `block` has `size` bytes that may be written.
unsafe fn wipe(block: *mut u8, size: usize) {
    // SAFETY: The caller's promise.
    unsafe { ptr::write_bytes(block, 0, size) };
    // The compiler leaves out writes to memory that is freed afterwards, unless something may read it.
    #[cfg(not(miri))]
    // SAFETY: It is a comment. The compiler has to assume that it reads the block.
    unsafe {
        std::arch::asm!("/* {} */", in(reg) block, options(nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wiped_memory_is_zero() {
        let mut bytes = [1_u8; 100];
        // SAFETY: they are this function's.
        unsafe { wipe(bytes.as_mut_ptr(), 60) };
        assert!(bytes[..60].iter().all(|byte| *byte == 0) && bytes[60..].iter().all(|byte| *byte == 1));
    }

    #[test]
    fn blocks_keep_their_contents_while_they_grow_and_shrink() {
        for wipes in [false, true] {
            if wipes {
                wipe_freed_memory();
            }
            let layout = Layout::array::<u8>(16).expect("a layout");
            // SAFETY: each block is used with the layout that it was allocated with, and freed once.
            unsafe {
                let block = Allocator.alloc(layout);
                block.write_bytes(7, 16);
                let block = Allocator.realloc(block, layout, 5_000);
                assert!((0..16).all(|index| *block.add(index) == 7));
                let block = Allocator.realloc(block, Layout::array::<u8>(5_000).expect("a layout"), 8);
                assert!((0..8).all(|index| *block.add(index) == 7));
                Allocator.dealloc(block, Layout::array::<u8>(8).expect("a layout"));
                let zeroed = Allocator.alloc_zeroed(layout);
                assert!((0..16).all(|index| *zeroed.add(index) == 0));
                Allocator.dealloc(zeroed, layout);
            }
        }
    }
}
