//! Memory for what is read at random: in huge pages, where the system has them.
//!
//! A table of a million keys spans tens of thousands of ordinary pages, more than a processor remembers the places of: most
//! reads would wait for the page table before they wait for the key. Linux gives huge pages to who asks (its usual setting is
//! `madvise`); where it has none left, or the setting is `never`, the same memory comes in ordinary pages.
//!
//! Large blocks are mapped, each by itself: the system's memory is clear already, so that a table of zeros ([`zeroed`]) is not written to
//! be one, and comes into memory as it is filled, by whoever fills it. What is freed goes back at once.
//!
//! The only module with `unsafe` code: an allocator cannot be written without, nor a processor be asked to fetch a line. A verify took 181 and 191 ns before it, 136 and
//! 151 ns after it and the layout of texts that came with it (`benches/verify.rs`, a hit by digest, 1 M keys, batch 64, in
//! turn); `server.huge_pages` tells the two apart. That [`HugeText`] does not look at its bytes for every text has not been
//! measured by itself. To be run under Miri:
//! `cargo miri test memory::`, which needs a nightly toolchain.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the modules' pages are for readers of the source, links included"
)]
#![allow(unsafe_code, reason = "an allocator, and hints to processor and system; see the module's page")]

use std::alloc::{GlobalAlloc, Layout, System, handle_alloc_error};
use std::cell::Cell;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::{slice, thread};

use allocator_api2::alloc::{AllocError, Allocator, Global};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use zerocopy::FromZeros;

/// A huge page on x86-64, and on arm64 with pages of 4 KiB. Elsewhere asking is of no use, and does no harm.
pub const HUGE_PAGE: usize = 2 << 20;

/// The largest ordinary page of any system: blocks are mapped in whole ones.
const LARGEST_PAGE: usize = 64 << 10;

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

/// Has the large blocks that `allocate` allocates be in memory when it returns, all of them: for what will be filled to the end, that
/// is, when there is no doubt any more how much it takes. Where there is, [`populate_some`] goes ahead of the filling.
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

/// Bytes that [`populate_some`] has in memory before they are filled.
const STEP: usize = 64 << 20;

/// Makes room for `length` more values, which takes no memory before it is filled. Where the system does not let anybody have so much,
/// there is none, and the vector grows as it is filled.
pub fn make_room<T>(vector: &mut HugeVec<T>, length: usize) {
    let _as_it_is_filled = vector.try_reserve_exact(length);
}

/// Has some of the room of a large vector be in memory, as [`populated`] does, and returns the length up to which it is.
pub fn populate_some<T>(vector: &mut HugeVec<T>) -> usize {
    let (length, capacity) = (vector.len(), vector.capacity());
    if capacity.saturating_mul(size_of::<T>()) < POPULATED || cfg!(miri) {
        return capacity;
    }
    let ready = capacity.min(length + STEP / size_of::<T>().max(1));
    let room = &mut vector.spare_capacity_mut()[..ready - length];
    let (start, bytes) = (room.as_mut_ptr().cast::<MaybeUninit<u8>>(), size_of_val(room));
    // SAFETY: the same range, which any bytes may be in.
    let room = unsafe { slice::from_raw_parts_mut(start, bytes) };
    // The page that the first of it lies in is another's, or was populated with what is before.
    let before = start.addr().next_multiple_of(HUGE_PAGE) - start.addr();
    populate(room.get_mut(before..).unwrap_or_default());
    ready
}

/// A vector in huge pages.
pub type HugeVec<T> = allocator_api2::vec::Vec<T, Huge>;

/// A vector of `length` values whose bytes are all 0. However many there are, they take no time, and no memory before they are written to.
pub fn zeroed<T: FromZeros>(length: usize) -> HugeVec<T> {
    const { assert!(size_of::<T>() > 0) };
    let Ok(layout) = Layout::array::<T>(length) else {
        // It says that this is too much.
        return HugeVec::with_capacity_in(length, Huge);
    };
    if length == 0 {
        return HugeVec::new_in(Huge);
    }
    let Ok(block) = Huge.allocate_zeroed(layout) else { handle_alloc_error(layout) };
    // SAFETY: a block of this allocator with the layout of `length` values, each of which zeros are one of.
    unsafe { HugeVec::from_raw_parts_in(block.cast().as_ptr(), length, length, Huge) }
}

