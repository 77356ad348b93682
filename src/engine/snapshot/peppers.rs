//! Which of two peppers a row is hashed with. The hash does not tell; a key that is found by one of them does.
//!
//! Who takes a pepper away wants to know which rows still need it. So, as long as there are two, finding a key writes down by which
//! of them, and the next snapshot goes on with that for the rows that it has from this one. What is found in a snapshot while its
//! successor is being made may be lost, and all of it ends with the daemon: such a row has to be asked for again, and until then
//! nothing is known of it.

use std::sync::atomic::{AtomicU8, Ordering};

use zerocopy::FromZeros;

use crate::rules::GlobalPolicy;
use crate::snapshot::kept::Kept;
use crate::snapshot::{Key, Keys};

/// What a row was found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HashedWith {
    /// The pepper that exports are to be written with.
    CurrentPepper = 1,
    /// The one before it.
    PreviousPepper = 2,
}

/// The same for an entry, which nobody may have found yet. Relaxed: nothing else is told by it.
#[derive(Default, FromZeros)]
pub(super) struct PepperByte(AtomicU8);

impl PepperByte {
    fn get(&self) -> Option<HashedWith> {
        const CURRENT: u8 = HashedWith::CurrentPepper as u8;
        const PREVIOUS: u8 = HashedWith::PreviousPepper as u8;
        match self.0.load(Ordering::Relaxed) {
            CURRENT => Some(HashedWith::CurrentPepper),
            PREVIOUS => Some(HashedWith::PreviousPepper),
            _ => None,
        }
    }

    /// Written once: a line that every worker keeps writing to would be in no worker's cache.
    fn set(&self, with: HashedWith) {
        if self.0.load(Ordering::Relaxed) != with as u8 {
            self.0.store(with as u8, Ordering::Relaxed);
        }
    }
}

impl Key<'_> {
    /// Which of the two peppers in force its row is hashed with, if that is known.
    pub fn hashed_with(self) -> Option<HashedWith> {
        self.entry.pepper.get()
    }

    /// It has been found by one of them.
    pub fn set_hashed_with(self, with: HashedWith) {
        self.entry.pepper.set(with);
    }
}

impl Keys {
    /// Goes on with what is known of the rows that were there before, if the peppers are the same two.
    pub(super) fn inherit_peppers(&self, kept: &Kept<'_>, global_policy: &GlobalPolicy) {
        let same_two = |old: &GlobalPolicy| {
            global_policy.previous_pepper().is_some() && global_policy.peppers == old.peppers
        };
        if !kept.old.is_some_and(|old| same_two(old.global_policy())) {
            return;
        }
        for (entry, before) in kept.rows_of(&self.entries) {
            before.pepper.get().into_iter().for_each(|with| entry.pepper.set(with));
        }
    }
}
