//! What the daemon sends: WELCOME (SPEC.md section 4), ANSWER (6, 7) and ERROR (8).

use bincode::{Decode, Encode};

use crate::codec::{Fields, cut, put_bytes16, put_text8};
use crate::error::{ErrorCode, ProtocolError};
use crate::frame::{FrameHeader, FrameKind, put_frame};
use crate::limits::{MAX_KEY_ID, MAX_MESSAGE, MAX_METADATA, MAX_NAME, MAX_OWNER};

/// Flags of ANSWER.
pub mod answer_flag {
    /// `metadata` is present.
    pub const METADATA: u16 = 0x0040;
    /// `shadow_limit` is present.
    pub const SHADOW: u16 = 0x0080;
    /// All of the above.
    pub const ALL: u16 = 0x00c0;
}

/// Flags of ERROR.
pub mod error_flag {
    /// The connection ends after this frame.
    pub const CLOSING: u16 = 0x0001;
}

/// Bit of WELCOME's `credentials`: keys may be sent as digests.
pub const CREDENTIAL_DIGEST: u8 = 1;
/// Bit of WELCOME's `credentials`: keys may be sent raw.
pub const CREDENTIAL_RAW: u8 = 2;

/// What the daemon says of a request (SPEC.md section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Go ahead; the cost has been charged, or given back.
    Allowed,
    /// No snapshot yet.
    NotReady,
    /// The snapshot is older than may be served.
    StaleSnapshot,
    /// A raw key of keyward's own form, and its checksum is wrong.
    MalformedKey,
    /// No such key.
    UnknownKey,
    /// Withdrawn for good.
    Revoked,
    /// Switched off.
    Disabled,
    /// Its time has not come.
    NotYetValid,
    /// Its time has passed.
    Expired,
    /// The request names another environment.
    WrongEnvironment,
    /// The request's address is in none of the key's networks, or absent.
    IpNotAllowed,
    /// The request's origin fits none of the key's, or is absent.
    OriginNotAllowed,
    /// The key lacks a required scope.
    MissingScope,
    /// The cost is larger than a limit's burst: never.
    CostExceedsBurst,
    /// The balance is too low: not now.
    RateLimited,
    /// A value that this version does not know: to be treated as a denial.
    Other(u8),
}

/// By their values.
const VERDICTS: [(Verdict, &str); 15] = [
    (Verdict::Allowed, "ALLOWED"),
    (Verdict::NotReady, "NOT_READY"),
    (Verdict::StaleSnapshot, "STALE_SNAPSHOT"),
    (Verdict::MalformedKey, "MALFORMED_KEY"),
    (Verdict::UnknownKey, "UNKNOWN_KEY"),
    (Verdict::Revoked, "REVOKED"),
    (Verdict::Disabled, "DISABLED"),
    (Verdict::NotYetValid, "NOT_YET_VALID"),
    (Verdict::Expired, "EXPIRED"),
    (Verdict::WrongEnvironment, "WRONG_ENVIRONMENT"),
    (Verdict::IpNotAllowed, "IP_NOT_ALLOWED"),
    (Verdict::OriginNotAllowed, "ORIGIN_NOT_ALLOWED"),
    (Verdict::MissingScope, "MISSING_SCOPE"),
    (Verdict::CostExceedsBurst, "COST_EXCEEDS_BURST"),
    (Verdict::RateLimited, "RATE_LIMITED"),
];

impl Verdict {
    /// Every verdict of this version.
    pub fn all() -> impl Iterator<Item = Self> {
        VERDICTS.iter().map(|(verdict, ..)| *verdict)
    }

    /// Its value on the wire.
    pub const fn value(self) -> u8 {
        match self {
            Self::Allowed => 0,
            Self::NotReady => 1,
            Self::StaleSnapshot => 2,
            Self::MalformedKey => 3,
            Self::UnknownKey => 4,
            Self::Revoked => 5,
            Self::Disabled => 6,
            Self::NotYetValid => 7,
            Self::Expired => 8,
            Self::WrongEnvironment => 9,
            Self::IpNotAllowed => 10,
            Self::OriginNotAllowed => 11,
            Self::MissingScope => 12,
            Self::CostExceedsBurst => 13,
            Self::RateLimited => 14,
            Self::Other(value) => value,
        }
    }

    /// The verdict with this value.
    pub fn from_value(value: u8) -> Self {
        VERDICTS.get(usize::from(value)).map_or(Self::Other(value), |row| row.0)
    }

    /// SPEC.md's name, as in `RATE_LIMITED`.
    pub fn name(self) -> &'static str {
        VERDICTS.get(usize::from(self.value())).map_or("OTHER", |row| row.1)
    }

    /// Whether the request may go ahead. A value that is not known is a denial.
    pub fn is_allowed(self) -> bool {
        self == Self::Allowed
    }
}

