//! Requests that wait to be written to a connection.

use std::ops::Range;

use keyward_protocol::{Credential, HEADER_BYTES, LENGTH_BYTES, MAX_REQUEST_LENGTH, verify_flag};
use zeroize::Zeroize;

use crate::Request;
use crate::error::Error;
use crate::sequence::request_id;
use crate::session::Session;

/// Position of `flags` in a frame.
const FLAGS: Range<usize> = 6..8;

/// Position of `cost` in the frames of VERIFY, REFUND and DEBIT.
const COST: Range<usize> = HEADER_BYTES..HEADER_BYTES + 4;

/// Written bytes that the buffer may retain at its front before it moves the rest there.
const COMPACT_BYTES: usize = 64 * 1024;

/// Encoded requests. A *position* counts the bytes from the first request of the connection.
pub(crate) struct SendBuffer {
    bytes: Vec<u8>,
    /// How many of `bytes` have been written.
    sent: usize,
    /// Position of the first of `bytes`.
    base: u64,
    session: Session,
    /// Whether `bytes` may ever have contained a raw key, so that it must be wiped.
    holds_raw_keys: bool,
}

impl SendBuffer {
    pub(crate) fn new(session: Session) -> Self {
        Self { bytes: Vec::new(), sent: 0, base: 0, session, holds_raw_keys: false }
    }

    /// Appends request number `sequence` and returns its position. If that fails, nothing is
    /// appended.
    pub(crate) fn push(
        &mut self,
        sequence: u64,
        request: &Request<'_>,
        credential: Credential<'_>,
    ) -> Result<u64, Error> {
        self.holds_raw_keys |= matches!(credential, Credential::RawKey(_));
        self.make_room();
        let start = self.bytes.len();
        request.encode(request_id(sequence), credential, &mut self.bytes)?;
        let length = self.bytes.len() - start - LENGTH_BYTES;
        let max = self.session.max_length as usize;
        if length > max {
            self.bytes.truncate(start);
            return Err(Error::RequestTooLong { length, max });
        }
        Ok(self.base + start as u64)
    }

    /// The bytes that have not been written.
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Records that `count` more bytes have been written.
    pub(crate) fn advance(&mut self, count: usize) {
        self.sent = (self.sent + count).min(self.bytes.len());
        if self.sent == self.bytes.len() {
            self.base += self.bytes.len() as u64;
            self.clear();
        }
    }

    /// Position of the first byte that has not been written.
    pub(crate) fn sent_position(&self) -> u64 {
        self.base + self.sent as u64
    }

    /// Position after the last byte.
    pub(crate) fn end_position(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    /// Moves the contents of `other` here. All bytes of `self` must have been written.
    pub(crate) fn take_from(&mut self, other: &mut Self) {
        debug_assert!(self.bytes.is_empty());
        std::mem::swap(&mut self.bytes, &mut other.bytes);
        self.holds_raw_keys |= other.holds_raw_keys;
        self.sent = std::mem::take(&mut other.sent);
        self.base = other.base;
        other.base += self.bytes.len() as u64;
    }

    /// Cancels the request at `position` if no part of it has been written. Its cost becomes 0 and
    /// the flag of its `costs` is removed, so that it charges nothing: a VERIFY becomes a peek, and the
    /// daemon rejects a REFUND, a DEBIT, and `costs` without their flag. The request keeps its place,
    /// and the caller ignores the response.
    pub(crate) fn cancel(&mut self, position: u64) {
        if position < self.sent_position() {
            return;
        }
        let start = (position - self.base) as usize;
        let Some(frame) = self.bytes.get_mut(start..start + COST.end) else { return };
        frame[COST].fill(0);
        for (byte, flag) in frame[FLAGS].iter_mut().zip(verify_flag::COSTS.to_le_bytes()) {
            *byte &= !flag;
        }
    }

    /// Removes everything from `position` on, of which nothing has been written.
    pub(crate) fn truncate(&mut self, position: u64) {
        let retained = position.saturating_sub(self.base) as usize;
        self.bytes.truncate(retained.max(self.sent));
        self.advance(0);
    }

    /// Makes room for one more frame. If the buffer may hold raw keys, it is not left to `Vec` to
    /// reallocate, because the old allocation must be wiped.
    fn make_room(&mut self) {
        if self.sent >= COMPACT_BYTES {
            self.bytes.drain(..self.sent);
            self.base += self.sent as u64;
            self.sent = 0;
        }
        let room = LENGTH_BYTES + MAX_REQUEST_LENGTH as usize;
        if self.holds_raw_keys && self.bytes.capacity() - self.bytes.len() < room {
            let mut larger = Vec::with_capacity(2 * self.bytes.capacity() + room);
            larger.extend_from_slice(&self.bytes);
            self.bytes.zeroize();
            self.bytes = larger;
        }
    }

    fn clear(&mut self) {
        if self.holds_raw_keys {
            self.bytes.zeroize();
        }
        self.bytes.clear();
        self.sent = 0;
    }
}

impl Drop for SendBuffer {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]
mod tests {
    use keyward_protocol::{self as wire, CREDENTIAL_DIGEST, ParsedFrame, parse_frame};