/// A text in huge pages, which only grows.
pub struct HugeText(HugeVec<u8>);

impl HugeText {
    /// An empty one, with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(HugeVec::with_capacity_in(capacity, Huge))
    }

    /// As [`make_room`].
    pub fn make_room(&mut self, bytes: usize) {
        make_room(&mut self.0, bytes);
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

    /// As [`growth`].
    pub fn growth(&self, bytes: usize) -> usize {
        growth::<u8>(self.0.len(), self.0.capacity(), bytes)
    }

    /// The text.
    #[inline]
    pub fn as_str(&self) -> &str {
        // SAFETY: the bytes are those of whole texts: `push_str` and `TextSpace` alone put any there.
        unsafe { str::from_utf8_unchecked(&self.0) }
    }
}

/// A text of a length that is known, which several threads write: NULs at first.
pub struct TextSpace {
    bytes: HugeVec<u8>,
    is_handed_out: bool,
}

/// A part of it that has not been written to: NULs.
pub struct TextPlace<'t>(&'t mut [u8]);

impl TextSpace {
    /// So many NULs.
    pub fn new(length: usize) -> Self {
        Self { bytes: zeroed(length), is_handed_out: false }
    }

    /// All of it, once; after that nothing.
    pub fn place(&mut self) -> TextPlace<'_> {
        match std::mem::replace(&mut self.is_handed_out, true) {
            false => TextPlace(&mut self.bytes),
            true => TextPlace(&mut []),
        }
    }

    /// What was written, and NULs where nothing was.
    pub fn into_text(self) -> HugeText {
        // What `as_str` relies on: a place is handed out once, and is written to from its beginning on, by `write` alone. So every
        // byte is one of a whole text or a NUL, and both are UTF-8.
        HugeText(self.bytes)
    }
}

impl<'t> TextPlace<'t> {
    /// Takes a place of so many bytes from its beginning; `None` where there are fewer.
    pub fn take(&mut self, bytes: usize) -> Option<TextPlace<'t>> {
        self.0.split_off_mut(..bytes).map(TextPlace)
    }

    /// Writes a text to its beginning; `None` where it has no room.
    #[inline]
    pub fn write(&mut self, text: &str) -> Option<()> {
        self.0.split_off_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(())
    }

    /// Whether all of it has been written to.
    pub fn is_full(&self) -> bool {
        self.0.is_empty()
    }
}

/// Gives back the room of a vector that is not needed, where it is much: it is copied for it, and what was never written to
/// is not in memory anyway. Where there is no memory for the copy, it stays as it is.
pub fn trim<T>(vector: &mut HugeVec<T>) {
    let mut trimmed = HugeVec::new_in(Huge);
    if vector.capacity() - vector.len() > vector.len() / 4 && trimmed.try_reserve_exact(vector.len()).is_ok()
    {
        trimmed.append(vector);
        *vector = trimmed;
    }
}

/// Bytes that a vector asks for before it has `more` values; 0: it has room for them.
pub fn growth<T>(length: usize, capacity: usize, more: usize) -> usize {
    let needed = length.saturating_add(more);
    if needed <= capacity { 0 } else { needed.max(capacity.saturating_mul(2)).saturating_mul(size_of::<T>()) }
}

/// Asks the system for huge pages, or no longer; what is allocated already stays as it is.
pub fn set_huge_pages(enabled: bool) {
    ENABLED.store(enabled, Ordering::Relaxed);
}

/// Allocates as the global allocator does, but what is at least a huge page long is mapped, begins at one, and the system is told that
/// huge pages are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Huge;

