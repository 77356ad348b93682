//! The input and output buffers that all connections of a worker share.

use zeroize::{Zeroize, Zeroizing};

use super::respond::Progress;

/// Maximum number of bytes of one read: some 680 requests of the most common form. A larger buffer
/// would save few system calls, and would not fit the second-level cache.
pub const INPUT_BYTES: usize = 32 * 1024;

/// The buffers of the connection that is running, from a read to the write of its answers.
pub(super) struct Buffers {
    input: Box<[u8]>,
    output: Vec<u8>,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self { input: vec![0; INPUT_BYTES].into(), output: Vec::with_capacity(2 * INPUT_BYTES) }
    }

    /// The input buffer behind `unanswered` bytes, which belong to the connection's earlier input.
    pub(super) fn space_after(&mut self, unanswered: usize) -> &mut [u8] {
        self.input.get_mut(unanswered..).unwrap_or_default()
    }

    /// Answers the connection's input with `respond`: the `unanswered` bytes, and the `new_bytes`
    /// that were read behind them. What is left unanswered afterwards is moved to `unanswered`, and
    /// bytes that may contain a raw key are wiped. Also returns the answers.
    #[inline]
    pub(super) fn answer<T>(
        &mut self,
        unanswered: &mut Zeroizing<Vec<u8>>,
        new_bytes: usize,
        respond: impl FnOnce(&[u8], &mut Vec<u8>) -> (Progress, T),
    ) -> (Progress, T, &[u8]) {
        let (input, output) = self.filled(unanswered, new_bytes);
        let (progress, result) = respond(input, output);
        let (consumed, rest) = input.split_at_mut(progress.consumed);
        unanswered.extend_from_slice(rest);
        rest.zeroize();
        if progress.had_raw_key {
            consumed.zeroize();
        }
        (progress, result, output)
    }

    /// The connection's input, and an empty output. The input consists of the `unanswered` bytes,
    /// which are moved here, and the `new_bytes` that were read behind them.
    fn filled(&mut self, unanswered: &mut Zeroizing<Vec<u8>>, new_bytes: usize) -> (&mut [u8], &mut Vec<u8>) {
        let filled = (unanswered.len() + new_bytes).min(self.input.len());
        if let Some(front) = self.input.get_mut(..unanswered.len()) {
            front.copy_from_slice(unanswered);
        }
        // Dropping the old vector wipes it.
        *unanswered = Zeroizing::default();
        self.output.clear();
        (self.input.get_mut(..filled).unwrap_or_default(), &mut self.output)
    }
}
