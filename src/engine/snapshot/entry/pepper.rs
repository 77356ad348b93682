//! Which of two peppers a row was found with.

use std::sync::atomic::{AtomicU8, Ordering};

use zerocopy::FromZeros;

/// The pepper that a row is hashed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HashedWith {
    /// The current pepper, which new sources are written with.
    CurrentPepper = 1,
    /// The pepper before it.
    PreviousPepper = 2,
}

/// An optional [`HashedWith`] that worker threads set. Relaxed, because it orders no other memory.
#[derive(Default, FromZeros)]
pub(in crate::snapshot) struct AtomicPepper(AtomicU8);

impl AtomicPepper {
    pub(in crate::snapshot) fn get(&self) -> Option<HashedWith> {
        const CURRENT: u8 = HashedWith::CurrentPepper as u8;
        const PREVIOUS: u8 = HashedWith::PreviousPepper as u8;
        match self.0.load(Ordering::Relaxed) {
            CURRENT => Some(HashedWith::CurrentPepper),
            PREVIOUS => Some(HashedWith::PreviousPepper),
            _ => None,
        }
    }

    /// Stores only a new value: a cache line that every worker keeps writing to would bounce
    /// between their caches.
    pub(in crate::snapshot) fn set(&self, with: HashedWith) {
        if self.0.load(Ordering::Relaxed) != with as u8 {
            self.0.store(with as u8, Ordering::Relaxed);
        }
    }
}
