//! The state of a limit in one 64-bit word: a value of 61 bits, and three flags.
//!
//! What the value means depends on the [kind](super::rule) of the limit. A value of 0 is always that
//! of a limit of which nothing has been spent.
//!
//! The flags:
//!
//! * `LOCKED`: a charge of several limits is in progress. Wait until it ends.
//! * `MIGRATING`: a reload changed the limit's rule, and the balance is still in the slot of the old
//!   rule.
//! * `SUPERSEDED`: the old slot of a migration. The balance has moved to the slot of the new rule,
//!   and this word is frozen.

/// The state of a limit, as loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(u64);

const SUPERSEDED: u64 = 1 << 63;
const MIGRATING: u64 = 1 << 62;
const LOCKED: u64 = 1 << 61;

/// Bits of a value.
pub(super) const VALUE_BITS: u32 = 61;

/// The largest value.
pub(super) const VALUE_MASK: u64 = (1 << VALUE_BITS) - 1;

impl Word {
    /// A limit of which nothing has been spent.
    pub(super) const UNSPENT: Self = Self(0);
    /// A limit whose balance is still in another slot.
    pub(super) const MIGRATING: Self = Self(MIGRATING);

    /// The word that [`bits`](Self::bits) has returned.
    #[inline]
    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    #[inline]
    pub(super) fn bits(self) -> u64 {
        self.0
    }

    /// A word without flags. Keeps the lower 61 bits of `value`.
    #[inline]
    pub(super) fn with_value(value: u64) -> Self {
        Self(value & VALUE_MASK)
    }

    #[inline]
    pub(super) fn value(self) -> u64 {
        self.0 & VALUE_MASK
    }

    /// Whether no flag is set. This is the common case, and takes one comparison.
    #[inline]
    pub(super) fn is_unflagged(self) -> bool {
        self.0 <= VALUE_MASK
    }

    pub(super) fn is_locked(self) -> bool {
        self.0 & LOCKED != 0
    }

    pub(super) fn is_migrating(self) -> bool {
        self.0 & MIGRATING != 0
    }

    pub(super) fn is_superseded(self) -> bool {
        self.0 & SUPERSEDED != 0
    }

    pub(super) fn locked(self) -> Self {
        Self(self.0 | LOCKED)
    }

    pub(super) fn superseded(self) -> Self {
        Self(self.0 | SUPERSEDED)
    }

    /// This word without its flags: a superseded limit continues from the balance at which it was
    /// frozen.
    pub(super) fn without_flags(self) -> Self {
        Self::with_value(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_do_not_touch_the_value() {
        for value in [0, 1, VALUE_MASK] {
            let word = Word::with_value(value);
            assert!(word.is_unflagged());
            for flagged in [word.locked(), word.superseded(), Word(word.bits() | MIGRATING)] {
                assert!(!flagged.is_unflagged());
                assert_eq!((flagged.value(), flagged.without_flags()), (value, word));
            }
        }
        assert_eq!(Word::with_value(u64::MAX), Word(VALUE_MASK));
        let flags = |word: Word| [word.is_locked(), word.is_migrating(), word.is_superseded()];
        assert_eq!(flags(Word::UNSPENT.locked()), [true, false, false]);
        assert_eq!(flags(Word::MIGRATING), [false, true, false]);
        assert_eq!(flags(Word::UNSPENT.superseded()), [false, false, true]);
    }
}
