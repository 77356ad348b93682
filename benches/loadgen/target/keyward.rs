//! keyward: VERIFY frames, and ANSWER frames whose request ids must arrive in order.

use std::os::unix::net::UnixStream;

use keyward_protocol::{
    CREDENTIAL_DIGEST, CREDENTIAL_RAW, Credential, ErrorCode, ErrorFrame, FrameHeader, FrameKind, Hello,
    MAX_ANSWER_LENGTH, ParsedFrame, Response, VERSION, Verdict, Verify, Welcome, answer_flag, parse_frame,
};

use super::{EncodedRequests, LoadError, Tally, Target, round_trip};
use crate::keys::{Keys, RequestedKey};

/// Smallest body of an ANSWER in bytes: its fixed part, and a length for each of its five texts.
const MIN_ANSWER_BODY: usize = 25 + 5;

/// Options of the VERIFY requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VerifyOptions {
    /// Cost of each request; 0 is a peek.
    pub(crate) cost: u32,
    /// Whether to send the keys themselves instead of their digests.
    pub(crate) raw: bool,
    /// Share of requests for known keys.
    pub(crate) hit_rate: f64,
}

/// A keyward daemon.
pub(crate) struct Keyward {
    requests: EncodedRequests,
    options: VerifyOptions,
}

impl Keyward {
    /// Encodes the requests. The id of a request is its number in the sequence.
    ///
    /// # Errors
    /// When a key is longer than the protocol allows.
    pub(crate) fn new(keys: &Keys, options: VerifyOptions) -> Result<Self, LoadError> {
        let mut too_long = None;
        let mut sequence = keys.sequence(options.hit_rate);
        let requests = EncodedRequests::new(sequence.len(), |number, out| {
            let key = sequence.next_key();
            let credential = match (&key, options.raw) {
                (RequestedKey::Raw(key), _) => Credential::RawKey(key),
                (RequestedKey::Digest(digest), true) => Credential::RawKey(digest),
                (RequestedKey::Digest(digest), false) => Credential::Digest(*digest),
            };
            let verify = Verify { cost: options.cost, ..Verify::new(number as u32, credential) };
            if let Err(error) = verify.encode(out) {
                too_long.get_or_insert(error);
            }
        });
        match (too_long, requests) {
            (Some(error), _) => Err(LoadError::KeyTooLong(error)),
            (None, requests) => Ok(Self { requests: requests?, options }),
        }
    }

    /// Checks that the daemon accepts credentials of the kind that will be sent.
    fn check_welcome(&self, welcome: &Welcome<'_>) -> Result<(), LoadError> {
        let needed = if self.options.raw { CREDENTIAL_RAW } else { CREDENTIAL_DIGEST };
        match (welcome.credentials & needed, self.options.raw) {
            (0, true) => Err(LoadError::Refused("it takes digests only: leave out --raw".into())),
            (0, false) => Err(LoadError::Refused(
                "it has a pepper and takes raw keys only: add --raw, and --keys".into(),
            )),
            _ => Ok(()),
        }
    }
}

