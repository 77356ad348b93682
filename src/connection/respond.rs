//! From the bytes of requests to the bytes of answers: a pure function, sockets and clocks apart.
//!
//! Consecutive VERIFY frames are decided as one batch; whatever else comes (a greeting, a fault) first lets the
//! batch before it be answered, so that answers leave in the order of their requests.

use arrayvec::ArrayVec;
use keyward_protocol::{
    CREDENTIAL_DIGEST, CREDENTIAL_RAW, Credential, ErrorCode, FAST_PATH_BYTES, FrameHeader, Hello,
    MAX_REQUEST_LENGTH, ParsedFrame, ProtocolError, Refund, Request, VERSION, Verify, Welcome, parse_frame,
    verify_flag,
};

use crate::connection::Counters;
use crate::snapshot::Snapshot;
use crate::usage::UsageLog;
use crate::verify::{BATCH_SIZE, Verifier};

/// Bytes of answers after which no further batch is begun: what is there has to be written first. Two of the largest
/// Unix socket writes; more would only wait in memory.
const OUTPUT_FULL: usize = 64 * 1024;

/// What the daemon says of itself in WELCOME.
#[derive(Clone, Copy, Debug, Default)]
pub struct Greeting {
    /// Milliseconds of silence after which a connection ends; 0: never.
    pub idle_timeout_ms: u32,
}

/// How far [`respond`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input that have been answered.
    pub consumed: usize,
    /// Why it stopped.
    pub stop: Stop,
    /// Whether a raw key may have been among them, so that they have to be wiped.
    pub had_raw_key: bool,
}

/// Why [`respond`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// What is left of the input is not a whole frame.
    NeedInput,
    /// The answers have to be written before more are made.
    OutputFull,
    /// A newer snapshot has taken over: load it and go on.
    Superseded,
    /// Framing is lost: write what there is, and close.
    Close,
}

/// A frame that ends a batch.
enum Interruption<'a> {
    Hello(Hello),
    Refund(Refund<'a>),
    Fault(ProtocolError),
    Lost(ProtocolError),
}

/// A batch: consecutive VERIFY frames, and what came after them.
#[derive(Default)]
struct Gathered<'a> {
    requests: ArrayVec<Verify<'a>, BATCH_SIZE>,
    /// Where each request's frame ends.
    ends: ArrayVec<usize, BATCH_SIZE>,
    /// Where the interruption's frame ends, or the last request's.
    end: usize,
    interruption: Option<Interruption<'a>>,
    had_raw_key: bool,
}

/// Answers the requests at the front of `input` into `output`; each answer and each fault is counted once.
pub fn respond(
    verifier: &Verifier<'_>,
    greeting: Greeting,
    input: &[u8],
    output: &mut Vec<u8>,
    counters: &Counters,
    usage: &mut UsageLog,
) -> Progress {
    let mut progress = Progress { consumed: 0, stop: Stop::NeedInput, had_raw_key: false };
    let mut batch = Gathered::default();
    loop {
        if output.len() >= OUTPUT_FULL {
            return Progress { stop: Stop::OutputFull, ..progress };
        }
        batch.gather(&input[progress.consumed..], credentials(verifier));
        progress.had_raw_key |= batch.had_raw_key;
        let answered = verifier.verify(&batch.requests, |decision| {
            counters.verdict(decision.verdict());
            usage.verified(decision.verdict(), decision.is_shadow_limited(), decision.usage());
            decision.encode(output);
        });
        let before = answered.checked_sub(1).map_or(0, |last| batch.ends[last]);
        if answered < batch.requests.len() {
            progress.consumed += before;
            return Progress { stop: Stop::Superseded, ..progress };
        }
        if let Some(Interruption::Refund(refund)) = &batch.interruption {
            let Ok(decision) = verifier.refund(refund) else {
                progress.consumed += before;
                return Progress { stop: Stop::Superseded, ..progress };
            };
            counters.refund();
            usage.refunded(decision.verdict(), decision.usage());
            decision.encode(output);
        }
        progress.consumed += batch.end;
        match batch.interruption.take() {
            Some(Interruption::Hello(hello)) => match welcome(hello, verifier, greeting) {
                Ok(welcome) => welcome.encode(output),
                Err(fault) => refuse(fault, counters, output),
            },
            Some(Interruption::Fault(fault)) => refuse(fault, counters, output),
            Some(Interruption::Lost(fault)) => {
                refuse(fault, counters, output);
                return Progress { consumed: input.len(), stop: Stop::Close, had_raw_key: true };
            }
            None if answered < BATCH_SIZE => return progress,
            Some(Interruption::Refund(_)) | None => {}
        }
    }
}

