//! Why bytes are not a frame, in the protocol's own error codes (SPEC.md section 8).

/// A code of an ERROR frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum ErrorCode {
    /// `length` has no room for a header. Framing is lost.
    FrameTooShort = 1,
    /// `length` is over the limit. Framing is lost.
    FrameTooLong = 2,
    /// The frame's version, or none of HELLO's range, is spoken.
    UnsupportedVersion = 3,
    /// No such kind of frame.
    UnknownKind = 4,
    /// A flag that the kind does not define.
    UnknownFlag = 5,
    /// The body ends inside a field.
    BodyTooShort = 6,
    /// The body goes on after its last field.
    TrailingBytes = 7,
    /// A field is over its limit, not UTF-8, or against its description.
    InvalidField = 8,
    /// The stream ended inside a frame.
    TruncatedFrame = 9,
    /// A raw key where only digests are taken, or the reverse.
    CredentialRefused = 10,
    /// The peer's uid or gid is not on the daemon's list.
    PeerRefused = 11,
    /// The daemon serves as many connections as it may.
    TooManyConnections = 12,
    /// The connection was silent for too long.
    IdleTimeout = 13,
    /// The daemon is going away.
    ShuttingDown = 14,
}

impl ErrorCode {
    /// Every code, in order.
    pub const ALL: [Self; 14] = [
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
    ];

    /// The code with this number, if this version knows it.
    pub fn from_u8(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u8 == value)
    }

    /// SPEC.md's name, as in `FRAME_TOO_LONG`.
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
        }
    }

    /// Whether the connection ends after this error.
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
        )
    }

    /// The sentence for people that the daemon sends along; `{}` stands for the detail.
    fn message(self) -> &'static str {
        match self {
            Self::FrameTooShort => "a frame's length must be at least 8, to hold its header; got {}",
            Self::FrameTooLong => "a frame's length may be at most 4096; got {}",
            Self::UnsupportedVersion => "version {} is not spoken here; this daemon speaks 1 to 1",
            Self::UnknownKind => "there is no kind of request {}",
            Self::UnknownFlag => "flags {} are not defined for this kind of frame",
            Self::BodyTooShort => "the body of {} bytes ends inside a field",
            Self::TrailingBytes => "the body has {} bytes after its last field",
            Self::InvalidField => "field {} is over its limit, not UTF-8, or against its description",
            Self::TruncatedFrame => "the stream ended {} bytes into a frame",
            Self::CredentialRefused => {
                "this daemon does not take a key in this form; it takes {} (1 digest, 2 raw)"
            }
            Self::PeerRefused => "uid {} may not connect here; see allow_uids and allow_gids",
            Self::TooManyConnections => "all {} connections are in use",
            Self::IdleTimeout => "nothing was sent for {} ms",
            Self::ShuttingDown => "the daemon is shutting down",
        }
    }
}

/// One fault: what an ERROR frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolError {
    /// What is wrong.
    pub code: ErrorCode,
    /// The offending value; what it is depends on the code.
    pub detail: u32,
    /// The request that is at fault; 0 where there is none.
    pub request_id: u32,
}

impl ProtocolError {
    /// A fault of the request `request_id`.
    pub fn new(code: ErrorCode, detail: u32, request_id: u32) -> Self {
        Self { code, detail, request_id }
    }

    /// The sentence for people.
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