const _: () = {
    let mut value = 0;
    while value < VERDICTS.len() {
        assert!(VERDICTS[value].0.value() as usize == value, "the table is indexed by the value on the wire");
        value += 1;
    }
};

/// A response, borrowing from the buffer it was read into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response<'a> {
    /// The answer to HELLO.
    Welcome(Welcome<'a>),
    /// The answer to VERIFY and REFUND.
    Answer(Answer<'a>),
    /// What could not be answered.
    Error(ErrorFrame<'a>),
}

/// The daemon's greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome<'a> {
    /// Of the HELLO.
    pub request_id: u32,
    /// The version to write frames in.
    pub version: u8,
    /// Lowest version that the daemon speaks.
    pub min_version: u8,
    /// Highest version that the daemon speaks.
    pub max_version: u8,
    /// [`CREDENTIAL_DIGEST`], [`CREDENTIAL_RAW`] or both.
    pub credentials: u8,
    /// Largest `length` that the daemon accepts.
    pub max_length: u32,
    /// After how many milliseconds of silence a connection ends; 0: never.
    pub idle_timeout_ms: u32,
    /// The snapshot being served; 0: none yet.
    pub generation: u64,
    /// Name and version of the daemon.
    pub server: &'a str,
}

/// The limit that decided, and its balance; all zero and empty where none did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitState<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its burst.
    pub limit: u32,
    /// What could be spent right now, after this request.
    pub remaining: u32,
    /// Milliseconds until the same cost would be admitted, where it was not.
    pub retry_after_ms: u32,
    /// Milliseconds until it is full again.
    pub reset_ms: u32,
}

/// The daemon's answer to VERIFY and REFUND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// Of the VERIFY or REFUND.
    pub request_id: u32,
    /// Whether the request may go ahead, and why not.
    pub verdict: Verdict,
    /// The snapshot that the whole answer was taken from.
    pub generation: u64,
    /// The limit that decided.
    pub limit: LimitState<'a>,
    /// Empty where the key is not known.
    pub key_id: &'a str,
    /// Empty where there is none, as the next two.
    pub owner: &'a str,
    /// The key's environment.
    pub environment: &'a str,
    /// The key's plan.
    pub plan: &'a str,
    /// A JSON object; there when it was asked for and the key has one.
    pub metadata: Option<&'a str>,
    /// The first limit in shadow mode that would have refused.
    pub shadow_limit: Option<&'a str>,
}

/// What the daemon says where it cannot answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorFrame<'a> {
    /// Of the request at fault; 0 where there is none.
    pub request_id: u32,
    /// An [`ErrorCode`], or one of a later version.
    pub code: u8,
    /// The offending value; what it is depends on the code.
    pub detail: u32,
    /// Whether the connection ends after this frame.
    pub closing: bool,
    /// For people.
    pub message: &'a str,
}

#[derive(Encode, Decode)]
struct WelcomeHead {
    version: u8,
    min_version: u8,
    max_version: u8,
    credentials: u8,
    max_length: u32,
    idle_timeout_ms: u32,
    generation: u64,
}

#[derive(Encode, Decode)]
struct AnswerHead {
    verdict: u8,
    generation: u64,
    limit: u32,
    remaining: u32,
    retry_after_ms: u32,
    reset_ms: u32,
}

#[derive(Encode, Decode)]
struct ErrorHead {
    code: u8,
    detail: u32,
}

impl<'a> Response<'a> {
    /// Decodes the frame that [`parse_frame`](crate::parse_frame) found.
    ///
    /// # Errors
    /// When the frame is not one that a daemon may send.
    pub fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Self, ProtocolError> {
        header.version()?;
        if header.kind == FrameKind::Answer as u8 {
            Answer::decode(header, body).map(Self::Answer)
        } else if header.kind == FrameKind::Welcome as u8 {
            Welcome::decode(header, body).map(Self::Welcome)
        } else if header.kind == FrameKind::Error as u8 {
            ErrorFrame::decode(header, body).map(Self::Error)
        } else {
            Err(header.fault(ErrorCode::UnknownKind, u32::from(header.kind)))
        }
    }

    /// The request that this responds to.
    pub fn request_id(&self) -> u32 {
        match self {
            Self::Welcome(welcome) => welcome.request_id,
            Self::Answer(answer) => answer.request_id,
            Self::Error(error) => error.request_id,
        }
    }
}

