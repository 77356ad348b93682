//! A connection that sends arbitrary bytes and returns the frames that it receives.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use keyward_protocol::{Answer, Credential, MAX_ANSWER_LENGTH, ParsedFrame, Response, Verify, parse_frame};
use sha2::{Digest, Sha256};

use super::wait::TIMEOUT;

pub(crate) struct RawClient {
    pub(crate) stream: UnixStream,
    buffer: Vec<u8>,
}

/// What a connection received, in a form that tests compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Welcome {
        request_id: u32,
    },
    Answer {
        request_id: u32,
        verdict: &'static str,
        generation: u64,
    },
    Error {
        request_id: u32,
        code: u8,
        detail: u32,
        closing: bool,
    },
    /// The end of the stream.
    Closed,
}

impl Received {
    fn new(response: Response<'_>) -> Self {
        match response {
            Response::Welcome(welcome) => Self::Welcome { request_id: welcome.request_id },
            Response::Error(error) => Self::Error {
                request_id: error.request_id,
                code: error.code,
                detail: error.detail,
                closing: error.closing,
            },
            Response::Answer(answer) => Self::Answer {
                request_id: answer.request_id,
                verdict: answer.verdict.name(),
                generation: answer.generation,
            },
        }
    }
}

impl RawClient {
    pub(crate) fn connect(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).expect("the daemon listens"))
    }

    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        stream.set_write_timeout(Some(TIMEOUT)).expect("a timeout");
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the daemon reads");
    }

    /// Sends `frame` repeatedly until the daemon stops reading, because it has answers that it
    /// cannot write. Returns the number of whole frames sent.
    ///
    /// A daemon that makes no progress but has nothing to write is waited for up to [`TIMEOUT`].
    pub(crate) fn send_until_blocked(&mut self, frame: &[u8]) -> usize {
        const WRITE_TIMEOUT: Duration = Duration::from_millis(100);
        /// Consecutive timeouts without progress after which the daemon counts as blocked.
        const TIMEOUTS: usize = 3;
        let frames = frame.repeat(500);
        self.stream.set_write_timeout(Some(WRITE_TIMEOUT)).expect("a timeout");
        let (mut sent, mut unread, mut timeouts) = (0, 0, 0);
        let mut progress = Instant::now();
        while timeouts < TIMEOUTS {
            match self.stream.write(&frames[sent % frames.len()..]) {
                Ok(written) => {
                    sent += written;
                    (timeouts, progress) = (0, Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let before = unread;
                    unread = rustix::io::ioctl_fionread(&self.stream).expect("a socket");
                    timeouts = if unread > 0 && unread == before { timeouts + 1 } else { 0 };
                    assert!(progress.elapsed() < TIMEOUT, "the daemon neither reads nor answers");
                }
                // The daemon closed the connection.
                Err(_) => break,
            }
            assert!(sent < 512 << 20, "the daemon keeps reading although its answers are not read");
        }
        self.stream.set_write_timeout(Some(TIMEOUT)).expect("a timeout");
        sent / frame.len()
    }

    /// Receives everything until the daemon closes the connection. A last, incomplete frame is
    /// ignored.
    pub(crate) fn receive_until_close(&mut self) -> Vec<Received> {
        let mut bytes = std::mem::take(&mut self.buffer);
        let end = self.stream.read_to_end(&mut bytes);
        let is_reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
        assert!(end.as_ref().map_or_else(is_reset, |_| true), "not closed: {end:?}");
        let mut received = Vec::new();
        while let ParsedFrame::Complete { header, body, size } = parse_frame(&bytes, MAX_ANSWER_LENGTH) {
            received.push(Received::new(Response::decode(&header, body).expect("a frame of SPEC.md")));
            bytes.drain(..size);
        }
        received
    }

    /// Receives the next frame, or the end of the stream.
    pub(crate) fn receive(&mut self) -> Received {
        self.receive_with(|_| ())
    }

    /// As [`RawClient::receive`], and passes an ANSWER to `observe`.
    pub(crate) fn receive_with(&mut self, observe: impl FnOnce(&Answer<'_>)) -> Received {
        loop {
            match parse_frame(&self.buffer, MAX_ANSWER_LENGTH) {
                ParsedFrame::Complete { header, body, size } => {
                    let response = Response::decode(&header, body).expect("a frame of SPEC.md");
                    if let Response::Answer(answer) = &response {
                        observe(answer);
                    }
                    let received = Received::new(response);
                    self.buffer.drain(..size);
                    return received;
                }
                ParsedFrame::Invalid(fault) => panic!("the daemon violated the protocol: {fault}"),
                ParsedFrame::Incomplete => {}
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    assert!(self.buffer.is_empty(), "the stream ended inside a frame");
                    return Received::Closed;
                }
                Ok(read) => self.buffer.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Received::Closed,
                Err(error) => panic!("the daemon does not answer: {error}"),
            }
        }
    }
}

/// A VERIFY of a key's digest, with the defaults for everything else.
pub(crate) fn encode_verify(request_id: u32, key: &str) -> Vec<u8> {
    let digest = Sha256::digest(key).into();
    let mut frame = Vec::new();
    Verify::new(request_id, Credential::Digest(digest)).encode(&mut frame).expect("within all limits");
    frame
}
