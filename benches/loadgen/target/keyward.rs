//! keyward itself: VERIFY frames, and ANSWERs whose request ids have to come in order.

use std::os::unix::net::UnixStream;

use keyward_protocol::{
    CREDENTIAL_DIGEST, CREDENTIAL_RAW, Credential, ErrorCode, ErrorFrame, FrameHeader, FrameKind, Hello,
    MAX_ANSWER_LENGTH, ParsedFrame, Response, VERSION, Verdict, Verify, Welcome, answer_flag, parse_frame,
};

use super::{Fault, Ring, Tally, Target, ask};
use crate::keys::{Keys, Wanted};

/// Bytes of an ANSWER's body with its five texts, at least: what is before them, and a length for each.
const SHORTEST: usize = 25 + 5;

/// How keys are asked about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// What each request costs; 0 is a peek.
    pub(crate) cost: u32,
    /// Whether the keys themselves are sent, and not their digests.
    pub(crate) raw: bool,
    /// Share of the requests that are for known keys.
    pub(crate) hit_rate: f64,
}

/// A daemon to load.
pub(crate) struct Keyward {
    ring: Ring,
    style: Style,
}

impl Keyward {
    /// Encodes the requests. The id of each is its place in the ring.
    ///
    /// # Errors
    /// When a key is longer than the protocol allows.
    pub(crate) fn new(keys: &Keys, style: Style) -> Result<Self, Fault> {
        let mut too_long = None;
        let mut plan = keys.plan(style.hit_rate);
        let ring = Ring::new(plan.len(), |number, out| {
            let wanted = plan.next_key();
            let credential = match (&wanted, style.raw) {
                (Wanted::Raw(key), _) => Credential::RawKey(key),
                (Wanted::Digest(digest), true) => Credential::RawKey(digest),
                (Wanted::Digest(digest), false) => Credential::Digest(*digest),
            };
            let verify = Verify { cost: style.cost, ..Verify::new(number as u32, credential) };
            if let Err(error) = verify.encode(out) {
                too_long.get_or_insert(error);
            }
        });
        match (too_long, ring) {
            (Some(error), _) => Err(Fault::Unfit(format!("--keys: {error}"))),
            (None, Err(error)) => Err(Fault::Unfit(error.to_string())),
            (None, Ok(ring)) => Ok(Self { ring, style }),
        }
    }

    fn welcome(&self, welcome: &Welcome<'_>) -> Result<(), Fault> {
        let wanted = if self.style.raw { CREDENTIAL_RAW } else { CREDENTIAL_DIGEST };
        match (welcome.credentials & wanted, self.style.raw) {
            (0, true) => Err(Fault::Refused("it takes digests only: leave out --raw".into())),
            (0, false) => {
                Err(Fault::Refused("it has a pepper and takes raw keys only: add --raw, and --keys".into()))
            }
            _ => Ok(()),
        }
    }
}

impl Target for Keyward {
    fn name(&self) -> &'static str {
        "keyward"
    }

    fn ring(&self) -> &Ring {
        &self.ring
    }

    /// HELLO: whether it is a keyward, of our version, and takes keys as they will be sent.
    fn greet(&self, stream: &mut UnixStream) -> Result<(), Fault> {
        let mut hello = Vec::new();
        Hello { request_id: u32::MAX, min_version: VERSION, max_version: VERSION }.encode(&mut hello);
        ask(stream, &hello, |input| match frame(input)? {
            None => Ok(None),
            Some((header, body, size)) => match Response::decode(&header, body).map_err(broken)? {
                Response::Welcome(welcome) if size == input.len() => self.welcome(&welcome).map(Some),
                Response::Error(error) => Err(refused(&error)),
                _ => Err(Fault::Broken("HELLO was not answered with one WELCOME".into())),
            },
        })
    }

    fn answer(
        &self,
        input: &[u8],
        number: u64,
        thorough: bool,
        tally: &mut Tally,
    ) -> Result<Option<usize>, Fault> {
        let Some((header, body, size)) = frame(input)? else {
            return Ok(None);
        };
        let due = number as u32;
        let is_answer = header.kind == FrameKind::Answer as u8;
        if is_answer && header.request_id != due {
            return Err(Fault::Broken(format!("answer {} came where {due} was due", header.request_id)));
        }
        if is_answer && !thorough {
            tally.count(verdict(&header, body)?);
            return Ok(Some(size));
        }
        match Response::decode(&header, body).map_err(broken)? {
            Response::Answer(answer) => tally.count(answer.verdict.value()),
            Response::Error(error) if error.closing => return Err(refused(&error)),
            Response::Error(error) if error.request_id == due => tally.error(code(&error)),
            response => {
                let id = response.request_id();
                return Err(Fault::Broken(format!("no answer came where {due} was due, but response {id}")));
            }
        }
        Ok(Some(size))
    }

    fn outcome(&self, outcome: u8) -> String {
        match Verdict::from_value(outcome) {
            Verdict::Other(value) => format!("OTHER_{value}"),
            verdict => verdict.name().into(),
        }
    }
}

/// A frame's header, its body and its size.
type Frame<'a> = (FrameHeader, &'a [u8], usize);

fn frame(input: &[u8]) -> Result<Option<Frame<'_>>, Fault> {
    match parse_frame(input, MAX_ANSWER_LENGTH) {
        ParsedFrame::Complete { header, body, size } => Ok(Some((header, body, size))),
        ParsedFrame::Incomplete => Ok(None),
        ParsedFrame::Invalid(fault) => Err(broken(fault)),
    }
}

