//! Frames, as both sides decode them.
//!
//! * A frame is found in the same way however much follows it, and not before it is complete.
//! * What decodes encodes to the same bytes. Costs have distinct names, which find their amounts.
//! * The fast path accepts exactly the frames of its form, and decodes them to the same request.
//! * The error of a frame is encoded to a frame that a client decodes to the same error.

use keyward_protocol::{
    Answer, AnswerTexts, Credential, ErrorFrame, FAST_PATH_BYTES, FrameHeader, HEADER_BYTES, LENGTH_BYTES,
    MAX_ANSWER_LENGTH, MAX_COSTS, MAX_KEY_ID, MAX_OWNER, MAX_REQUEST_LENGTH, ParsedFrame, PreparedAnswer,
    ProtocolError, Request, Response, Verify, parse_frame, truncated_frame,
};

use super::Outcome;

/// Prefixes of a frame that are parsed one by one: more than a header and the fixed part of any
/// body.
const PREFIXES: usize = 64;

/// The most that an ERROR frame takes: a header, a code, a detail, and a text of 255 bytes.
const MAX_ERROR_FRAME: usize = HEADER_BYTES + 5 + 256;

pub(crate) fn run(data: &[u8]) -> Outcome {
    let request = parse(data, MAX_REQUEST_LENGTH).map(|(header, body, frame)| request(&header, body, frame));
    let response = parse(data, MAX_ANSWER_LENGTH).map(|(header, body, frame)| response(&header, body, frame));
    fast_path(data);
    Outcome::accepted_if(request == Some(true) || response == Some(true))
}

/// The frame at the front of `data`.
fn parse(data: &[u8], max_length: u32) -> Option<(FrameHeader, &[u8], &[u8])> {
    let parsed = parse_frame(data, max_length);
    let needed = match parsed {
        ParsedFrame::Complete { size, .. } => size,
        ParsedFrame::Invalid(_) => LENGTH_BYTES,
        ParsedFrame::Incomplete => data.len() + 1,
    };
    for length in (0..data.len().min(PREFIXES)).chain([needed.saturating_sub(1).min(data.len())]) {
        let expected = if length < needed { ParsedFrame::Incomplete } else { parsed };
        assert_eq!(parse_frame(&data[..length], max_length), expected, "the first {length} bytes");
    }
    match parsed {
        ParsedFrame::Complete { header, body, size } => {
            assert_eq!(size, LENGTH_BYTES + header.length as usize);
            assert_eq!(size, HEADER_BYTES + body.len());
            assert!(header.length <= max_length);
            Some((header, body, &data[..size]))
        }
        ParsedFrame::Incomplete => {
            assert!(data.len() < LENGTH_BYTES + max_length as usize, "a frame is longer than it can be");
            if !data.is_empty() {
                error(truncated_frame(data));
            }
            None
        }
        ParsedFrame::Invalid(problem) => {
            assert!(problem.code.closes(), "the next frame cannot be found");
            error(problem);
            None
        }
    }
}

fn request(header: &FrameHeader, body: &[u8], frame: &[u8]) -> bool {
    let mut encoded = Vec::new();
    let request = Request::decode(header, body);
    let costs = match &request {
        Ok(Request::Verify(verify)) => verify.costs,
        Ok(Request::Refund(refund)) => refund.costs,
        Ok(Request::Debit(debit)) => debit.costs,
        Ok(Request::Hello(_)) | Err(_) => None,
    };
    if let Some(costs) = costs {
        assert!((1..=MAX_COSTS).contains(&costs.iter().count()));
        costs.iter().for_each(|(name, cost)| assert_eq!(costs.get(name), Some(cost)));
    }
    match request {
        Ok(Request::Hello(hello)) => hello.encode(&mut encoded),
        Ok(Request::Verify(verify)) => verify.encode(&mut encoded).expect("it was decoded"),
        Ok(Request::Refund(refund)) => {
            assert!(refund.cost > 0 || refund.costs.is_some());
            refund.encode(&mut encoded).expect("it was decoded");
        }
        Ok(Request::Debit(debit)) => {
            assert!(debit.cost > 0 || debit.costs.is_some());
            debit.encode(&mut encoded).expect("it was decoded");
        }
        Err(problem) => {
            error(problem);
            return false;
        }
    }
    assert_eq!(encoded, frame);
    true
}

fn response(header: &FrameHeader, body: &[u8], frame: &[u8]) -> bool {
    let mut encoded = Vec::new();
    match Response::decode(header, body) {
        Ok(Response::Welcome(welcome)) => welcome.encode(&mut encoded),
        Ok(Response::Answer(answer)) => {
            prepared(&answer, frame);
            answer.encode(&mut encoded);
        }
        Ok(Response::Error(error)) => error.encode(&mut encoded),
        Err(problem) => {
            error(problem);
            return false;
        }
    }
    assert_eq!(encoded, frame);
    true
}

/// An answer with prepared texts has the same bytes.
fn prepared(answer: &Answer<'_>, frame: &[u8]) {
    if answer.metadata.is_some() || answer.shadow_limit.is_some() || answer.balances.is_some() {
        return;
    }
    assert!(answer.key_id.len() <= MAX_KEY_ID && answer.owner.len() <= MAX_OWNER);
    let (mut encoded, mut texts) = (Vec::new(), String::new());
    let (environment, plan, limit_name) = (answer.environment, answer.plan, answer.limit.name);
    AnswerTexts { environment, plan, limit_name }.encode(&mut texts);
    let prepared = PreparedAnswer {
        request_id: answer.request_id,
        verdict: answer.verdict,
        generation: answer.generation,
        limit: answer.limit.limit,
        remaining: answer.limit.remaining,
        retry_after_ms: answer.limit.retry_after_ms,
        reset_ms: answer.limit.reset_ms,
        key_id: answer.key_id.as_bytes(),
        owner: answer.owner.as_bytes(),
        texts: texts.as_bytes(),
    };
    prepared.encode(&mut encoded);
    assert_eq!(encoded, frame);
}

fn fast_path(data: &[u8]) {
    let decoded = match parse_frame(data, MAX_REQUEST_LENGTH) {
        ParsedFrame::Complete { header, body, size } if size == FAST_PATH_BYTES => {
            Request::decode(&header, body).ok()
        }
        _ => None,
    };
    let expected = match decoded {
        Some(Request::Verify(verify)) => {
            let plain = Verify { cost: verify.cost, ..Verify::new(verify.request_id, verify.credential) };
            Some(verify)
                .filter(|verify| *verify == plain && matches!(verify.credential, Credential::Digest(_)))
        }
        _ => None,
    };
    assert_eq!(Verify::parse_fast_path(data), expected);
}

fn error(problem: ProtocolError) {
    let mut encoded = Vec::new();
    problem.encode(&mut encoded);
    assert!(encoded.len() <= MAX_ERROR_FRAME);
    let ParsedFrame::Complete { header, body, size } = parse_frame(&encoded, MAX_ANSWER_LENGTH) else {
        panic!("{problem}: the ERROR is not a frame");
    };
    assert_eq!(size, encoded.len());
    let Ok(Response::Error(ErrorFrame { request_id, code, detail, closing, message })) =
        Response::decode(&header, body)
    else {
        panic!("{problem}: the ERROR cannot be decoded");
    };
    assert_eq!((request_id, code, detail), (problem.request_id, problem.code as u8, problem.detail));
    assert_eq!((closing, message), (problem.code.closes(), &*problem.message()));
}
