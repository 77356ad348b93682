//! Memory for what is read at random: in huge pages, where the system has them.
//!
//! A table of a million keys spans tens of thousands of ordinary pages, more than a processor remembers the places of: most
//! reads would wait for the page table before they wait for the key. Linux gives huge pages to who asks (its usual setting is
//! `madvise`); where it has none left, or the setting is `never`, the same memory comes in ordinary pages.
//!
//! The only module with `unsafe` code: an allocator cannot be written without, nor a processor be asked to fetch a line. A verify took 181 and 191 ns before it, 136 and
//! 151 ns after it and the layout of texts that came with it (`benches/verify.rs`, a hit by digest, 1 M keys, batch 64, in
//! turn); `server.huge_pages` tells the two apart. That [`HugeText`] does not look at its bytes for every text has not been
//! measured by itself. To be run under Miri:
//! `cargo miri test memory::`, which needs a nightly toolchain.

#![allow(unsafe_code, reason = "an allocator, and hints to processor and system; see the module's page")]

use std::alloc::Layout;
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{slice, thread};

use allocator_api2::alloc::{AllocError, Allocator, Global};

/// A huge page on x86-64, and on arm64 with pages of 4 KiB. Elsewhere asking is of no use, and does no harm.
pub const HUGE_PAGE: usize = 2 << 20;

/// Whether to ask at all: `server.huge_pages`.
static ENABLED: AtomicBool = AtomicBool::new(true);

/// Blocks from this size on are worth several threads.
const POPULATED: usize = 16 << 20;

/// Most threads that clear one block: more do not clear faster.
const MAX_THREADS: usize = 8;

thread_local! {
    /// Whether this thread's blocks are populated.
    static POPULATE: Cell<bool> = const { Cell::new(false) };
}

/// Has the large blocks that `allocate` allocates be in memory when it returns, all of them: for what will be filled to the end.
///
/// The system gives out memory when it is first written to, and clears it then. That takes longer than to fill it, and a thread
/// that fills a table would have to wait for it, page by page; here, all processors do it.
pub fn populated<T>(allocate: impl FnOnce() -> T) -> T {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            POPULATE.set(false);
        }
    }
    POPULATE.set(true);
    let _reset = Reset;
    allocate()
}

/// A vector in huge pages.
pub type HugeVec<T> = allocator_api2::vec::Vec<T, Huge>;

/// A text in huge pages, which only grows.
pub struct HugeText(HugeVec<u8>);

impl HugeText {
    /// An empty one, with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(HugeVec::with_capacity_in(capacity, Huge))
    }

    /// Appends `text`.
    pub fn push_str(&mut self, text: &str) {
        let (length, bytes) = (self.0.len(), text.as_bytes());
        self.0.reserve(bytes.len());
        // SAFETY: there is room for `bytes` after the text, which a reference cannot be to while this has it; they are
        // initialised before the length says so. (The vector's own method goes byte by byte.)
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.as_mut_ptr().add(length), bytes.len());
            self.0.set_len(length + bytes.len());
        }
    }

    /// Gives back the room that is not needed, where it is more than a quarter of the text: the text is copied for it.
    pub fn trim(&mut self) {
        trim(&mut self.0);
    }

    /// The text.
    #[inline]
    pub fn as_str(&self) -> &str {
        // SAFETY: the bytes are those of whole texts: `push_str` and `try_from` alone put any there.
        unsafe { str::from_utf8_unchecked(&self.0) }
    }
}

/// The text that `bytes` are.
impl TryFrom<HugeVec<u8>> for HugeText {
    type Error = std::str::Utf8Error;

    fn try_from(bytes: HugeVec<u8>) -> Result<Self, Self::Error> {
        str::from_utf8(&bytes)?;
        Ok(Self(bytes))
    }
}

/// Gives back the room of a vector that is not needed, where it is much: it is copied for it, and what was never written to
/// is not in memory anyway.
pub fn trim<T>(vector: &mut HugeVec<T>) {
    if vector.capacity() - vector.len() > vector.len() / 4 {
        vector.shrink_to_fit();
    }
}

/// Asks the system for huge pages, or no longer; what is allocated already stays as it is.
pub fn set_huge_pages(enabled: bool) {
    ENABLED.store(enabled, Ordering::Relaxed);
}

/// Allocates as the global allocator does, but what is at least a huge page long begins at one, and the system is told that
/// huge pages are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Huge;

