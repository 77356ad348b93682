//! Functions on vectors in huge pages: zeroed allocation, reserving, prefaulting and trimming.

use std::alloc::{Layout, handle_alloc_error};
use std::mem::MaybeUninit;
use std::slice;

use allocator_api2::alloc::Allocator as _;
use zerocopy::FromZeros;

use super::huge_pages::{HugePages, HugeVec};
use super::{HUGE_PAGE, prefault};

/// Bytes that [`prefault_ahead`] prefaults at a time.
pub(super) const PREFAULT_STEP: usize = 64 << 20;

/// A vector of `length` values whose bytes are all zero. If it is large, it takes neither time nor
/// memory until it is written to.
pub fn zeroed<T: FromZeros>(length: usize) -> HugeVec<T> {
    const { assert!(size_of::<T>() > 0) };
    let Ok(layout) = Layout::array::<T>(length) else {
        // This panics with the usual message about the capacity.
        return HugeVec::with_capacity_in(length, HugePages);
    };
    if length == 0 {
        return HugeVec::new_in(HugePages);
    }
    let Ok(block) = HugePages.allocate_zeroed(layout) else { handle_alloc_error(layout) };
    // SAFETY: The block is from this allocator and has the layout of `length` values. Zeros are a
    // valid value of `T`, because it is `FromZeros`.
    unsafe { HugeVec::from_raw_parts_in(block.cast().as_ptr(), length, length, HugePages) }
}

/// Reserves room for `length` more values, which takes no memory until it is filled. If the system
/// refuses so much, nothing is reserved and the vector grows as it is filled.
pub fn reserve_if_possible<T>(vector: &mut HugeVec<T>, length: usize) {
    // Without the reservation, the vector grows as it is filled.
    let _ = vector.try_reserve_exact(length);
}

/// Appends `bytes`.
pub fn push_bytes(vector: &mut HugeVec<u8>, bytes: &[u8]) {
    let length = vector.len();
    vector.reserve(bytes.len());
    // SAFETY: `reserve` has made room for the bytes after the existing ones. `bytes` cannot overlap
    // this room, because `vector` is borrowed mutably. The bytes are initialised before the length
    // includes them. (The vector's own method copies byte by byte.)
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), vector.as_mut_ptr().add(length), bytes.len());
        vector.set_len(length + bytes.len());
    }
}

/// Prefaults the next part of the unused capacity of a large vector. Returns the length up to which
/// it is prefaulted; for a small vector, its capacity.
pub fn prefault_ahead<T>(vector: &mut HugeVec<T>) -> usize {
    let (length, capacity) = (vector.len(), vector.capacity());
    if capacity.saturating_mul(size_of::<T>()) < prefault::MIN_BYTES || cfg!(miri) {
        return capacity;
    }
    let end = capacity.min(length + PREFAULT_STEP / size_of::<T>().max(1));
    let spare = &mut vector.spare_capacity_mut()[..end - length];
    let (start, bytes) = (spare.as_mut_ptr().cast::<MaybeUninit<u8>>(), size_of_val(spare));
    // SAFETY: This is the same range as `spare`, viewed as bytes that need no initialisation.
    let spare = unsafe { slice::from_raw_parts_mut(start, bytes) };
    // The page in which the range begins holds other values, or was prefaulted with the range
    // before.
    let first_page = start.addr().next_multiple_of(HUGE_PAGE) - start.addr();
    prefault::prefault(spare.get_mut(first_page..).unwrap_or_default());
    end
}

/// Releases the unused capacity of a vector if it is more than a quarter of its length, by copying
/// the vector. Capacity that was never written to takes no memory, so less is not worth a copy. If
/// there is no memory for the copy, the vector stays as it is.
pub fn trim<T>(vector: &mut HugeVec<T>) {
    let mut trimmed = HugeVec::new_in(HugePages);
    if vector.capacity() - vector.len() > vector.len() / 4 && trimmed.try_reserve_exact(vector.len()).is_ok()
    {
        trimmed.append(vector);
        *vector = trimmed;
    }
}

/// Bytes that a vector of this length and capacity allocates to hold `more` values; 0 if they fit.
pub fn growth<T>(length: usize, capacity: usize, more: usize) -> usize {
    let needed = length.saturating_add(more);
    if needed <= capacity { 0 } else { needed.max(capacity.saturating_mul(2)).saturating_mul(size_of::<T>()) }
}
