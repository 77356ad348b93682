//! Visiting the numbers of an index in the order of their hashes, without sorting all of them.
//!
//! Homes ascend with hashes, and a number is in its home group or in the full groups right after
//! it. A *run* (the groups up to the next one that is not full) therefore holds exactly the hashes
//! whose homes are in it, except those that have wrapped around from the end of the table to its
//! beginning. It is enough to sort one run at a time.

use keyward_memory::prefetch;

use super::{Group, Index, IndexHash};

impl Index {
    /// Calls `visit` with every number, in the order of the hashes; `tie` orders two numbers with
    /// one hash. `locate` returns what `hash` will read for a number. It is prefetched, so that
    /// several numbers wait for memory together.
    ///
    /// # Errors
    /// The first error of `visit`, which ends the iteration.
    pub(in crate::snapshot) fn in_order<'e, T: 'e, E>(
        &self,
        locate: impl Fn(u32) -> Option<&'e T>,
        hash: impl Fn(u32) -> IndexHash,
        tie: impl Fn(u32, u32) -> std::cmp::Ordering,
        mut visit: impl FnMut(u32) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut run, mut wrapped) = (Vec::new(), Vec::new());
        let mut visit_run = |run: &mut Vec<(IndexHash, u32)>| {
            run.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| tie(a.1, b.1)));
            run.drain(..).try_for_each(|(_, number)| visit(number))
        };
        let mut is_first = true;
        for (at, group) in self.groups.iter().enumerate() {
            group.numbers().filter_map(&locate).for_each(prefetch);
            run.extend(group.numbers().map(|number| (hash(number), number)));
            if group.is_full() && at + 1 < self.groups.len() {
                continue;
            }
            if std::mem::take(&mut is_first) {
                // A hash whose home is past this run has wrapped around from the last groups.
                wrapped = run.extract_if(.., |(hash, _)| hash.home(self.groups.len()) > at).collect();
            }
            if at + 1 == self.groups.len() {
                run.append(&mut wrapped);
            }
            visit_run(&mut run)?;
        }
        Ok(())
    }
}

impl Group {
    fn numbers(&self) -> impl Iterator<Item = u32> {
        self.tags.into_iter().zip(self.numbers).take_while(|(tag, _)| *tag != 0).map(|(_, number)| number)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// Hashes whose homes often collide, also at both ends of the table.
    fn hash() -> impl Strategy<Value = u64> {
        let home = prop_oneof![Just(0), Just(u64::MAX), Just(u64::MAX - 1), any::<u64>(), 0..4_u64];
        (home, 0..4_u64).prop_map(|(home, tag)| home << 32 | tag)
    }

    proptest! {
        #[test]
        fn every_number_is_visited_once_in_hash_order(
            hashes in prop::collection::vec(hash(), 0..300),
            expected in 0_usize..400,
        ) {
            let of = |number: u32| IndexHash::of_hash(hashes[number as usize]);
            let mut index = Index::with_capacity(expected);
            (0..).take(hashes.len()).for_each(|number| index.insert(of(number), number, of));
            let mut visited = Vec::new();
            let visit = |number| {
                visited.push((of(number), number));
                Ok::<_, Infallible>(())
            };
            let Ok(()) = index.in_order(|number| hashes.get(number as usize), of, |a, b| a.cmp(&b), visit);
            let mut expected: Vec<_> = (0..).take(hashes.len()).map(|number| (of(number), number)).collect();
            expected.sort_unstable();
            prop_assert_eq!(visited, expected);
        }
    }
}