// SAFETY: every block comes from `Global` and goes back to it with the layout that it was allocated with: `aligned` depends on the
// layout alone, and a caller gives the same one for both. `Global` keeps the trait's promises about validity and cloning, and
// the advice changes neither the address nor the contents of a block.
unsafe impl Allocator for Huge {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let block = Global.allocate(aligned(layout))?;
        if layout.size() >= HUGE_PAGE && ENABLED.load(Ordering::Relaxed) {
            advise(block);
        }
        if layout.size() >= POPULATED && POPULATE.get() {
            populate(block);
        }
        Ok(block)
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller passes a block of `allocate` and its layout; see above.
        unsafe { Global.deallocate(block, aligned(layout)) }
    }
}

/// The layout of a block: from a huge page on, it begins at one.
fn aligned(layout: Layout) -> Layout {
    match layout.size() >= HUGE_PAGE {
        true => layout.align_to(HUGE_PAGE).unwrap_or(layout),
        false => layout,
    }
}

/// Asks for huge pages for the whole ones of `block`. What the system says does not matter: without them it is only slower.
fn advise(block: NonNull<[u8]>) {
    let whole = block.len() / HUGE_PAGE * HUGE_PAGE;
    if cfg!(miri) || !block.cast::<u8>().as_ptr().addr().is_multiple_of(HUGE_PAGE) {
        return;
    }
    // SAFETY: the range lies within a block that was just allocated and belongs to the caller; MADV_HUGEPAGE changes how the
    // system backs it, not what is in it.
    let _advice =
        unsafe { rustix::mm::madvise(block.cast().as_ptr(), whole, rustix::mm::Advice::LinuxHugepage) };
}

/// Has the system back all of `block`, by several threads. Where it cannot (Linux before 5.14), it does when it is written to.
fn populate(block: NonNull<[u8]>) {
    if cfg!(miri) {
        return;
    }
    // SAFETY: the block was just allocated, is used by nobody else until this returns, and need not be initialised for this type.
    let bytes = unsafe { slice::from_raw_parts_mut(block.cast::<MaybeUninit<u8>>().as_ptr(), block.len()) };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let part = bytes.len().div_ceil(threads).next_multiple_of(HUGE_PAGE);
    thread::scope(|scope| {
        for part in bytes.chunks_mut(part) {
            let populate = move || {
                // SAFETY: the range is `part` up to the end of its last page. Populating changes no byte there, whoever's it is.
                let _advice = unsafe {
                    rustix::mm::madvise(
                        part.as_mut_ptr().cast(),
                        part.len(),
                        rustix::mm::Advice::LinuxPopulateWrite,
                    )
                };
            };
            let _without = thread::Builder::new().name("load".into()).spawn_scoped(scope, populate);
        }
    });
}

/// Has the processor fetch the cache line of `place`, which is about to be read. Without this a stage of a verify would have to
/// read a byte, and the processor to keep that read in its order: see [`verify`](crate::verify).
#[inline(always)]
pub fn prefetch<T>(place: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint that changes nothing, about memory that a reference says is there.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _elsewhere_not_at_all = place;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_block_begins_at_a_huge_page_and_grows() {
        let mut numbers: HugeVec<u64> = HugeVec::new_in(Huge);
        for number in 0..600_000_u64 {
            numbers.push(number);
        }
        assert!(numbers.as_ptr().addr().is_multiple_of(HUGE_PAGE));
        numbers.truncate(1_000);
        numbers.shrink_to_fit();
        assert!(numbers.iter().copied().eq(0..1_000));
    }

    #[test]
    fn a_text_grows_and_stays_one() {
        let mut text = HugeText::with_capacity(0);
        for _ in 0..300_000 {
            text.push_str("äöü-日本");
        }
        text.trim();
        assert_eq!(text.as_str(), "äöü-日本".repeat(300_000));
        let mut bytes: HugeVec<u8> = HugeVec::new_in(Huge);
        bytes.extend("日".bytes());
        assert_eq!(HugeText::try_from(bytes.clone()).expect("UTF-8").as_str(), "日");
        bytes.truncate(2);
        assert!(HugeText::try_from(bytes).is_err());
    }

    #[test]
    fn a_populated_block_is_an_ordinary_one() {
        let mut bytes: HugeVec<u8> = populated(|| HugeVec::with_capacity_in(POPULATED + 5, Huge));
        assert!(!POPULATE.get());
        bytes.resize(POPULATED + 5, 7);
        assert!(bytes.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_small_block_is_an_ordinary_one() {
        let layout = Layout::new::<[u64; 8]>();
        assert_eq!(aligned(layout), layout);
        let mut few: HugeVec<u64> = HugeVec::with_capacity_in(8, Huge);
        few.extend([1, 2, 3]);
        assert_eq!(*few, [1, 2, 3]);
    }
}