    use super::*;

    fn empty_buffer() -> SendBuffer {
        SendBuffer::new(Session {
            credentials: CREDENTIAL_DIGEST,
            max_length: MAX_REQUEST_LENGTH,
            max_silence: None,
        })
    }

    fn push(buffer: &mut SendBuffer, sequence: u64) -> u64 {
        buffer.push(sequence, &Request::new("key").cost(7), Credential::Digest([0; 32])).unwrap()
    }

    /// A buffer with two requests, and their positions.
    fn buffer_with_two_requests() -> (SendBuffer, [u64; 2]) {
        let mut buffer = empty_buffer();
        let positions = [1, 2].map(|sequence| push(&mut buffer, sequence));
        (buffer, positions)
    }

    #[test]
    fn only_an_unwritten_request_can_be_cancelled() {
        let (mut buffer, [first, second]) = buffer_with_two_requests();
        buffer.advance(1);
        buffer.cancel(first);
        buffer.cancel(second);
        let bytes = &buffer.bytes;
        assert_eq!(bytes[COST], [7, 0, 0, 0]);
        let second = second as usize;
        assert_eq!(bytes[second + COST.start..second + COST.end], [0; 4]);
    }

    #[test]
    fn cancelled_request_with_costs_is_rejected_or_a_peek() {
        let verify = Request::new("key").cost(7);
        let verify_costs = verify.clone().cost_of("tokens", 5).balances();
        let (refund, debit) = (verify_costs.refund(), verify_costs.debit_of("tokens", 1));
        for request in [&verify, &verify_costs, refund.request(), debit.request()] {
            let mut buffer = empty_buffer();
            let position = buffer.push(1, request, Credential::Digest([0; 32])).unwrap();
            buffer.cancel(position);
            let ParsedFrame::Complete { header, body, .. } = parse_frame(&buffer.bytes, MAX_REQUEST_LENGTH)
            else {
                panic!("not a frame");
            };
            let charges = match wire::Request::decode(&header, body) {
                Ok(wire::Request::Verify(peek)) => peek.cost > 0 || peek.costs.is_some(),
                decoded => decoded.is_ok(),
            };
            assert!(!charges);
        }
    }

    #[test]
    fn positions_continue_after_take_from() {
        let (mut queue, [_, second]) = buffer_with_two_requests();
        queue.advance(second as usize);
        let mut sending = empty_buffer();
        sending.take_from(&mut queue);
        assert_eq!((sending.sent_position(), sending.unsent().len()), (second, second as usize));
        let third = push(&mut queue, 3);
        assert_eq!((third, queue.sent_position()), (2 * second, 2 * second));
        sending.advance(second as usize);
        assert_eq!(sending.sent_position(), third);
        sending.take_from(&mut queue);
        assert_eq!(sending.sent_position(), third);
    }

    #[test]
    fn truncated_request_leaves_no_gap() {
        let (mut buffer, [_, second]) = buffer_with_two_requests();
        buffer.truncate(second);
        assert_eq!(push(&mut buffer, 2), second);
        buffer.advance(second as usize);
        buffer.truncate(second);
        assert_eq!((buffer.sent_position(), buffer.unsent().len()), (second, 0));
    }
}
