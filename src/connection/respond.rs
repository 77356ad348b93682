//! From the bytes of requests to the bytes of answers: a pure function, sockets and clocks apart.
//!
//! Consecutive VERIFY frames are decided as one batch; whatever else comes (a greeting, a fault) first lets the
//! batch before it be answered, so that answers leave in the order of their requests.

use keyward_protocol::{
    CREDENTIAL_DIGEST, CREDENTIAL_RAW, Credential, ErrorCode, Fault, Hello, MAX_REQUEST_LENGTH, Refund,
    Request, Split, VERSION, Verify, Welcome, split, verify_flag,
};

use crate::connection::Counters;
use crate::snapshot::Snapshot;
use crate::usage::Log;
use crate::verify::{BATCH, Context};

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
    Fault(Fault),
    Lost(Fault),
}

/// A batch: consecutive VERIFY frames, and what came after them.
struct Gathered<'a> {
    requests: Vec<Verify<'a>>,
    /// Where each request's frame ends.
    ends: [usize; BATCH],
    /// Where the interruption's frame ends, or the last request's.
    end: usize,
    interruption: Option<Interruption<'a>>,
    had_raw_key: bool,
}

/// Answers the requests at the front of `input` into `output`; each answer and each fault is counted once.
pub fn respond(
    context: &Context<'_>,
    greeting: Greeting,
    input: &[u8],
    output: &mut Vec<u8>,
    counters: &Counters,
    usage: &mut Log,
) -> Progress {
    let mut progress = Progress { consumed: 0, stop: Stop::NeedInput, had_raw_key: false };
    loop {
        if output.len() >= OUTPUT_FULL {
            return Progress { stop: Stop::OutputFull, ..progress };
        }
        let batch = gather(&input[progress.consumed..], credentials(context));
        progress.had_raw_key |= batch.had_raw_key;
        let answered = context.verify(&batch.requests, |answer, tally| {
            counters.verdict(answer.verdict);
            usage.verified(answer.verdict, answer.shadow_limit.is_some(), tally);
            answer.encode(output);
        });
        let before = answered.checked_sub(1).map_or(0, |last| batch.ends[last]);
        if answered < batch.requests.len() {
            progress.consumed += before;
            return Progress { stop: Stop::Superseded, ..progress };
        }
        if let Some(Interruption::Refund(refund)) = &batch.interruption {
            let given_back = context.refund(refund, |answer, tally| {
                counters.refund();
                usage.refunded(answer.verdict, tally);
                answer.encode(output);
            });
            if !given_back {
                progress.consumed += before;
                return Progress { stop: Stop::Superseded, ..progress };
            }
        }
        progress.consumed += batch.end;
        match batch.interruption {
            Some(Interruption::Hello(hello)) => match welcome(hello, context, greeting) {
                Ok(welcome) => welcome.encode(output),
                Err(fault) => refuse(fault, counters, output),
            },
            Some(Interruption::Fault(fault)) => refuse(fault, counters, output),
            Some(Interruption::Lost(fault)) => {
                refuse(fault, counters, output);
                return Progress { consumed: input.len(), stop: Stop::Close, had_raw_key: true };
            }
            None if answered < BATCH => return progress,
            Some(Interruption::Refund(_)) | None => {}
        }
    }
}

/// How this daemon takes keys, as WELCOME says it: with a pepper, only it can hash them.
fn credentials(context: &Context<'_>) -> u8 {
    match context.rules.peppers {
        Some(_) => CREDENTIAL_RAW,
        None => CREDENTIAL_DIGEST | CREDENTIAL_RAW,
    }
}

/// Reads frames until the batch is full, the input ends, or something else than VERIFY comes.
fn gather(input: &[u8], credentials: u8) -> Gathered<'_> {
    let mut batch = Gathered {
        requests: Vec::with_capacity(BATCH.min(input.len() / 32)),
        ends: [0; BATCH],
        end: 0,
        interruption: None,
        had_raw_key: false,
    };
    while batch.requests.len() < BATCH && batch.interruption.is_none() {
        let (header, body, size) = match split(&input[batch.end..], MAX_REQUEST_LENGTH) {
            Split::Frame { header, body, size } => (header, body, size),
            Split::Incomplete => break,
            Split::Lost(fault) => {
                batch.interruption = Some(Interruption::Lost(fault));
                break;
            }
        };
        batch.end += size;
        batch.had_raw_key |= header.flags & verify_flag::RAW_KEY != 0;
        match Request::decode(&header, body) {
            Ok(Request::Verify(Verify { credential: Credential::Digest(_), request_id, .. }))
            | Ok(Request::Refund(Refund { credential: Credential::Digest(_), request_id, .. }))
                if credentials & CREDENTIAL_DIGEST == 0 =>
            {
                let fault = Fault::new(ErrorCode::CredentialRefused, u32::from(credentials), request_id);
                batch.interruption = Some(Interruption::Fault(fault));
            }
            Ok(Request::Verify(request)) => {
                batch.ends[batch.requests.len()] = batch.end;
                batch.requests.push(request);
            }
            Ok(Request::Refund(refund)) => batch.interruption = Some(Interruption::Refund(refund)),
            Ok(Request::Hello(hello)) => batch.interruption = Some(Interruption::Hello(hello)),
            Err(fault) => batch.interruption = Some(Interruption::Fault(fault)),
        }
    }
    batch
}

fn refuse(fault: Fault, counters: &Counters, output: &mut Vec<u8>) {
    counters.fault();
    fault.encode(output);
}

/// SPEC.md section 4.
fn welcome(hello: Hello, context: &Context<'_>, greeting: Greeting) -> Result<Welcome<'static>, Fault> {
    Ok(Welcome {
        request_id: hello.request_id,
        version: hello.version()?,
        min_version: VERSION,
        max_version: VERSION,
        credentials: credentials(context),
        max_length: MAX_REQUEST_LENGTH,
        idle_timeout_ms: greeting.idle_timeout_ms,
        generation: context.snapshot.map_or(0, Snapshot::generation),
        server: concat!("keyward/", env!("CARGO_PKG_VERSION")),
    })
}
