//! Errors: the codes of ERROR frames (SPEC.md section 8), and fields that are too long to be sent.

/// A code of an ERROR frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum ErrorCode {
    /// `length` is too small for a header. The next frame cannot be found.
    FrameTooShort = 1,
    /// `length` is over the limit. The next frame cannot be found.
    FrameTooLong = 2,
    /// The daemon speaks neither the frame's version nor any of HELLO's range.
    UnsupportedVersion = 3,
    /// The kind of frame is unknown.
    UnknownKind = 4,
    /// A flag is set that the kind does not define.
    UnknownFlag = 5,
    /// The body ends inside a field.
    BodyTooShort = 6,
    /// The body continues after its last field.
    TrailingBytes = 7,
    /// A field is over its limit, is not UTF-8, or contradicts its description.
    InvalidField = 8,
    /// The stream ended inside a frame.
    TruncatedFrame = 9,
    /// The daemon does not accept the key in this form (digest or raw).
    CredentialRefused = 10,
    /// The peer's uid and gids are not on the daemon's allow lists.
    PeerRefused = 11,
    /// The daemon serves as many connections as its limit allows.
    TooManyConnections = 12,
    /// For this long, the client sent no complete request, or read none of its answers.
    IdleTimeout = 13,
    /// The daemon is shutting down.
    ShuttingDown = 14,
    /// The connections of the peer's uid hold more than a quota allows.
    QuotaExceeded = 15,
    /// The peer's uid may not send requests of this kind.
    RequestRefused = 16,
}

impl ErrorCode {
    /// Every code, in order.
    pub const ALL: [Self; 16] = [
        Self::FrameTooShort,
        Self::FrameTooLong,
        Self::UnsupportedVersion,
        Self::UnknownKind,
        Self::UnknownFlag,
        Self::BodyTooShort,
        Self::TrailingBytes,
        Self::InvalidField,
        Self::TruncatedFrame,
        Self::CredentialRefused,
        Self::PeerRefused,
        Self::TooManyConnections,
        Self::IdleTimeout,
        Self::ShuttingDown,
        Self::QuotaExceeded,
        Self::RequestRefused,
    ];

    /// The code with this value, if this version knows it.
    pub fn from_value(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u8 == value)
    }

    /// SPEC.md's name, for example `FRAME_TOO_LONG`.
    pub fn name(self) -> &'static str {
        match self {
            Self::FrameTooShort => "FRAME_TOO_SHORT",
            Self::FrameTooLong => "FRAME_TOO_LONG",
            Self::UnsupportedVersion => "UNSUPPORTED_VERSION",
            Self::UnknownKind => "UNKNOWN_KIND",
            Self::UnknownFlag => "UNKNOWN_FLAG",
            Self::BodyTooShort => "BODY_TOO_SHORT",
            Self::TrailingBytes => "TRAILING_BYTES",
            Self::InvalidField => "INVALID_FIELD",
            Self::TruncatedFrame => "TRUNCATED_FRAME",
            Self::CredentialRefused => "CREDENTIAL_REFUSED",
            Self::PeerRefused => "PEER_REFUSED",
            Self::TooManyConnections => "TOO_MANY_CONNECTIONS",
            Self::IdleTimeout => "IDLE_TIMEOUT",
            Self::ShuttingDown => "SHUTTING_DOWN",
            Self::QuotaExceeded => "QUOTA_EXCEEDED",
            Self::RequestRefused => "REQUEST_REFUSED",
        }
    }

    /// Whether the daemon closes the connection after this error.
    pub fn closes(self) -> bool {
        matches!(
            self,
            Self::FrameTooShort
                | Self::FrameTooLong
                | Self::TruncatedFrame
                | Self::PeerRefused
                | Self::TooManyConnections
                | Self::IdleTimeout
                | Self::ShuttingDown
                | Self::QuotaExceeded
        )
    }

    /// The message of the ERROR frame; `{}` stands for the detail.
    fn message(self) -> &'static str {
        match self {
            Self::FrameTooShort => "a frame's length must be at least 8, to hold its header; got {}",
            Self::FrameTooLong => "a frame's length may be at most 4096; got {}",
            Self::UnsupportedVersion => "version {} is not supported; this daemon supports 1 to 1",
            Self::UnknownKind => "{} is not a kind of request",
            Self::UnknownFlag => "flags {} are not defined for this kind of frame",
            Self::BodyTooShort => "the body of {} bytes ends inside a field",
            Self::TrailingBytes => "the body has {} bytes after its last field",
            Self::InvalidField => "field {} is over its limit, is not UTF-8, or contradicts its description",
            Self::TruncatedFrame => "the stream ended {} bytes into a frame",
            Self::CredentialRefused => {
                "this daemon does not accept a key in this form; it accepts {} (1 digest, 2 raw)"
            }
            Self::PeerRefused => "uid {} may not connect here; see allow_uids and allow_gids",
            Self::TooManyConnections => "the limit of {} connections is reached",
            Self::IdleTimeout => {
                "for {} ms, the client sent no complete request, or did not read its answers"
            }
            Self::ShuttingDown => "the daemon is shutting down",
            Self::QuotaExceeded => "the connections of this uid hold more than the quota of {}",
            Self::RequestRefused => {
                "this uid may not send requests of kind {}; see refund_uids (3) and debit_uids (4)"
            }
        }
    }
}

/// A violation of the protocol, or another reason for which the daemon does not answer: the
/// contents of an ERROR frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolError {
    /// The reason.
    pub code: ErrorCode,
    /// The offending value; its meaning depends on the code.
    pub detail: u32,
    /// The request that caused the error; 0 if there is none.
    pub request_id: u32,
}

impl ProtocolError {
    /// An error of the request `request_id`.
    pub fn new(code: ErrorCode, detail: u32, request_id: u32) -> Self {
        Self { code, detail, request_id }
    }

    /// The message for people that the ERROR frame carries.
    pub fn message(&self) -> String {
        self.code.message().replace("{}", &self.detail.to_string())
    }
}

impl std::fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message())
    }
}

impl std::error::Error for ProtocolError {}

/// A field of a request is longer than the protocol allows, so the request cannot be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {length} bytes long; the protocol allows {max}")]
pub struct FieldTooLongError {
    /// SPEC.md's name of the field.
    pub field: &'static str,
    /// Length of the field in bytes.
    pub length: usize,
    /// Largest length that the protocol allows, in bytes.
    pub max: usize,
}
