//! A set of slot numbers: one bit for each slot.

/// A bitmap that grows on insertion.
#[derive(Default)]
pub(super) struct SlotSet {
    words: Vec<u64>,
}

impl SlotSet {
    /// An empty set with room for the slots below `end`.
    pub(super) fn with_capacity(end: u64) -> Self {
        Self { words: vec![0; usize::try_from(end.div_ceil(64)).unwrap_or(0)] }
    }

    /// Adds `slot`. Returns `false` if the set already contains it.
    pub(super) fn insert(&mut self, slot: u32) -> bool {
        if self.contains(slot) {
            return false;
        }
        let word = slot as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (slot % 64);
        true
    }

    pub(super) fn contains(&self, slot: u32) -> bool {
        self.words.get(slot as usize / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    /// The number of slots in the set.
    pub(super) fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inserted_slots_are_contained_and_counted_once() {
        let mut slots = SlotSet::with_capacity(70);
        assert!(slots.insert(3) && slots.insert(69) && slots.insert(1_000) && !slots.insert(3));
        assert!(slots.contains(3) && slots.contains(69) && slots.contains(1_000));
        assert!(!slots.contains(4) && !slots.contains(u32::MAX));
        assert_eq!(slots.len(), 3);
    }
}
