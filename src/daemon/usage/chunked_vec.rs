//! A vector that grows without moving its items. Moving a hundred megabytes takes a tenth of a
//! second, and the workers would wait for it.

use std::ops::{Index, IndexMut};

use keyward_memory::{HUGE_PAGE, HugePages, HugeVec};

/// A vector in chunks of the size of a huge page.
pub(super) struct ChunkedVec<T> {
    /// All but the last are full.
    chunks: Vec<HugeVec<T>>,
}

impl<T> Default for ChunkedVec<T> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

impl<T> ChunkedVec<T> {
    /// Items in a chunk: as many as fit into a huge page, rounded down to a power of two.
    const CHUNK: usize = 1 << (HUGE_PAGE / size_of::<T>()).ilog2();

    pub(super) fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * Self::CHUNK + last.len())
    }

    pub(super) fn push(&mut self, item: T) {
        match self.chunks.last_mut() {
            Some(last) if last.len() < Self::CHUNK => last.push(item),
            _ => {
                // The first chunk grows: most daemons have few keys.
                let capacity = if self.chunks.is_empty() { 0 } else { Self::CHUNK };
                let mut chunk = HugeVec::with_capacity_in(capacity, HugePages);
                chunk.push(item);
                self.chunks.push(chunk);
            }
        }
    }

    #[inline]
    pub(super) fn get(&self, at: usize) -> Option<&T> {
        self.chunks.get(at / Self::CHUNK)?.get(at % Self::CHUNK)
    }
}

impl<T> Index<usize> for ChunkedVec<T> {
    type Output = T;

    #[inline]
    fn index(&self, at: usize) -> &T {
        &self.chunks[at / Self::CHUNK][at % Self::CHUNK]
    }
}

impl<T> IndexMut<usize> for ChunkedVec<T> {
    #[inline]
    fn index_mut(&mut self, at: usize) -> &mut T {
        &mut self.chunks[at / Self::CHUNK][at % Self::CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_indexed_across_chunks_and_do_not_move() {
        let mut vec = ChunkedVec::default();
        assert_eq!((vec.len(), vec.get(0)), (0, None));
        let count = ChunkedVec::<[u64; 5]>::CHUNK * 2 + 10;
        for number in 0..count as u64 {
            vec.push([number; 5]);
        }
        assert_eq!(vec.len(), count);
        let second_chunk = std::ptr::from_ref(&vec[ChunkedVec::<[u64; 5]>::CHUNK]);
        (0..count).for_each(|_| vec.push([7; 5]));
        assert_eq!(std::ptr::from_ref(&vec[ChunkedVec::<[u64; 5]>::CHUNK]), second_chunk);
        assert!((0..count).all(|at| vec[at] == [at as u64; 5] && vec.get(at) == Some(&vec[at])));
        vec[count - 1] = [1; 5];
        assert_eq!((vec[count - 1], vec.get(count * 2)), ([1; 5], None));
    }
}
