//! Answers requests: from a buffer of request frames to a buffer of answer frames, without sockets
//! or clocks.
//!
//! Consecutive VERIFY frames are decided as one batch. Any other frame ends the batch, and the
//! batch is answered first, so that answers leave in the order of their requests.

use arrayvec::ArrayVec;
use keyward_protocol::{
    CREDENTIAL_DIGEST, CREDENTIAL_RAW, Credential, Debit, ErrorCode, FAST_PATH_BYTES, FrameHeader, FrameKind,
    Hello, MAX_REQUEST_LENGTH, ParsedFrame, ProtocolError, Refund, Request, VERSION, Verify, Welcome,
    parse_frame, verify_flag,
};

use crate::connection::Counters;
use crate::usage::UsageLog;
use keyward_engine::verify::{BATCH_SIZE, Decision, Verifier};

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

/// What holds for a connection, whatever its requests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What WELCOME announces; 0 means that idle connections are not closed.
    pub idle_timeout_ms: u32,
    /// What the peer may send.
    pub permissions: Permissions,
}

/// Whether a peer may change what requests were charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Whether it may send REFUND.
    pub refund: bool,
    /// Whether it may send DEBIT.
    pub debit: bool,
}

// No type here has a default: what is left out must not be permitted.
impl Terms {
    /// Everything is permitted, and idle connections are not closed.
    pub const UNRESTRICTED: Self = Self { idle_timeout_ms: 0, permissions: Permissions::ALL };
}

impl Permissions {
    /// Everything is permitted.
    pub const ALL: Self = Self { refund: true, debit: true };
}

/// Answers the requests at the front of `input` into `output`. Each answer and each error is
/// counted once.
///
/// Its frame, or that of the function into which it is inlined, holds copies of raw keys afterwards. A
/// caller of that function wipes them.
#[inline]
pub fn respond(
    verifier: &Verifier<'_>,
    terms: Terms,
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
            if decision.is_plain() {
                usage.verified(decision.verdict(), decision.usage());
                decision.encode(output);
            } else {
                answer_in_detail(decision, output, counters, usage);
            }
        });
        progress.requests += answered;
        if answered < batch.requests.len() {
            progress.consumed += bytes_of_frames(&input[progress.consumed..], answered);
            return Progress { stop: StopReason::Superseded, ..progress };
        }
        let adjusted = match &batch.terminator {
            Some(Terminator::Refund(refund)) if terms.permissions.refund => {
                verifier.refund(refund, |decision| {
                    counters.count_refund();
                    usage.refunded(decision.verdict(), decision.usage());
                    decision.encode(output);
                })
            }
            Some(Terminator::Debit(debit)) if terms.permissions.debit => verifier.debit(debit, |decision| {
                counters.count_debit();
                usage.debited(decision.verdict(), decision.usage());
                decision.encode(output);
            }),
            _ => Ok(()),
        };
        if adjusted.is_err() {
            progress.consumed += bytes_of_frames(&input[progress.consumed..], answered);
            return Progress { stop: StopReason::Superseded, ..progress };
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
            Terminator::Hello(hello) => match welcome(hello, verifier, terms.idle_timeout_ms) {
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
            Terminator::Refund(refund) if !terms.permissions.refund => {
                write_error(request_refused(FrameKind::Refund, refund.request_id), counters, output);
            }
            Terminator::Debit(debit) if !terms.permissions.debit => {
                write_error(request_refused(FrameKind::Debit, debit.request_id), counters, output);
            }
            // Answered above.
            Terminator::Refund(_) | Terminator::Debit(_) => {}
        }
    }
}

/// Counts and answers a request that is not of the plain form.
// Apart from the fast path, which has one branch for all that few requests have.
#[inline(never)]
fn answer_in_detail(
    decision: &Decision<'_>,
    output: &mut Vec<u8>,
    counters: &Counters,
    usage: &mut UsageLog,
) {
    if decision.is_shadow_limited() {
        counters.count_shadow_denial();
    }
    usage.verified(decision.verdict(), decision.usage());
    decision.encode(output);
}

/// The size of the first `count` frames of `input`, which have been parsed before.
// Read again, because few batches are interrupted. Noting where each frame ends costs every request.
#[inline(never)]
fn bytes_of_frames(input: &[u8], count: usize) -> usize {
    let mut bytes = 0;
    for _ in 0..count {
        match parse_frame(&input[bytes..], MAX_REQUEST_LENGTH) {
            ParsedFrame::Complete { size, .. } => bytes += size,
            ParsedFrame::Incomplete | ParsedFrame::Invalid(_) => break,
        }
    }
    bytes
}

/// Consecutive VERIFY frames, and the frame that ended the batch.
#[derive(Default)]
struct RequestBatch<'a> {
    requests: ArrayVec<Verify<'a>, BATCH_SIZE>,
    /// Where the last frame ends, the terminator included.
    end: usize,
    terminator: Option<Terminator<'a>>,
    had_raw_key: bool,
}

/// A frame that ends a batch.
enum Terminator<'a> {
    Hello(Hello),
    Refund(Refund<'a>),
    Debit(Debit<'a>),
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
        self.end = 0;
        while !self.requests.is_full() && self.terminator.is_none() {
            let rest = &input[self.end..];
            if credentials & CREDENTIAL_DIGEST != 0
                && let Some(request) = Verify::parse_fast_path(rest)
            {
                self.push(request, FAST_PATH_BYTES);
                continue;
            }
            if rest.is_empty() {
                break;
            }
            match parse_frame(rest, MAX_REQUEST_LENGTH) {
                ParsedFrame::Complete { header, body, size } => {
                    self.push_frame(&header, body, size, credentials)
                }
                ParsedFrame::Incomplete => break,
                ParsedFrame::Invalid(error) => self.terminator = Some(Terminator::FramingLost(error)),
            }
        }
    }

    #[inline]
    fn push(&mut self, request: Verify<'a>, size: usize) {
        self.end += size;
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
            Ok(Request::Debit(debit)) if is_accepted(debit.credential, credentials) => {
                Terminator::Debit(debit)
            }
            Ok(Request::Hello(hello)) => Terminator::Hello(hello),
            Ok(Request::Verify(_) | Request::Refund(_) | Request::Debit(_)) => Terminator::Error(
                ProtocolError::new(ErrorCode::CredentialRefused, u32::from(credentials), header.request_id),
            ),
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

fn request_refused(kind: FrameKind, request_id: u32) -> ProtocolError {
    ProtocolError::new(ErrorCode::RequestRefused, kind as u32, request_id)
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
        generation: verifier.view.map_or(0, |view| view.generation),
        server: concat!("keyward/", env!("CARGO_PKG_VERSION")),
    })
}