impl Target for Keyward {
    fn name(&self) -> &'static str {
        "keyward"
    }

    fn requests(&self) -> &EncodedRequests {
        &self.requests
    }

    /// Sends HELLO, and checks that the server is keyward, speaks this version, and accepts the
    /// credentials.
    fn handshake(&self, stream: &mut UnixStream) -> Result<(), LoadError> {
        let mut hello = Vec::new();
        Hello { request_id: u32::MAX, min_version: VERSION, max_version: VERSION }.encode(&mut hello);
        round_trip(stream, &hello, |input| match parse(input)? {
            None => Ok(None),
            Some((header, body, size)) => match Response::decode(&header, body).map_err(protocol_error)? {
                Response::Welcome(welcome) if size == input.len() => self.check_welcome(&welcome).map(Some),
                Response::Error(error) => Err(refused(&error)),
                _ => Err(LoadError::Protocol("HELLO was not answered with one WELCOME".into())),
            },
        })
    }

    fn parse_answer(
        &self,
        input: &[u8],
        number: u64,
        is_full_check: bool,
        tally: &mut Tally,
    ) -> Result<Option<usize>, LoadError> {
        let Some((header, body, size)) = parse(input)? else {
            return Ok(None);
        };
        let due = number as u32;
        let is_answer = header.kind == FrameKind::Answer as u8;
        if is_answer && header.request_id != due {
            return Err(LoadError::Protocol(format!(
                "answer {} came where {due} was due",
                header.request_id
            )));
        }
        if is_answer && !is_full_check {
            tally.count(verdict(&header, body)?);
            return Ok(Some(size));
        }
        match Response::decode(&header, body).map_err(protocol_error)? {
            Response::Answer(answer) => tally.count(answer.verdict.value()),
            Response::Error(error) if error.closing => return Err(refused(&error)),
            Response::Error(error) if error.request_id == due => tally.count_error(error_name(&error)),
            response => {
                let id = response.request_id();
                return Err(LoadError::Protocol(format!(
                    "no answer came where {due} was due, but response {id}"
                )));
            }
        }
        Ok(Some(size))
    }

    fn outcome_name(&self, outcome: u8) -> String {
        match Verdict::from_value(outcome) {
            Verdict::Other(_) => format!("OTHER_{outcome}"),
            verdict => verdict.name().into(),
        }
    }
}

/// The header, the body and the size of a frame.
type Frame<'a> = (FrameHeader, &'a [u8], usize);

/// Parses the frame at the start of `input`; `None` if it is incomplete.
fn parse(input: &[u8]) -> Result<Option<Frame<'_>>, LoadError> {
    match parse_frame(input, MAX_ANSWER_LENGTH) {
        ParsedFrame::Complete { header, body, size } => Ok(Some((header, body, size))),
        ParsedFrame::Incomplete => Ok(None),
        ParsedFrame::Invalid(error) => Err(protocol_error(error)),
    }
}

/// The verdict of an ANSWER, without parsing its texts. Time that the client spends counts as the
/// server's, and parsing the texts of each answer would be a twentieth of the measurement. A full
/// check parses them.
fn verdict(header: &FrameHeader, body: &[u8]) -> Result<u8, LoadError> {
    let malformed = || LoadError::Protocol(format!("answer {} is malformed", header.request_id));
    let known = answer_flag::METADATA | answer_flag::SHADOW;
    if header.version != VERSION || header.flags & !known != 0 {
        return Err(malformed());
    }
    body.first().filter(|_| body.len() >= MIN_ANSWER_BODY).copied().ok_or_else(malformed)
}

fn refused(error: &ErrorFrame<'_>) -> LoadError {
    LoadError::Refused(format!("{}: {}", error_name(error), error.message))
}

fn error_name(error: &ErrorFrame<'_>) -> String {
    ErrorCode::from_value(error.code)
        .map_or_else(|| format!("ERROR_{}", error.code), |code| code.name().into())
}

fn protocol_error(error: keyward_protocol::ProtocolError) -> LoadError {
    LoadError::Protocol(error.to_string())
}

#[cfg(test)]
mod tests {
    use keyward_protocol::{Answer, Request};

    use super::super::tests::{assert_complete_only_as_a_whole, parse_all};
    use super::*;

    const OPTIONS: VerifyOptions = VerifyOptions { cost: 2, raw: false, hit_rate: 1.0 };

    fn target() -> Keyward {
        Keyward::new(&Keys::digests(vec![[7; 32]]), OPTIONS).expect("one key")
    }

    fn answer(request_id: u32, verdict: Verdict) -> Vec<u8> {
        let mut out = Vec::new();
        Answer { key_id: "k1", owner: "acme", ..Answer::without_key(request_id, verdict, 3) }
            .encode(&mut out);
        out
    }