/// How this daemon takes keys, as WELCOME says it: with a pepper, only it can hash them.
fn credentials(verifier: &Verifier<'_>) -> u8 {
    match verifier.global_policy.peppers {
        Some(_) => CREDENTIAL_RAW,
        None => CREDENTIAL_DIGEST | CREDENTIAL_RAW,
    }
}

impl<'a> Gathered<'a> {
    /// Reads frames until the batch is full, the input ends, or something else than VERIFY comes.
    #[inline]
    fn gather(&mut self, input: &'a [u8], credentials: u8) {
        self.requests.clear();
        self.ends.clear();
        self.end = 0;
        while !self.requests.is_full() && self.interruption.is_none() {
            let rest = &input[self.end..];
            match Verify::parse_fast_path(rest) {
                Some(request) if credentials & CREDENTIAL_DIGEST != 0 => self.push(request, FAST_PATH_BYTES),
                _ if rest.is_empty() => break,
                _ => match parse_frame(rest, MAX_REQUEST_LENGTH) {
                    ParsedFrame::Complete { header, body, size } => {
                        self.take(&header, body, size, credentials)
                    }
                    ParsedFrame::Incomplete => break,
                    ParsedFrame::Invalid(fault) => self.interruption = Some(Interruption::Lost(fault)),
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

    /// Any frame but the ordinary.
    #[inline(never)]
    fn take(&mut self, header: &FrameHeader, body: &'a [u8], size: usize, credentials: u8) {
        self.had_raw_key |= header.flags & verify_flag::RAW_KEY != 0;
        let request = Request::decode(header, body);
        if let Ok(Request::Verify(request)) = request
            && is_taken(request.credential, credentials)
        {
            return self.push(request, size);
        }
        self.end += size;
        self.interruption = Some(match request {
            Ok(Request::Refund(refund)) if is_taken(refund.credential, credentials) => {
                Interruption::Refund(refund)
            }
            Ok(Request::Hello(hello)) => Interruption::Hello(hello),
            Ok(Request::Verify(_) | Request::Refund(_)) => Interruption::Fault(ProtocolError::new(
                ErrorCode::CredentialRefused,
                u32::from(credentials),
                header.request_id,
            )),
            Err(fault) => {
                // Whatever the frame was meant to be, there may be a key in it.
                self.had_raw_key = true;
                Interruption::Fault(fault)
            }
        });
    }
}

/// Whether a key may be sent like this.
fn is_taken(credential: Credential<'_>, credentials: u8) -> bool {
    matches!(credential, Credential::RawKey(_)) || credentials & CREDENTIAL_DIGEST != 0
}

fn refuse(fault: ProtocolError, counters: &Counters, output: &mut Vec<u8>) {
    counters.fault();
    fault.encode(output);
}

/// SPEC.md section 4.
fn welcome(
    hello: Hello,
    verifier: &Verifier<'_>,
    greeting: Greeting,
) -> Result<Welcome<'static>, ProtocolError> {
    Ok(Welcome {
        request_id: hello.request_id,
        version: hello.version()?,
        min_version: VERSION,
        max_version: VERSION,
        credentials: credentials(verifier),
        max_length: MAX_REQUEST_LENGTH,
        idle_timeout_ms: greeting.idle_timeout_ms,
        generation: verifier.snapshot.map_or(0, Snapshot::generation),
        server: concat!("keyward/", env!("CARGO_PKG_VERSION")),
    })
}
