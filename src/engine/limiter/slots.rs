//! The array of bucket words. It grows but never moves, so a charge needs neither a lock nor a
//! copy.
//!
//! It grows by chunks of 2 MiB, the size of a huge page on x86-64 and arm64. A chunk is allocated
//! once and never freed. A lookup takes two dependent loads; the first reads the directory of
//! chunks, which stays in the cache of a busy worker.

use std::sync::OnceLock;

use crate::limiter::rule::Rule;
use crate::limiter::word::Word;
use crate::sync::{AtomicU64, CHUNK_SLOTS, Chunk, MAX_CHUNKS, Ordering, new_chunk};

/// The balance of a limit of a published snapshot: its slot, and the rule that its word is read
/// with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketRef {
    /// Slot number.
    pub slot: u32,
    /// Rule of the limit.
    pub rule: Rule,
}

/// A limit that has only this bucket.
impl AsRef<[Self]> for BucketRef {
    fn as_ref(&self) -> &[Self] {
        std::slice::from_ref(self)
    }
}

/// The words of all buckets, by slot number.
pub(super) struct Slots {
    chunks: Box<[OnceLock<Chunk>]>,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self { chunks: (0..MAX_CHUNKS).map(|_| OnceLock::new()).collect() }
    }

    /// Allocates the chunk of `slot` if it does not exist yet. Only the slot allocator calls this,
    /// before it assigns the slot.
    pub(super) fn ensure(&self, slot: u32) {
        if let Some(chunk) = self.chunks.get(slot as usize / CHUNK_SLOTS) {
            chunk.get_or_init(|| new_chunk(Word::UNSPENT.bits()));
        }
    }

    /// The word of `slot`; `None` if its chunk does not exist.
    #[inline]
    pub(super) fn get(&self, slot: u32) -> Option<&AtomicU64> {
        self.chunks.get(slot as usize / CHUNK_SLOTS)?.get()?.get(slot as usize % CHUNK_SLOTS)
    }

    #[inline]
    pub(super) fn load(&self, slot: u32) -> Word {
        // A slot that was never assigned reads as superseded: nothing is admitted, and no loop waits
        // for it to change.
        let missing = Word::UNSPENT.superseded();
        self.get(slot).map_or(missing, |word| Word::from_bits(word.load(Ordering::Acquire)))
    }

    pub(super) fn store(&self, slot: u32, state: Word) {
        if let Some(word) = self.get(slot) {
            word.store(state.bits(), Ordering::Release);
        }
    }

    /// See [`compare_exchange`].
    #[inline]
    pub(super) fn compare_exchange(&self, slot: u32, current: Word, next: Word) -> bool {
        self.get(slot).is_some_and(|word| compare_exchange(word, current, next))
    }
}

/// Replaces `current` with `next`. Returns `false` if the word has changed, and sometimes for no
/// reason.
#[inline]
pub(super) fn compare_exchange(word: &AtomicU64, current: Word, next: Word) -> bool {
    word.compare_exchange_weak(current.bits(), next.bits(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
}