    #[test]
    fn request_is_an_ordinary_verify() {
        let target = target();
        let (header, body, size) =
            parse(target.requests.request(1)).expect("a frame").expect("it is complete");
        assert_eq!(size, 48);
        let expected = Verify { cost: 2, ..Verify::new(1, Credential::Digest([7; 32])) };
        assert_eq!(Request::decode(&header, body), Ok(Request::Verify(expected)));
    }

    #[test]
    fn raw_keys_and_unknown_keys_are_sent_raw() {
        let mut keys = Keys::default();
        keys.add_raw(b"secret");
        let target =
            Keyward::new(&keys, VerifyOptions { raw: true, hit_rate: 0.5, ..OPTIONS }).expect("a key");
        let key = |number| {
            let (header, body, _) =
                parse(target.requests.request(number)).expect("a frame").expect("it is complete");
            match Request::decode(&header, body) {
                Ok(Request::Verify(Verify { credential: Credential::RawKey(key), .. })) => key.len(),
                other => panic!("{other:?}"),
            }
        };
        let lengths = [key(0), key(1), key(2), key(3)];
        assert_eq!(lengths.iter().filter(|length| **length == 6).count(), 2, "{lengths:?}");
        keys.add_raw(&[b'x'; 1025]);
        let error =
            Keyward::new(&keys, VerifyOptions { raw: true, ..OPTIONS }).err().expect("too long").to_string();
        assert!(error.contains("1025 bytes long"), "{error}");
    }

    #[test]
    fn answers_are_counted_by_verdict() {
        let target = target();
        let stream =
            [answer(0, Verdict::Allowed), answer(1, Verdict::RateLimited), answer(2, Verdict::Allowed)];
        let (tally, left) = parse_all(&target, &stream.concat()).expect("in order");
        assert_eq!((tally.outcomes().collect::<Vec<_>>(), left), (vec![(0, 2), (14, 1)], 0));
        assert_eq!(target.outcome_name(14), "RATE_LIMITED");
        assert_eq!(target.outcome_name(99), "OTHER_99");
        assert_complete_only_as_a_whole(&target, &stream[0]);
    }

    #[test]
    fn answer_out_of_order_is_an_error() {
        let stream = [answer(0, Verdict::Allowed), answer(2, Verdict::Allowed)].concat();
        let error = parse_all(&target(), &stream).expect_err("out of order").to_string();
        assert!(error.ends_with("answer 2 came where 1 was due"), "{error}");
    }

    #[test]
    fn malformed_answer_is_an_error() {
        let good = answer(0, Verdict::Allowed);
        let change = |at: usize, value: u8| {
            let mut frame = good.clone();
            frame[at] = value;
            frame
        };
        let texts = 12 + 25;
        for (what, bytes) in [
            ("a length", change(0, 7)),
            ("the version", change(4, 2)),
            ("the kind", change(5, 0x01)),
            ("a flag", change(6, 1)),
        ] {
            for is_full_check in [false, true] {
                let parsed = target().parse_answer(&bytes, 0, is_full_check, &mut Tally::default());
                assert!(parsed.is_err(), "{what}, {is_full_check}: {parsed:?}");
            }
        }
        for (what, length) in [("a text that is too long", 200), ("one that is too short", 1)] {
            let parsed = target().parse_answer(&change(texts, length), 0, true, &mut Tally::default());
            assert!(parsed.is_err(), "{what}: {parsed:?}");
        }
    }

    #[test]
    fn error_is_counted_and_closing_error_ends_the_load() {
        let error = |closing, request_id| {
            let mut out = Vec::new();
            ErrorFrame { request_id, code: 10, detail: 2, closing, message: "no" }.encode(&mut out);
            out
        };
        let (tally, _) = parse_all(&target(), &error(false, 0)).expect("counted");
        assert_eq!(tally.errors["CREDENTIAL_REFUSED"], 1);
        assert!(matches!(parse_all(&target(), &error(true, 0)), Err(LoadError::Refused(_))));
        assert!(matches!(parse_all(&target(), &error(false, 5)), Err(LoadError::Protocol(_))));
    }
}
