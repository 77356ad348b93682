//! Answers requests: from a buffer of request frames to a buffer of answer frames, without sockets
//! or clocks.
//!
//! Consecutive VERIFY frames are decided as one batch. Any other frame ends the batch, and the
//! batch is answered first, so that answers leave in the order of their requests.

use arrayvec::ArrayVec;
use keyward_protocol::{
    CREDENTIAL_DIGEST, CREDENTIAL_RAW, Credential, ErrorCode, FAST_PATH_BYTES, FrameHeader, Hello,
    MAX_REQUEST_LENGTH, ParsedFrame, ProtocolError, Refund, Request, VERSION, Verify, Welcome, parse_frame,
    verify_flag,
};

use crate::connection::Counters;
use crate::usage::UsageLog;
use keyward_engine::snapshot::Snapshot;
use keyward_engine::verify::{BATCH_SIZE, Verifier};

/// Bytes of output after which no further batch is begun. More answers would only wait in memory:
/// this is twice the size of the largest write to a Unix socket.
const OUTPUT_FULL: usize = 64 * 1024;

/// How far [`respond`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of input that have been answered.
    pub consumed: usize,
    /// The number of frames in them.
    pub requests: usize,
    /// Why it stopped.
    pub stop: StopReason,
    /// Whether these bytes may contain a raw key and must be wiped.
    pub had_raw_key: bool,
}

/// Why [`respond`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The rest of the input is not a complete frame.
    NeedInput,
    /// The answers must be written before more are made.
    OutputFull,
    /// A newer snapshot has taken over a bucket: load it and continue.
    Superseded,
    /// The frame boundaries are lost: write the answers, which end with an ERROR, and close the
    /// connection.
    FramingLost,
    /// Requests are not answered any more: close the connection. Only the [worker's
    /// context](super::WorkerContext) returns it.
    ShutDown,
}

/// Answers the requests at the front of `input` into `output`. Each answer and each error is
/// counted once. `idle_timeout_ms` is what WELCOME announces; 0 means that idle connections are not
/// closed.
pub fn respond(
    verifier: &Verifier<'_>,
    idle_timeout_ms: u32,
    input: &[u8],
    output: &mut Vec<u8>,
    counters: &Counters,
    usage: &mut UsageLog,
) -> Progress {
    let mut progress = Progress { consumed: 0, requests: 0, stop: StopReason::NeedInput, had_raw_key: false };
    let mut batch = RequestBatch::default();
    loop {
        if output.len() >= OUTPUT_FULL {
            return Progress { stop: StopReason::OutputFull, ..progress };
        }
        batch.fill(&input[progress.consumed..], accepted_credentials(verifier));
        progress.had_raw_key |= batch.had_raw_key;
        let answered = verifier.verify_batch(&batch.requests, |decision| {
            counters.count_verdict(decision.verdict());
            usage.verified(decision.verdict(), decision.is_shadow_limited(), decision.usage());
            decision.encode(output);
        });
        progress.requests += answered;
        let answered_bytes = answered.checked_sub(1).map_or(0, |last| batch.ends[last]);
        if answered < batch.requests.len() {
            progress.consumed += answered_bytes;
            return Progress { stop: StopReason::Superseded, ..progress };
        }
        if let Some(Terminator::Refund(refund)) = &batch.terminator {
            let Ok(decision) = verifier.refund(refund) else {
                progress.consumed += answered_bytes;
                return Progress { stop: StopReason::Superseded, ..progress };
            };
            counters.count_refund();
            usage.refunded(decision.verdict(), decision.usage());
            decision.encode(output);
        }
        progress.consumed += batch.end;
        let Some(terminator) = batch.terminator.take() else {
            if answered < BATCH_SIZE {
                return progress;
            }
            continue;
        };
        progress.requests += 1;
        match terminator {
            Terminator::Hello(hello) => match welcome(hello, verifier, idle_timeout_ms) {
                Ok(welcome) => welcome.encode(output),
                Err(error) => write_error(error, counters, output),
            },
            Terminator::Error(error) => write_error(error, counters, output),
            Terminator::FramingLost(error) => {
                write_error(error, counters, output);
                return Progress {
                    consumed: input.len(),
                    stop: StopReason::FramingLost,
                    had_raw_key: true,
                    ..progress
                };
            }
            // Answered above.
            Terminator::Refund(_) => {}
        }
    }
}