// SAFETY: a block is a mapping of its own or comes from `Global`, and goes back to where it is from: `mapped` depends on the layout
// alone, and a caller gives the same one for both. Either stays valid until then, whichever copy of the allocator is asked, and
// the advice changes neither the address nor the contents of a block.
unsafe impl Allocator for Huge {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let Some(length) = mapped(layout) else { return Global.allocate(layout) };
        let block = NonNull::slice_from_raw_parts(map(length).ok_or(AllocError)?, layout.size());
        if ENABLED.load(Ordering::Relaxed) {
            advise(block);
        }
        if layout.size() >= POPULATED && POPULATE.get() {
            // SAFETY: the block was just allocated, is used by nobody else until this returns, and need not be initialised for
            // this type.
            populate(unsafe { slice::from_raw_parts_mut(block.cast().as_ptr(), block.len()) });
        }
        Ok(block)
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        match mapped(layout) {
            // What is mapped is clear.
            Some(_) => self.allocate(layout),
            None => Global.allocate_zeroed(layout),
        }
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        match mapped(layout) {
            // SAFETY: the caller passes a block of `allocate` and its layout, so that it was mapped at this length.
            Some(length) => _ = unsafe { munmap(block.as_ptr().cast(), length) },
            // SAFETY: the same; it came from there.
            None => unsafe { Global.deallocate(block, layout) },
        }
    }
}

/// How much is mapped for a block; `None`: nothing, it is the global allocator's.
fn mapped(layout: Layout) -> Option<usize> {
    // Miri knows no mappings.
    let is_large = layout.size() >= HUGE_PAGE && layout.align() <= HUGE_PAGE && !cfg!(miri);
    is_large.then(|| layout.size().next_multiple_of(LARGEST_PAGE))
}

/// Maps so many bytes, from the beginning of a huge page on.
fn map(length: usize) -> Option<NonNull<u8>> {
    let all = length.checked_add(HUGE_PAGE)?;
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new mapping, wherever the system has room for it.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), all, protection, flags) }.ok()?;
    let before = start.addr().next_multiple_of(HUGE_PAGE) - start.addr();
    for (at, surplus) in [(0, before), (before + length, HUGE_PAGE - before)] {
        if surplus > 0 {
            // SAFETY: what lies before and after the block within the new mapping, which nobody else knows of.
            let _unmapped = unsafe { munmap(start.byte_add(at), surplus) };
        }
    }
    // SAFETY: within the mapping.
    NonNull::new(unsafe { start.byte_add(before) }.cast())
}

/// Asks for huge pages for the whole ones of `block`. What the system says does not matter: without them it is only slower.
fn advise(block: NonNull<[u8]>) {
    let whole = block.len() / HUGE_PAGE * HUGE_PAGE;
    // SAFETY: the range lies within a block that was just mapped and belongs to the caller; MADV_HUGEPAGE changes how the
    // system backs it, not what is in it.
    let _advice = unsafe { madvise(block.cast().as_ptr(), whole, Advice::LinuxHugepage) };
}

/// Has the system back all of `bytes`, which begin at a page, by several threads. Where it cannot (Linux before 5.14), it does when
/// they are written to.
fn populate(bytes: &mut [MaybeUninit<u8>]) {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let part = bytes.len().div_ceil(threads).next_multiple_of(HUGE_PAGE).max(HUGE_PAGE);
    thread::scope(|scope| {
        for part in bytes.chunks_mut(part) {
            let populate = move || {
                // SAFETY: the range is `part` up to the end of its last page. Populating changes no byte there, whoever's it is.
                let _advice =
                    unsafe { madvise(part.as_mut_ptr().cast(), part.len(), Advice::LinuxPopulateWrite) };
            };
            let _without = thread::Builder::new().name("load".into()).spawn_scoped(scope, populate);
        }
    });
}

/// Has the processor fetch the cache line of `place`, which is about to be read. Without this a stage of a verify would have to
/// read a byte, and the processor to keep that read in its order: see the pipeline of `keyward_engine::verify`.
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

