//! A server that writes one answer of fixed size for each request, such as [`crate::echo_server`]:
//! the limit of the socket itself.

use super::{EncodedRequests, LoadError, Tally, Target};

/// An echo server.
pub(crate) struct Echo {
    requests: EncodedRequests,
    answer_bytes: usize,
}

impl Echo {
    /// A server that answers each request with `answer_bytes` bytes, at least 1.
    pub(crate) fn new(requests: EncodedRequests, answer_bytes: usize) -> Self {
        Self { requests, answer_bytes: answer_bytes.max(1) }
    }
}

impl Target for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn requests(&self) -> &EncodedRequests {
        &self.requests
    }

    fn parse_answer(
        &self,
        input: &[u8],
        _: u64,
        _: bool,
        tally: &mut Tally,
    ) -> Result<Option<usize>, LoadError> {
        if input.len() < self.answer_bytes {
            return Ok(None);
        }
        tally.count(0);
        Ok(Some(self.answer_bytes))
    }

    fn outcome_name(&self, _: u8) -> String {
        "echoed".into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_complete_only_as_a_whole, parse_all};
    use super::*;

    #[test]
    fn answers_are_counted_by_size() {
        let echo = Echo::new(EncodedRequests::new(1, |_, out| out.extend([0; 48])).expect("one request"), 80);
        let (tally, left) = parse_all(&echo, &[0; 170]).expect("any bytes are valid");
        assert_eq!((tally.outcomes().collect::<Vec<_>>(), left), (vec![(0, 2)], 10));
        assert_complete_only_as_a_whole(&echo, &[0; 80]);
    }
}
