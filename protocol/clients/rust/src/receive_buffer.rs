//! Bytes that have been read from a connection, and the frames in them.

use keyward_protocol::{LENGTH_BYTES, MAX_ANSWER_LENGTH, ParsedFrame, Response, parse_frame};

use crate::error::ProtocolViolationError;
use crate::event::Event;

/// Size of the buffer: several hundred answers. A read that does not fill it has emptied the
/// socket.
const BUFFER_BYTES: usize = 64 * 1024;

const _: () =
    assert!(BUFFER_BYTES >= LENGTH_BYTES + MAX_ANSWER_LENGTH as usize, "every frame fits into the buffer");

pub(crate) struct ReceiveBuffer {
    buffer: Box<[u8]>,
    /// Start of the bytes that have not been consumed.
    start: usize,
    /// End of the bytes that have been read.
    end: usize,
}

impl ReceiveBuffer {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// The free space to read into. It always has room for the rest of a frame.
    pub(crate) fn free_space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// Records that `count` bytes have been read into the free space.
    pub(crate) fn advance(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// Consumes the next frame, if it is complete.
    pub(crate) fn next_response(&mut self) -> Result<Option<Response<'_>>, ProtocolViolationError> {
        match parse_frame(&self.buffer[self.start..self.end], MAX_ANSWER_LENGTH) {
            ParsedFrame::Incomplete => Ok(None),
            ParsedFrame::Invalid(error) => Err(ProtocolViolationError::InvalidFrame(error)),
            ParsedFrame::Complete { header, body, size } => {
                self.start += size;
                Response::decode(&header, body).map(Some).map_err(ProtocolViolationError::InvalidFrame)
            }
        }
    }

    /// Consumes the next frame, if it is complete, as an event.
    pub(crate) fn next_event(&mut self) -> Result<Option<Event>, ProtocolViolationError> {
        self.next_response()?.map(|response| Event::from_response(&response)).transpose()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn frame_in_two_reads_is_complete_after_the_second() {
        let mut frame = Vec::new();
        keyward_protocol::Answer::without_key(5, crate::Verdict::UnknownKey, 1).encode(&mut frame);
        for split in 0..=frame.len() {
            let mut buffer = ReceiveBuffer::new();
            for part in [&frame[..split], &frame[split..]] {
                buffer.free_space()[..part.len()].copy_from_slice(part);
                buffer.advance(part.len());
                let event = buffer.next_event().unwrap();
                assert_eq!(event.is_some(), buffer.start > 0 && !part.is_empty(), "{split}");
            }
        }
    }
}
