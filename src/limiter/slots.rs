//! Where the words live: an array that grows and never moves, so that charging needs no lock and no copy.
//!
//! It grows by chunks of 2 MiB (a huge page on x86-64 and arm64). A chunk is written once and stays; a look-up is
//! two dependent loads, the first of which (the directory) is in the cache of any busy worker.

use std::sync::OnceLock;

use crate::limiter::word::Word;
use crate::sync::{AtomicU64, CHUNK, CHUNKS, Chunk, Ordering, chunk};

/// All buckets' words, by slot number.
pub(super) struct Slots {
    chunks: Box<[OnceLock<Chunk>]>,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self { chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect() }
    }

    /// Makes sure that `slot` exists. Only the ledger calls this, before it hands the slot out.
    pub(super) fn ensure(&self, slot: u32) {
        if let Some(place) = self.chunks.get(slot as usize / CHUNK) {
            place.get_or_init(|| chunk(Word::FULL.bits()));
        }
    }

    /// The word of a slot that was handed out.
    #[inline]
    pub(super) fn get(&self, slot: u32) -> Option<&AtomicU64> {
        self.chunks.get(slot as usize / CHUNK)?.get()?.get(slot as usize % CHUNK)
    }

    #[inline]
    pub(super) fn load(&self, slot: u32) -> Word {
        // A slot that was never handed out reads as superseded: whoever asks has to look again, and gains nothing.
        let missing = Word::FULL.superseded();
        self.get(slot).map_or(missing, |word| Word::from_bits(word.load(Ordering::Acquire)))
    }

    pub(super) fn store(&self, slot: u32, word: Word) {
        if let Some(cell) = self.get(slot) {
            cell.store(word.bits(), Ordering::Release);
        }
    }

    /// Replaces `current` by `next`; `false` if the word has changed meanwhile.
    #[inline]
    pub(super) fn swap(&self, slot: u32, current: Word, next: Word) -> bool {
        self.get(slot).is_some_and(|cell| replace(cell, current, next))
    }
}

/// Replaces `current` by `next`; `false` if the word has changed meanwhile.
#[inline]
pub(super) fn replace(cell: &AtomicU64, current: Word, next: Word) -> bool {
    cell.compare_exchange_weak(current.bits(), next.bits(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
}