/// Whether this process could map so many bytes more now: by its limit of address space, and by what the system promises.
///
/// Most code that allocates cannot go on without what it asks for, and the process is aborted. So a load asks this first, for as much as
/// its next step can take.
pub fn has_room(bytes: usize) -> bool {
    if bytes == 0 || cfg!(miri) {
        return true;
    }
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new mapping, wherever the system has room for it.
    let Ok(start) = (unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags) }) else {
        return false;
    };
    // SAFETY: the mapping that was just made, which nothing else knows of.
    let _unmapped = unsafe { munmap(start, bytes) };
    true
}

/// Bytes of address space that are set aside for small allocations when there is no other left: more than a load makes of them
/// between two looks at [`has_room`].
const RESERVED: usize = 8 << 20;

/// Where the reserve of this process is.
static RESERVE: Reserve = Reserve::new();

/// Address space that is set aside.
struct Reserve {
    /// Null: it was given up, or has not been set aside.
    start: AtomicPtr<c_void>,
}

impl Reserve {
    const fn new() -> Self {
        Self { start: AtomicPtr::new(std::ptr::null_mut()) }
    }

    fn is_there(&self) -> bool {
        !self.start.load(Ordering::Acquire).is_null()
    }

    fn set_aside(&self) -> bool {
        if self.is_there() {
            return true;
        }
        let (none, flags) = (std::ptr::null_mut(), MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping, wherever the system has room for it, that cannot even be read.
        let start = unsafe { mmap_anonymous(none, RESERVED, ProtFlags::empty(), flags) };
        let Ok(start) = start else { return false };
        if self.start.compare_exchange(none, start, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: the mapping that was just made. Another thread was faster, and its own is the reserve.
            let _unmapped = unsafe { munmap(start, RESERVED) };
        }
        true
    }

    fn give_up(&self) {
        let start = self.start.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if !start.is_null() {
            // SAFETY: the mapping of `set_aside`, of that length. The swap gives it to one thread only.
            let _unmapped = unsafe { munmap(start, RESERVED) };
        }
    }
}

/// Sets the reserve aside, unless it is, and says whether it is now. It takes address space and no memory.
pub fn keep_reserve() -> bool {
    cfg!(miri) || RESERVE.set_aside()
}

/// Whether the reserve is there: where not, it was needed, and what can be done without should not be begun.
pub fn has_reserve() -> bool {
    cfg!(miri) || RESERVE.is_there()
}

/// The standard allocator, which gives up the [reserve](keep_reserve) before it fails: a process that runs out of address space has
/// the time to notice, and to give up the load that has taken it.
struct Reserving;

#[global_allocator]
static GLOBAL: Reserving = Reserving;

#[cold]
fn again(allocate: impl FnOnce() -> *mut u8) -> *mut u8 {
    RESERVE.give_up();
    allocate()
}

// SAFETY: every method is that of `System`, which is called once more if it has failed. A block comes from `System` and goes back to
// it; a failure of `realloc` leaves the block as it is. Nothing here unwinds: giving up the reserve is one system call.
unsafe impl GlobalAlloc for Reserving {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises a layout whose size is not zero, which is all that `System` requires.
        let allocate = || unsafe { System.alloc(layout) };
        let block = allocate();
        if block.is_null() { again(allocate) } else { block }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises a layout whose size is not zero, which is all that `System` requires.
        let allocate = || unsafe { System.alloc_zeroed(layout) };
        let block = allocate();
        if block.is_null() { again(allocate) } else { block }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises a block of this allocator, which is one of `System`, its layout, and a size that `System`
        // accepts. The second call is made only if the first has failed and left the block as it was.
        let allocate = || unsafe { System.realloc(block, layout, size) };
        let grown = allocate();
        if grown.is_null() { again(allocate) } else { grown }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller promises a block of this allocator, which is one of `System`, and its layout.
        unsafe { System.dealloc(block, layout) }
    }
}

#[cfg(test)]
mod tests;