/// Consecutive VERIFY frames, and the frame that ended the batch.
#[derive(Default)]
struct RequestBatch<'a> {
    requests: ArrayVec<Verify<'a>, BATCH_SIZE>,
    /// Where each request's frame ends in the input.
    ends: ArrayVec<usize, BATCH_SIZE>,
    /// Where the last frame ends, the terminator included.
    end: usize,
    terminator: Option<Terminator<'a>>,
    had_raw_key: bool,
}

/// A frame that ends a batch.
enum Terminator<'a> {
    Hello(Hello),
    Refund(Refund<'a>),
    /// A frame that is answered with an ERROR.
    Error(ProtocolError),
    /// A header that does not tell where the next frame begins.
    FramingLost(ProtocolError),
}

impl<'a> RequestBatch<'a> {
    /// Parses frames until the batch is full, the input ends, or a frame other than VERIFY arrives.
    #[inline]
    fn fill(&mut self, input: &'a [u8], credentials: u8) {
        self.requests.clear();
        self.ends.clear();
        self.end = 0;
        while !self.requests.is_full() && self.terminator.is_none() {
            let rest = &input[self.end..];
            match Verify::parse_fast_path(rest) {
                Some(request) if credentials & CREDENTIAL_DIGEST != 0 => self.push(request, FAST_PATH_BYTES),
                _ if rest.is_empty() => break,
                _ => match parse_frame(rest, MAX_REQUEST_LENGTH) {
                    ParsedFrame::Complete { header, body, size } => {
                        self.push_frame(&header, body, size, credentials)
                    }
                    ParsedFrame::Incomplete => break,
                    ParsedFrame::Invalid(error) => self.terminator = Some(Terminator::FramingLost(error)),
                },
            }
        }
    }

    #[inline]
    fn push(&mut self, request: Verify<'a>, size: usize) {
        self.end += size;
        self.ends.push(self.end);
        self.requests.push(request);
    }

    /// Decodes a frame that is not on the fast path.
    #[inline(never)]
    fn push_frame(&mut self, header: &FrameHeader, body: &'a [u8], size: usize, credentials: u8) {
        self.had_raw_key |= header.flags & verify_flag::RAW_KEY != 0;
        let request = Request::decode(header, body);
        if let Ok(Request::Verify(request)) = request
            && is_accepted(request.credential, credentials)
        {
            return self.push(request, size);
        }
        self.end += size;
        self.terminator = Some(match request {
            Ok(Request::Refund(refund)) if is_accepted(refund.credential, credentials) => {
                Terminator::Refund(refund)
            }
            Ok(Request::Hello(hello)) => Terminator::Hello(hello),
            Ok(Request::Verify(_) | Request::Refund(_)) => Terminator::Error(ProtocolError::new(
                ErrorCode::CredentialRefused,
                u32::from(credentials),
                header.request_id,
            )),
            Err(error) => {
                // The frame cannot be decoded, so any part of it may be a key.
                self.had_raw_key = true;
                Terminator::Error(error)
            }
        });
    }
}

/// The forms of a key that this daemon accepts, as flags of WELCOME. With a pepper, only the daemon
/// can hash a key.
fn accepted_credentials(verifier: &Verifier<'_>) -> u8 {
    match verifier.global_policy.peppers {
        Some(_) => CREDENTIAL_RAW,
        None => CREDENTIAL_DIGEST | CREDENTIAL_RAW,
    }
}

fn is_accepted(credential: Credential<'_>, credentials: u8) -> bool {
    matches!(credential, Credential::RawKey(_)) || credentials & CREDENTIAL_DIGEST != 0
}

fn write_error(error: ProtocolError, counters: &Counters, output: &mut Vec<u8>) {
    counters.count_error();
    error.encode(output);
}

/// Negotiates the version and the limits of a connection (SPEC.md section 4).
fn welcome(
    hello: Hello,
    verifier: &Verifier<'_>,
    idle_timeout_ms: u32,
) -> Result<Welcome<'static>, ProtocolError> {
    Ok(Welcome {
        request_id: hello.request_id,
        version: hello.version()?,
        min_version: VERSION,
        max_version: VERSION,
        credentials: accepted_credentials(verifier),
        max_length: MAX_REQUEST_LENGTH,
        idle_timeout_ms,
        generation: verifier.snapshot.map_or(0, Snapshot::generation),
        server: concat!("keyward/", env!("CARGO_PKG_VERSION")),
    })
}