impl<'a> Welcome<'a> {
    /// Appends the frame. A name that is too long is cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let head = WelcomeHead {
            version: self.version,
            min_version: self.min_version,
            max_version: self.max_version,
            credentials: self.credentials,
            max_length: self.max_length,
            idle_timeout_ms: self.idle_timeout_ms,
            generation: self.generation,
        };
        put_frame(FrameKind::Welcome, 0, self.request_id, head, out, |out| {
            put_text8(self.server, MAX_MESSAGE, out);
        });
    }

    fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Self, ProtocolError> {
        header.flags(0)?;
        let mut fields = Fields::new(body, header.request_id);
        let head: WelcomeHead = fields.fixed()?;
        let server = fields.text8(MAX_MESSAGE, 8)?;
        fields.end()?;
        Ok(Self {
            request_id: header.request_id,
            version: head.version,
            min_version: head.min_version,
            max_version: head.max_version,
            credentials: head.credentials,
            max_length: head.max_length,
            idle_timeout_ms: head.idle_timeout_ms,
            generation: head.generation,
            server,
        })
    }
}

impl<'a> Answer<'a> {
    /// An answer that knows nothing of a key.
    #[inline]
    pub fn without_key(request_id: u32, verdict: Verdict, generation: u64) -> Self {
        Self {
            request_id,
            verdict,
            generation,
            limit: LimitState::default(),
            key_id: "",
            owner: "",
            environment: "",
            plan: "",
            metadata: None,
            shadow_limit: None,
        }
    }

    /// Appends the frame. Texts over their limits are cut; a snapshot holds none.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let head = AnswerHead {
            verdict: self.verdict.value(),
            generation: self.generation,
            limit: self.limit.limit,
            remaining: self.limit.remaining,
            retry_after_ms: self.limit.retry_after_ms,
            reset_ms: self.limit.reset_ms,
        };
        let set = |flag, on| if on { flag } else { 0 };
        let flags = set(answer_flag::METADATA, self.metadata.is_some())
            | set(answer_flag::SHADOW, self.shadow_limit.is_some());
        put_frame(FrameKind::Answer, flags, self.request_id, head, out, |out| {
            put_text8(self.key_id, MAX_KEY_ID, out);
            put_text8(self.owner, MAX_OWNER, out);
            put_text8(self.environment, MAX_NAME, out);
            put_text8(self.plan, MAX_NAME, out);
            put_text8(self.limit.name, MAX_NAME, out);
            if let Some(metadata) = self.metadata {
                put_bytes16(cut(metadata, MAX_METADATA).as_bytes(), out);
            }
            if let Some(shadow_limit) = self.shadow_limit {
                put_text8(shadow_limit, MAX_NAME, out);
            }
        });
    }

    fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Self, ProtocolError> {
        let flags = header.flags(answer_flag::ALL)?;
        let has = |flag| flags & flag != 0;
        let mut fields = Fields::new(body, header.request_id);
        let head: AnswerHead = fields.fixed()?;
        let key_id = fields.text8(MAX_KEY_ID, 7)?;
        let owner = fields.text8(MAX_OWNER, 8)?;
        let environment = fields.text8(MAX_NAME, 9)?;
        let plan = fields.text8(MAX_NAME, 10)?;
        let name = fields.text8(MAX_NAME, 11)?;
        let metadata = if has(answer_flag::METADATA) { Some(fields.text16(MAX_METADATA, 12)?) } else { None };
        let shadow_limit = if has(answer_flag::SHADOW) { Some(fields.text8(MAX_NAME, 13)?) } else { None };
        fields.end()?;
        Ok(Self {
            request_id: header.request_id,
            verdict: Verdict::from_value(head.verdict),
            generation: head.generation,
            limit: LimitState {
                name,
                limit: head.limit,
                remaining: head.remaining,
                retry_after_ms: head.retry_after_ms,
                reset_ms: head.reset_ms,
            },
            key_id,
            owner,
            environment,
            plan,
            metadata,
            shadow_limit,
        })
    }
}

impl ProtocolError {
    /// Appends the ERROR frame that says this.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let message = self.message();
        let frame = ErrorFrame {
            request_id: self.request_id,
            code: self.code as u8,
            detail: self.detail,
            closing: self.code.closes(),
            message: &message,
        };
        frame.encode(out);
    }
}

impl<'a> ErrorFrame<'a> {
    /// Appends the frame. A message that is too long is cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let flags = if self.closing { error_flag::CLOSING } else { 0 };
        let head = ErrorHead { code: self.code, detail: self.detail };
        put_frame(FrameKind::Error, flags, self.request_id, head, out, |out| {
            put_text8(self.message, MAX_MESSAGE, out);
        });
    }

    fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Self, ProtocolError> {
        let flags = header.flags(error_flag::CLOSING)?;
        let mut fields = Fields::new(body, header.request_id);
        let ErrorHead { code, detail } = fields.fixed()?;
        let message = fields.text8(MAX_MESSAGE, 3)?;
        fields.end()?;
        Ok(Self {
            request_id: header.request_id,
            code,
            detail,
            closing: flags & error_flag::CLOSING != 0,
            message,
        })
    }
}
