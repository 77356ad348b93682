//! Frames in and out, without any I/O: what both clients do with the bytes between a socket and a request.
//!
//! Requests are numbered in the order in which they are written. The number makes the request id, so that the answer
//! that is due next is known without a table.

use keyward_protocol::{
    CREDENTIAL_DIGEST, CREDENTIAL_RAW, Credential, ErrorCode, HEADER_BYTES, Hello, LENGTH_BYTES,
    MAX_ANSWER_LENGTH, MAX_REQUEST_LENGTH, ParsedFrame, ProtocolError, Response, VERSION, Welcome,
    parse_frame,
};
use std::ops::Range;
use std::time::Duration;
use zeroize::Zeroize;

use crate::error::{DaemonError, Error, Failure};
use crate::retry::usable_silence;
use crate::{Decision, Request};

/// Read this much at once: several hundred ordinary answers. A read that leaves room tells that the socket is empty.
const READ_BYTES: usize = 64 * 1024;

/// Where the `cost` is in a VERIFY's frame, and in a REFUND's.
const COST: Range<usize> = HEADER_BYTES..HEADER_BYTES + 4;

/// Sent bytes that a buffer may carry along before it is moved up.
const COMPACT_BYTES: usize = 64 * 1024;

const _: () = assert!(READ_BYTES >= LENGTH_BYTES + MAX_ANSWER_LENGTH as usize, "any frame must fit");

/// The id of request number `sequence`; never 0, which stands for no request (SPEC.md section 8).
pub(crate) fn request_id(sequence: u64) -> u32 {
    (sequence % u64::from(u32::MAX)) as u32 + 1
}

/// What WELCOME fixed for a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    /// How keys may be sent, as WELCOME has it.
    pub(crate) credentials: u8,
    max_length: u32,
    /// How long the connection may have been silent and still be written to.
    pub(crate) usable_silence: Option<Duration>,
}

/// The number of the HELLO with which every connection begins.
pub(crate) const HELLO_SEQUENCE: u64 = 0;

/// The frame with which every connection begins.
pub(crate) fn hello() -> Vec<u8> {
    let mut frame = Vec::new();
    Hello { request_id: request_id(HELLO_SEQUENCE), min_version: VERSION, max_version: VERSION }
        .encode(&mut frame);
    frame
}

/// Reads the first answer of a connection.
pub(crate) fn greeted(response: &Response<'_>) -> Result<Session, Failure> {
    match response {
        Response::Welcome(welcome) => Session::new(welcome).map_err(Failure::Final),
        Response::Error(frame) => Err(refused(frame.into())),
        Response::Answer(_) => {
            Err(Failure::Final(Error::Protocol("an ANSWER where WELCOME was due".to_owned())))
        }
    }
}

/// A daemon that is full or going may be otherwise in a moment; one that does not want us will not.
fn refused(error: DaemonError) -> Failure {
    match error.code() {
        Some(ErrorCode::TooManyConnections | ErrorCode::ShuttingDown) => Failure::Retry(Error::Daemon(error)),
        _ => Failure::Final(Error::Daemon(error)),
    }
}

impl Session {
    fn new(welcome: &Welcome<'_>) -> Result<Self, Error> {
        due(HELLO_SEQUENCE, welcome.request_id)?;
        if welcome.version != VERSION {
            return Err(Error::Protocol(format!("WELCOME chose version {}", welcome.version)));
        }
        if welcome.credentials & (CREDENTIAL_DIGEST | CREDENTIAL_RAW) == 0 {
            return Err(Error::Protocol("WELCOME takes keys neither as digests nor raw".to_owned()));
        }
        Ok(Self {
            credentials: welcome.credentials,
            max_length: welcome.max_length.min(MAX_REQUEST_LENGTH),
            usable_silence: usable_silence(welcome.idle_timeout_ms),
        })
    }
}

/// Requests that wait to be written. Positions count from the beginning of the connection's requests.
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    /// How many of them have been written.
    sent: usize,
    /// Position of the first of them.
    base: u64,
    session: Session,
    /// Whether a raw key may ever have been among the bytes, so that they have to be wiped.
    holds_raw: bool,
}

impl Outbox {
    pub(crate) fn new(session: Session) -> Self {
        Self { bytes: Vec::new(), sent: 0, base: 0, session, holds_raw: false }
    }

