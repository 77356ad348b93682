//! Where a part of a policy is.

use std::ops::Range;

/// A range of a list: its start in the upper 56 bits, its length in the lower 8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Span(u64);

impl Span {
    pub(super) const MAX_LENGTH: usize = 0xff;

    pub(super) fn new(start: usize, length: usize) -> Self {
        debug_assert!(length <= Self::MAX_LENGTH && start < 1 << 56);
        Self((start as u64) << 8 | (length as u64 & 0xff))
    }

    #[inline]
    pub(super) fn length(self) -> usize {
        (self.0 & 0xff) as usize
    }

    // The start is known to be small, so the compiler leaves out the check for an overflow.
    #[inline]
    pub(super) fn range(self) -> Range<usize> {
        let start = (self.0 >> 8) as usize;
        start..start + self.length()
    }
}
