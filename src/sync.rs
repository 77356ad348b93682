//! What the limiter takes from the world: its atomics, its lock, its ways to wait, and how many words it makes room for at
//! once.
//!
//! Nothing else is here, and the limiter's sources name nothing of `std::sync` themselves, so that they can be compiled
//! against another `sync`: under `tests/schedules`, against one whose every interleaving is tried.

pub use std::hint::spin_loop;
pub use std::sync::RwLock;
pub use std::sync::atomic::{AtomicU64, Ordering};
pub use std::thread::yield_now;

/// Words in a chunk of the array that grows: 2 MiB, a huge page on x86-64 and arm64.
pub const CHUNK: usize = 1 << 18;

/// Chunks that 32-bit slot numbers can name.
pub const CHUNKS: usize = 1 << 14;
