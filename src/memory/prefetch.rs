//! A hint to the processor to load a cache line.

/// Starts loading the cache line of `place`, which will be read soon. An ordinary read would do
/// that too, but the processor would have to complete it in order.
#[inline(always)]
pub fn prefetch<T>(place: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: A prefetch has no effect on memory, and the address comes from a reference.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast());
    }
    // No other architecture has a stable intrinsic.
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = place;
}
