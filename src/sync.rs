//! What the limiter takes from the world: its atomics, its lock, its ways to wait, and the memory of its words.
//!
//! Nothing else is here, and the limiter's sources name nothing of `std::sync` themselves, so that they can be compiled
//! against another `sync`: under `tests/schedules`, against one whose every interleaving is tried.

use crate::memory::{Huge, HugeVec};

pub use std::hint::spin_loop;
pub use std::sync::RwLock;
pub use std::sync::atomic::{AtomicU64, Ordering};
pub use std::thread::yield_now;

pub use crate::memory::prefetch;

/// Words in a chunk of the array that grows: 2 MiB, a huge page on x86-64 and arm64.
pub const CHUNK: usize = 1 << 18;

/// Chunks that 32-bit slot numbers can name.
pub const CHUNKS: usize = 1 << 14;

/// The words of a chunk.
pub type Chunk = HugeVec<AtomicU64>;

/// A chunk of words, in a huge page where there are any.
pub fn chunk(word: u64) -> Chunk {
    let mut words = HugeVec::with_capacity_in(CHUNK, Huge);
    words.extend((0..CHUNK).map(|_| AtomicU64::new(word)));
    words
}