    /// Appends request number `sequence`, and tells its position.
    pub(crate) fn push(
        &mut self,
        sequence: u64,
        request: &Request<'_>,
        credential: Credential<'_>,
    ) -> Result<u64, Error> {
        self.holds_raw |= matches!(credential, Credential::RawKey(_));
        self.make_room();
        let start = self.bytes.len();
        request.encode(request_id(sequence), credential, &mut self.bytes)?;
        let length = self.bytes.len() - start - LENGTH_BYTES;
        if length > self.session.max_length as usize {
            self.bytes.truncate(start);
            let max = self.session.max_length as usize;
            return Err(Error::FieldTooLong { field: "the whole request", length, max });
        }
        Ok(self.base + start as u64)
    }

    /// What is still to be written.
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Notes that `count` more bytes have been written.
    pub(crate) fn advance(&mut self, count: usize) {
        self.sent = (self.sent + count).min(self.bytes.len());
        if self.sent == self.bytes.len() {
            self.base += self.bytes.len() as u64;
            self.clear();
        }
    }

    /// Position of the first byte that has not been written.
    pub(crate) fn written(&self) -> u64 {
        self.base + self.sent as u64
    }

    /// Takes over what `other` holds; this one must have been sent.
    pub(crate) fn take_from(&mut self, other: &mut Self) {
        debug_assert!(self.bytes.is_empty());
        std::mem::swap(&mut self.bytes, &mut other.bytes);
        self.holds_raw |= other.holds_raw;
        self.sent = std::mem::take(&mut other.sent);
        self.base = other.base;
        other.base += self.bytes.len() as u64;
    }

    /// Turns the request at `position`, if nothing of it has been written, into one that charges nothing: a peek, or a
    /// refund of nothing, which the daemon refuses. It keeps its place, and its answer is ignored.
    pub(crate) fn withdraw(&mut self, position: u64) {
        if position < self.written() {
            return;
        }
        let start = (position - self.base) as usize;
        if let Some(cost) = self.bytes.get_mut(start + COST.start..start + COST.end) {
            cost.fill(0);
        }
    }

    /// Takes back everything from `position` on; nothing of it has been written.
    pub(crate) fn truncate(&mut self, position: u64) {
        let kept = position.saturating_sub(self.base) as usize;
        self.bytes.truncate(kept.max(self.sent));
        self.advance(0);
    }

    /// Room for one more frame, leaving no copy of a raw key behind where the buffer has to move.
    fn make_room(&mut self) {
        if self.sent >= COMPACT_BYTES {
            self.bytes.drain(..self.sent);
            self.base += self.sent as u64;
            self.sent = 0;
        }
        let room = LENGTH_BYTES + MAX_REQUEST_LENGTH as usize;
        if self.holds_raw && self.bytes.capacity() - self.bytes.len() < room {
            let mut larger = Vec::with_capacity(2 * self.bytes.capacity() + room);
            larger.extend_from_slice(&self.bytes);
            self.bytes.zeroize();
            self.bytes = larger;
        }
    }

    fn clear(&mut self) {
        if self.holds_raw {
            self.bytes.zeroize();
        }
        self.bytes.clear();
        self.sent = 0;
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.clear();
    }
}

/// What the daemon said about the requests.
#[derive(Debug)]
pub(crate) enum Event {
    /// The answer to one of them, or why there is none.
    Reply(u32, Result<Decision, Error>),
    /// The connection ends; what has no answer has not been processed. The id is that of the request at fault, if one
    /// is.
    Closing(Option<u32>, DaemonError),
}

impl Event {
    fn new(response: &Response<'_>) -> Result<Self, Error> {
        match response {
            Response::Answer(answer) => Ok(Self::Reply(answer.request_id, Ok(Decision::new(answer)))),
            Response::Error(frame) if frame.closing => Ok(Self::closing(frame.request_id, frame.into())),
            Response::Error(frame) => Ok(Self::Reply(frame.request_id, Err(Error::Daemon(frame.into())))),
            Response::Welcome(_) => Err(Error::Protocol("a WELCOME that nobody asked for".to_owned())),
        }
    }

    /// A frame that is at fault would be at fault again; anything else closes for reasons of the connection's own.
    fn closing(id: u32, error: DaemonError) -> Self {
        use ErrorCode::{FrameTooLong, FrameTooShort, TruncatedFrame};
        let at_fault = matches!(error.code(), Some(FrameTooShort | FrameTooLong | TruncatedFrame));
        Self::Closing((at_fault && id != 0).then_some(id), error)
    }
}

