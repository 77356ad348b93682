//! An allocator that maps large blocks at a huge page boundary, and asks the system for huge pages.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};

use allocator_api2::alloc::{AllocError, Allocator, Global};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::{HUGE_PAGE, prefault};

/// The largest ordinary page of any system. The length of a mapping is a multiple of it.
const LARGEST_PAGE: usize = 64 << 10;

/// Whether to ask for huge pages: `server.huge_pages`.
static ENABLED: AtomicBool = AtomicBool::new(true);

/// A vector in huge pages.
pub type HugeVec<T> = allocator_api2::vec::Vec<T, HugePages>;

/// Enables or disables huge pages for later allocations. Existing ones stay as they are.
pub fn set_huge_pages(enabled: bool) {
    ENABLED.store(enabled, Ordering::Relaxed);
}

/// An allocator for large tables. A block of at least [`HUGE_PAGE`] bytes is mapped, begins at a
/// huge page boundary, and is advised to use huge pages. Smaller blocks come from the global
/// allocator.
#[derive(Clone, Copy, Debug, Default)]
pub struct HugePages;

// SAFETY: A block is either a mapping of its own or comes from `Global`, and is returned to where
// it came from: `mapped_length` depends only on the layout, which the caller must pass unchanged. A
// block stays valid until then, whichever copy of this zero-sized allocator is used, and `madvise`
// changes neither the address nor the contents of a block.
unsafe impl Allocator for HugePages {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let Some(length) = mapped_length(layout) else { return Global.allocate(layout) };
        let block = NonNull::slice_from_raw_parts(map(length).ok_or(AllocError)?, layout.size());
        if ENABLED.load(Ordering::Relaxed) {
            advise(block);
        }
        if prefault::is_wanted(layout.size()) {
            // SAFETY: The block was just allocated and is not shared before this function returns.
            // `MaybeUninit<u8>` needs no initialisation.
            prefault::prefault(unsafe { slice::from_raw_parts_mut(block.cast().as_ptr(), block.len()) });
        }
        Ok(block)
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        match mapped_length(layout) {
            // A fresh mapping is zero.
            Some(_) => self.allocate(layout),
            None => Global.allocate_zeroed(layout),
        }
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        match mapped_length(layout) {
            // SAFETY: The caller passes a block from `allocate` and its layout, so the block is a
            // mapping of this length.
            Some(length) => _ = unsafe { munmap(block.as_ptr().cast(), length) },
            // SAFETY: The caller passes a block from `allocate` and its layout, so the block is
            // from `Global`.
            None => unsafe { Global.deallocate(block, layout) },
        }
    }
}

/// The length of the mapping for a block; `None` if the block comes from the global allocator.
pub(super) fn mapped_length(layout: Layout) -> Option<usize> {
    // Miri does not support these mappings.
    let is_large = layout.size() >= HUGE_PAGE && layout.align() <= HUGE_PAGE && !cfg!(miri);
    is_large.then(|| layout.size().next_multiple_of(LARGEST_PAGE))
}

/// Maps `length` bytes at a huge page boundary.
fn map(length: usize) -> Option<NonNull<u8>> {
    let whole = length.checked_add(HUGE_PAGE)?;
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: This creates a new mapping at an address that the system chooses.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), whole, protection, flags) }.ok()?;
    let before = start.addr().next_multiple_of(HUGE_PAGE) - start.addr();
    for (offset, surplus) in [(0, before), (before + length, HUGE_PAGE - before)] {
        if surplus > 0 {
            // SAFETY: The range lies within the new mapping, outside of the block, and nothing
            // refers to it. A failure only leaves unused address space mapped.
            let _ = unsafe { munmap(start.byte_add(offset), surplus) };
        }
    }
    // SAFETY: `before` is less than the length of the mapping.
    NonNull::new(unsafe { start.byte_add(before) }.cast())
}

/// Asks for huge pages for the whole huge pages in `block`. A failure is ignored: the block works
/// without them, only more slowly.
fn advise(block: NonNull<[u8]>) {
    let length = block.len() / HUGE_PAGE * HUGE_PAGE;
    // SAFETY: The range lies within a block that was just mapped. MADV_HUGEPAGE changes how the
    // system backs it, not its contents.
    let _ = unsafe { madvise(block.cast().as_ptr(), length, Advice::LinuxHugepage) };
}
