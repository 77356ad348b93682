//! The socket's own limit: a server that reads requests and writes as many answers, and decides nothing.
//! [`crate::echo_server`] is one.

use super::{Fault, Ring, Tally, Target};

/// An echo to load, with the requests of another target.
pub(crate) struct Echo {
    ring: Ring,
    answer: usize,
}

impl Echo {
    /// One that answers each request with `answer` bytes (1 or more).
    pub(crate) fn new(ring: Ring, answer: usize) -> Self {
        Self { ring, answer: answer.max(1) }
    }
}

impl Target for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn ring(&self) -> &Ring {
        &self.ring
    }

    fn answer(&self, input: &[u8], _: u64, _: bool, tally: &mut Tally) -> Result<Option<usize>, Fault> {
        if input.len() < self.answer {
            return Ok(None);
        }
        tally.count(0);
        Ok(Some(self.answer))
    }

    fn outcome(&self, _: u8) -> String {
        "echoed".into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{holds_for_every_cut, take_all};
    use super::*;

    #[test]
    fn answers_are_counted_by_their_size() {
        let echo = Echo::new(Ring::new(1, |_, out| out.extend([0; 48])).expect("one"), 80);
        let (tally, left) = take_all(&echo, &[0; 170]).expect("anything goes");
        assert_eq!((tally.outcomes().collect::<Vec<_>>(), left), (vec![(0, 2)], 10));
        holds_for_every_cut(&echo, &[0; 80]);
    }
}
