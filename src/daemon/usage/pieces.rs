//! A list that grows without moving what is in it: whoever moves a hundred megabytes does nothing else for a tenth of a second, and
//! the workers would wait for it.

use std::ops::{Index, IndexMut};

use keyward_memory::{HUGE_PAGE, HugePages, HugeVec};

/// See the [module](self).
pub(super) struct ChunkedVec<T> {
    /// All but the last are full.
    pieces: Vec<HugeVec<T>>,
}

impl<T> Default for ChunkedVec<T> {
    fn default() -> Self {
        Self { pieces: Vec::new() }
    }
}

impl<T> ChunkedVec<T> {
    /// Items of a piece: as many as fit into a huge page, rounded down to a power of two.
    const PIECE: usize = 1 << (HUGE_PAGE / size_of::<T>()).ilog2();

    pub(super) fn len(&self) -> usize {
        self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * Self::PIECE + last.len())
    }

    pub(super) fn push(&mut self, item: T) {
        match self.pieces.last_mut() {
            Some(last) if last.len() < Self::PIECE => last.push(item),
            _ => {
                // The first grows: most daemons have few keys.
                let room = if self.pieces.is_empty() { 0 } else { Self::PIECE };
                let mut piece = HugeVec::with_capacity_in(room, HugePages);
                piece.push(item);
                self.pieces.push(piece);
            }
        }
    }

    #[inline]
    pub(super) fn get(&self, at: usize) -> Option<&T> {
        self.pieces.get(at / Self::PIECE)?.get(at % Self::PIECE)
    }
}

impl<T> Index<usize> for ChunkedVec<T> {
    type Output = T;

    #[inline]
    fn index(&self, at: usize) -> &T {
        &self.pieces[at / Self::PIECE][at % Self::PIECE]
    }
}

impl<T> IndexMut<usize> for ChunkedVec<T> {
    #[inline]
    fn index_mut(&mut self, at: usize) -> &mut T {
        &mut self.pieces[at / Self::PIECE][at % Self::PIECE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_list_that_does_not_move() {
        let mut pieces = ChunkedVec::default();
        assert_eq!((pieces.len(), pieces.get(0)), (0, None));
        let count = ChunkedVec::<[u64; 5]>::PIECE * 2 + 10;
        for number in 0..count as u64 {
            pieces.push([number; 5]);
        }
        let (second, there) = (std::ptr::from_ref(&pieces[ChunkedVec::<[u64; 5]>::PIECE]), pieces.len());
        assert_eq!(there, count);
        (0..count).for_each(|_| pieces.push([7; 5]));
        assert_eq!(std::ptr::from_ref(&pieces[ChunkedVec::<[u64; 5]>::PIECE]), second);
        assert!((0..count).all(|at| pieces[at] == [at as u64; 5] && pieces.get(at) == Some(&pieces[at])));
        pieces[count - 1] = [1; 5];
        assert_eq!((pieces[count - 1], pieces.get(count * 2)), ([1; 5], None));
    }
}