/// The verdict of an ANSWER, by its header. What a client takes time for counts as the server's: walking through the texts of each would
/// be a twentieth of all that is measured. They are left to the thorough look.
fn verdict(header: &FrameHeader, body: &[u8]) -> Result<u8, Fault> {
    let malformed = || Fault::Broken(format!("answer {} is malformed", header.request_id));
    let known = answer_flag::METADATA | answer_flag::SHADOW;
    if header.version != VERSION || header.flags & !known != 0 {
        return Err(malformed());
    }
    body.first().filter(|_| body.len() >= SHORTEST).copied().ok_or_else(malformed)
}

fn refused(error: &ErrorFrame<'_>) -> Fault {
    Fault::Refused(format!("{}: {}", code(error), error.message))
}

fn code(error: &ErrorFrame<'_>) -> String {
    ErrorCode::from_value(error.code)
        .map_or_else(|| format!("ERROR_{}", error.code), |code| code.name().into())
}

fn broken(fault: keyward_protocol::ProtocolError) -> Fault {
    Fault::Broken(fault.to_string())
}

#[cfg(test)]
mod tests {
    use keyward_protocol::{Answer, Request};

    use super::super::tests::{holds_for_every_cut, take_all};
    use super::*;

    const STYLE: Style = Style { cost: 2, raw: false, hit_rate: 1.0 };

    fn target() -> Keyward {
        Keyward::new(&Keys::digests(vec![[7; 32]]), STYLE).expect("one key")
    }

    fn answer(request_id: u32, verdict: Verdict) -> Vec<u8> {
        let mut out = Vec::new();
        Answer { key_id: "k1", owner: "acme", ..Answer::without_key(request_id, verdict, 3) }
            .encode(&mut out);
        out
    }

    #[test]
    fn a_request_is_an_ordinary_verify() {
        let target = target();
        let (header, body, size) = frame(target.ring.request(1)).expect("a frame").expect("whole");
        assert_eq!(size, 48);
        let expected = Verify { cost: 2, ..Verify::new(1, Credential::Digest([7; 32])) };
        assert_eq!(Request::decode(&header, body), Ok(Request::Verify(expected)));
    }

    #[test]
    fn raw_keys_are_sent_as_they_are_and_unknown_ones_too() {
        let mut keys = Keys::default();
        keys.add_raw(b"secret");
        let target = Keyward::new(&keys, Style { raw: true, hit_rate: 0.5, ..STYLE }).expect("a key");
        let key = |number| {
            let (header, body, _) = frame(target.ring.request(number)).expect("a frame").expect("whole");
            match Request::decode(&header, body) {
                Ok(Request::Verify(Verify { credential: Credential::RawKey(key), .. })) => key.len(),
                other => panic!("{other:?}"),
            }
        };
        let lengths = [key(0), key(1), key(2), key(3)];
        assert_eq!(lengths.iter().filter(|length| **length == 6).count(), 2, "{lengths:?}");
        keys.add_raw(&[b'x'; 1025]);
        let error = Keyward::new(&keys, Style { raw: true, ..STYLE }).err().expect("too long").to_string();
        assert!(error.contains("1025 bytes long"), "{error}");
    }

    #[test]
    fn answers_are_counted_by_verdict() {
        let target = target();
        let stream =
            [answer(0, Verdict::Allowed), answer(1, Verdict::RateLimited), answer(2, Verdict::Allowed)];
        let (tally, left) = take_all(&target, &stream.concat()).expect("in order");
        assert_eq!((tally.outcomes().collect::<Vec<_>>(), left), (vec![(0, 2), (14, 1)], 0));
        assert_eq!(target.outcome(14), "RATE_LIMITED");
        assert_eq!(target.outcome(99), "OTHER_99");
        holds_for_every_cut(&target, &stream[0]);
    }

    #[test]
    fn an_answer_out_of_order_is_an_error_and_no_number() {
        let stream = [answer(0, Verdict::Allowed), answer(2, Verdict::Allowed)].concat();
        let error = take_all(&target(), &stream).expect_err("out of order").to_string();
        assert!(error.ends_with("answer 2 came where 1 was due"), "{error}");
    }

    #[test]
    fn a_malformed_answer_is_found_and_at_the_latest_by_a_thorough_look() {
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
            for thorough in [false, true] {
                let taken = target().answer(&bytes, 0, thorough, &mut Tally::default());
                assert!(taken.is_err(), "{what}, {thorough}: {taken:?}");
            }
        }
        for (what, length) in [("a text that is too long", 200), ("one that is too short", 1)] {
            let taken = target().answer(&change(texts, length), 0, true, &mut Tally::default());
            assert!(taken.is_err(), "{what}: {taken:?}");
        }
    }

    #[test]
    fn an_error_is_counted_and_a_closing_one_ends_the_load() {
        let error = |closing, request_id| {
            let mut out = Vec::new();
            ErrorFrame { request_id, code: 10, detail: 2, closing, message: "no" }.encode(&mut out);
            out
        };
        let (tally, _) = take_all(&target(), &error(false, 0)).expect("counted");
        assert_eq!(tally.errors["CREDENTIAL_REFUSED"], 1);
        assert!(matches!(take_all(&target(), &error(true, 0)), Err(Fault::Refused(_))));
        assert!(matches!(take_all(&target(), &error(false, 5)), Err(Fault::Broken(_))));
    }
}