/// Checks that an answer with this id is the one that is due.
pub(crate) fn due(sequence: u64, id: u32) -> Result<(), Error> {
    match request_id(sequence) {
        expected if expected == id => Ok(()),
        expected => Err(Error::Protocol(format!("an answer to request {id} where {expected} was due"))),
    }
}

/// Bytes that have been read, and the frames in them.
pub(crate) struct Inbox {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; READ_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Where to read to. There is always room for the rest of a frame.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// Notes that `count` bytes have been read there.
    pub(crate) fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// The next frame, if all of it is there.
    pub(crate) fn response(&mut self) -> Result<Option<Response<'_>>, Error> {
        match parse_frame(&self.buffer[self.start..self.end], MAX_ANSWER_LENGTH) {
            ParsedFrame::Incomplete => Ok(None),
            ParsedFrame::Invalid(fault) => Err(not_a_frame(&fault)),
            ParsedFrame::Complete { header, body, size } => {
                self.start += size;
                Response::decode(&header, body).map(Some).map_err(|fault| not_a_frame(&fault))
            }
        }
    }

    /// The next frame, as something said about the requests.
    pub(crate) fn event(&mut self) -> Result<Option<Event>, Error> {
        self.response()?.map(|response| Event::new(&response)).transpose()
    }
}

/// The faults' own sentences are written for the daemon's peers, so only names are taken from them.
fn not_a_frame(fault: &ProtocolError) -> Error {
    Error::Protocol(format!("a frame from the daemon is {} ({})", fault.code.name(), fault.detail))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn session(credentials: u8) -> Session {
        Session { credentials, max_length: MAX_REQUEST_LENGTH, usable_silence: None }
    }

    /// An outbox with two requests, and their positions.
    fn two() -> (Outbox, [u64; 2]) {
        let mut out = Outbox::new(session(CREDENTIAL_DIGEST));
        let request = Request::new("key").cost(7);
        let positions = [1, 2].map(|number| out.push(number, &request, Credential::Digest([0; 32])).unwrap());
        (out, positions)
    }

    #[test]
    fn ids_follow_each_other_and_none_is_zero() {
        let last = u64::from(u32::MAX);
        assert_eq!([0, 1, last - 1, last, last + 1].map(request_id), [1, 2, u32::MAX, 1, 2]);
    }

    #[test]
    fn only_what_has_not_been_written_can_be_withdrawn() {
        let (mut out, [first, second]) = two();
        out.advance(1);
        out.withdraw(first);
        out.withdraw(second);
        let bytes = &out.bytes;
        assert_eq!(bytes[COST], [7, 0, 0, 0]);
        let second = second as usize;
        assert_eq!(bytes[second + COST.start..second + COST.end], [0; 4]);
    }

    #[test]
    fn positions_go_on_where_a_buffer_was_handed_over() {
        let (mut out, [_, second]) = two();
        out.advance(second as usize);
        let mut sending = Outbox::new(session(CREDENTIAL_DIGEST));
        sending.take_from(&mut out);
        assert_eq!((sending.written(), sending.unsent().len()), (second, second as usize));
        let third = out.push(3, &Request::new("key"), Credential::Digest([0; 32])).unwrap();
        assert_eq!((third, out.written()), (2 * second, 2 * second));
        sending.advance(second as usize);
        assert_eq!(sending.written(), third);
        sending.take_from(&mut out);
        assert_eq!(sending.written(), third);
    }

    #[test]
    fn what_is_taken_back_leaves_no_gap() {
        let (mut out, [_, second]) = two();
        out.truncate(second);
        assert_eq!(out.push(2, &Request::new("key"), Credential::Digest([0; 32])).unwrap(), second);
        out.advance(second as usize);
        out.truncate(second);
        assert_eq!((out.written(), out.unsent().len()), (second, 0));
    }

    #[test]
    fn a_frame_is_read_wherever_it_is_split() {
        let mut frame = Vec::new();
        keyward_protocol::Answer::without_key(5, crate::Verdict::UnknownKey, 1).encode(&mut frame);
        for split in 0..=frame.len() {
            let mut inbox = Inbox::new();
            for part in [&frame[..split], &frame[split..]] {
                inbox.space()[..part.len()].copy_from_slice(part);
                inbox.filled(part.len());
                let whole = inbox.event().unwrap();
                assert_eq!(whole.is_some(), inbox.start > 0 && !part.is_empty(), "{split}");
            }
        }
    }
}
