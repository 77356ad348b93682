//! A connection without a socket or a clock, for the fuzz targets: the worker's buffers, and the
//! input that is still unanswered.

use keyward_engine::verify::Verifier;
use zeroize::Zeroizing;

use super::buffers::Buffers;
use super::{Counters, StopReason, Terms, respond};
use crate::usage::UsageLog;

/// One connection and the buffers of its worker.
pub struct Exchange {
    buffers: Buffers,
    unanswered: Zeroizing<Vec<u8>>,
    counters: Counters,
    usage: UsageLog,
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            buffers: Buffers::new(),
            unanswered: Zeroizing::default(),
            counters: Counters::default(),
            usage: UsageLog::detached(),
        }
    }
}

impl Exchange {
    /// Receives as much of `bytes` as fits behind the unanswered input, and appends all answers to
    /// `answers`. Returns how many bytes were received, and why the last answer was the last.
    pub fn receive(
        &mut self,
        verifier: &Verifier<'_>,
        bytes: &[u8],
        answers: &mut Vec<u8>,
    ) -> (usize, StopReason) {
        let Self { buffers, unanswered, counters, usage } = self;
        let space = buffers.space_after(unanswered.len());
        let received = bytes.len().min(space.len());
        space[..received].copy_from_slice(&bytes[..received]);
        let mut new_bytes = received;
        loop {
            let (progress, (), output) = buffers.answer(unanswered, new_bytes, |input, output| {
                (respond(verifier, Terms::UNRESTRICTED, input, output, counters, usage), ())
            });
            answers.extend_from_slice(output);
            if progress.stop != StopReason::OutputFull {
                return (received, progress.stop);
            }
            new_bytes = 0;
        }
    }

    /// The input that is still unanswered.
    pub fn unanswered(&self) -> &[u8] {
        &self.unanswered
    }
}
