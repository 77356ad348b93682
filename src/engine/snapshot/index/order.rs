//! The numbers of an index in the order of their hashes, without sorting all of them.
//!
//! Homes ascend with hashes, and a number is in its home or in the lines right after it, as far as these are full. So the lines
//! up to the next one that is not full (a run) hold every hash whose home is among them, and no other but those that have
//! come round from the end of the table to its beginning: one run is sorted at a time.

use super::{FULL, Index, Line, Probe};
use keyward_memory::prefetch;

impl Index {
    /// Its lines, and how many numbers they hold before there are more.
    pub(in crate::snapshot) fn size(&self) -> (usize, usize) {
        (self.lines.len(), self.lines.len() * FULL.0 / FULL.1)
    }

    /// Calls `visit` with every number and its hash, by hash and then as `tie` orders two numbers of one hash. `fetch` is
    /// called with a number before `hash` is asked for its hash, so that memory is waited for once for several numbers.
    ///
    /// # Errors
    /// The first error of `visit`, which ends the walk.
    pub(in crate::snapshot) fn in_order<'e, T: 'e, E>(
        &self,
        fetch: impl Fn(u32) -> Option<&'e T>,
        hash: impl Fn(u32) -> Probe,
        tie: impl Fn(u32, u32) -> std::cmp::Ordering,
        mut visit: impl FnMut(u32) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut run, mut wrapped) = (Vec::new(), Vec::new());
        let mut emit = |run: &mut Vec<(Probe, u32)>| {
            run.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| tie(a.1, b.1)));
            run.drain(..).try_for_each(|(_, number)| visit(number))
        };
        let mut is_first = true;
        for (at, line) in self.lines.iter().enumerate() {
            line.numbers().filter_map(&fetch).for_each(prefetch);
            run.extend(line.numbers().map(|number| (hash(number), number)));
            if line.is_full() && at + 1 < self.lines.len() {
                continue;
            }
            if std::mem::take(&mut is_first) {
                // A home after this run's end is one that the last lines had no room for.
                wrapped = run.extract_if(.., |(probe, _)| probe.home(self.lines.len()) > at).collect();
            }
            if at + 1 == self.lines.len() {
                run.append(&mut wrapped);
            }
            emit(&mut run)?;
        }
        Ok(())
    }
}

impl Line {
    fn numbers(&self) -> impl Iterator<Item = u32> {
        self.tags.into_iter().zip(self.numbers).take_while(|(tag, _)| *tag != 0).map(|(_, number)| number)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// Hashes whose homes meet often, at both ends of the table too.
    fn hash() -> impl Strategy<Value = u64> {
        let home = prop_oneof![Just(0), Just(u64::MAX), Just(u64::MAX - 1), any::<u64>(), 0..4_u64];
        (home, 0..4_u64).prop_map(|(home, tag)| home << 32 | tag)
    }

    proptest! {
        #[test]
        fn numbers_are_visited_by_hash_and_each_once(
            hashes in prop::collection::vec(hash(), 0..300),
            expected in 0_usize..400,
        ) {
            let of = |number: u32| Probe::of_hash(hashes[number as usize]);
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
