//! The primitives that the limiter is built on: its atomics, its lock, its ways to wait, and the
//! memory of its bucket words.
//!
//! The limiter takes these from here and not from `std`, so that it can be compiled against another
//! `sync`: `tests/schedules` provides one in which every interleaving of threads is explored.

use keyward_memory::{HugePages, HugeVec};

pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::RwLock;
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
pub(crate) use std::thread::yield_now;

pub(crate) use keyward_memory::prefetch;

/// Slots in a chunk of the bucket array: 2 MiB, the size of a huge page on x86-64 and arm64.
pub(crate) const CHUNK_SLOTS: usize = 1 << 18;

/// Chunks that 32-bit slot numbers can address.
pub(crate) const MAX_CHUNKS: usize = 1 << 14;

/// A chunk of the bucket array.
pub(crate) type Chunk = HugeVec<AtomicU64>;

/// A chunk whose words all have the value `word`, in a huge page if the system has one.
pub(crate) fn new_chunk(word: u64) -> Chunk {
    let mut words = HugeVec::with_capacity_in(CHUNK_SLOTS, HugePages);
    words.extend((0..CHUNK_SLOTS).map(|_| AtomicU64::new(word)));
    words
}
