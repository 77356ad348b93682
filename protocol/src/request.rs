//! What a client sends: HELLO (SPEC.md section 4) and VERIFY (section 5). REFUND is in `refund`.

use std::net::{IpAddr, Ipv6Addr};

use bincode::{Decode, Encode};

use crate::codec::{Fields, put, put_bytes16, put_text8};
use crate::error::{ErrorCode, ProtocolError};
use crate::frame::{FrameHeader, FrameKind, put_frame};
use crate::limits::{HEADER_BYTES, LENGTH_BYTES, MAX_KEY, MAX_NAME, MAX_ORIGIN, MAX_SCOPES, VERSION};
use crate::refund::Refund;

/// Flags of VERIFY.
pub mod verify_flag {
    /// `key` instead of `digest`.
    pub const RAW_KEY: u16 = 0x0001;
    /// `scopes` is there.
    pub const SCOPES: u16 = 0x0002;
    /// One of the scopes is enough.
    pub const ANY_SCOPE: u16 = 0x0004;
    /// `ip` is there.
    pub const IP: u16 = 0x0008;
    /// `origin` is there.
    pub const ORIGIN: u16 = 0x0010;
    /// `environment` is there.
    pub const ENVIRONMENT: u16 = 0x0020;
    /// Return the key's metadata.
    pub const METADATA: u16 = 0x0040;
    /// All of the above.
    pub const ALL: u16 = 0x007f;
}

/// Numbers of VERIFY's fields, as INVALID_FIELD tells them.
pub mod verify_field {
    /// `key`
    pub const KEY: u32 = 3;
    /// `scopes`
    pub const SCOPES: u32 = 4;
    /// `origin`
    pub const ORIGIN: u32 = 6;
    /// `environment`
    pub const ENVIRONMENT: u32 = 7;
}

/// A request, borrowing from the buffer it was read into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// A greeting, or a ping.
    Hello(Hello),
    /// A question about a key.
    Verify(Verify<'a>),
    /// What a key was charged is given back.
    Refund(Refund<'a>),
}

/// A client's greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Returned in the answer.
    pub request_id: u32,
    /// Lowest version that the client speaks.
    pub min_version: u8,
    /// Highest version that the client speaks.
    pub max_version: u8,
}

/// May this key do this, now?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verify<'a> {
    /// Returned in the answer.
    pub request_id: u32,
    /// What to charge; 0 is a peek.
    pub cost: u32,
    /// The key.
    pub credential: Credential<'a>,
    /// What the key has to be allowed to do.
    pub scopes: Option<Scopes<'a>>,
    /// Where the request came from; an IPv4 address is mapped (`::ffff:a.b.c.d`).
    pub ip: Option<Ipv6Addr>,
    /// The web origin of the request.
    pub origin: Option<&'a str>,
    /// The environment that the caller serves.
    pub environment: Option<&'a str>,
    /// Whether the answer should carry the key's metadata.
    pub want_metadata: bool,
}

/// How the key is given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Credential<'a> {
    /// Its SHA-256.
    Digest([u8; 32]),
    /// The key itself.
    RawKey(&'a [u8]),
}

/// A raw key must not reach a log through `{:?}`.
impl std::fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Digest(_) => f.write_str("Digest(..)"),
            Self::RawKey(key) => write!(f, "RawKey({} bytes)", key.len()),
        }
    }
}

/// Required scopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scopes<'a> {
    /// Names separated by single spaces; at least one.
    pub names: &'a str,
    /// How many of them the key needs.
    pub mode: ScopeMode,
}

/// How many of the required scopes a key needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScopeMode {
    /// Every one.
    #[default]
    All,
    /// At least one.
    Any,
}

/// A field of a request that is longer than the protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {length} bytes long; the protocol allows {max}")]
pub struct FieldTooLongError {
    /// SPEC.md's name of the field.
    pub field: &'static str,
    /// How long it is.
    pub length: usize,
    /// How long it may be.
    pub max: usize,
}

#[derive(Encode)]
struct HelloBody {
    min_version: u8,
    max_version: u8,
}

/// Bytes of an ordinary VERIFY: header, cost and digest.
pub const FAST_PATH_BYTES: usize = HEADER_BYTES + 4 + 32;

/// How every ordinary VERIFY begins, as a number: length, version, kind, and no flags.
const FAST_PATH_PREFIX: u64 = {
    let [a, b, c, d] = ((FAST_PATH_BYTES - LENGTH_BYTES) as u32).to_le_bytes();
    u64::from_le_bytes([a, b, c, d, VERSION, FrameKind::Verify as u8, 0, 0])
};

/// The whole of an ordinary VERIFY's body.
#[derive(Decode)]
struct DigestHead {
    cost: u32,
    digest: [u8; 32],
}

impl<'a> Request<'a> {
    /// Decodes the frame that [`parse_frame`](crate::parse_frame) found.
    ///
    /// # Errors
    /// The first fault in SPEC.md's order: version, kind, flags, fields, trailing bytes.
    pub fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Self, ProtocolError> {
        header.version()?;
        if header.kind == FrameKind::Verify as u8 {
            Verify::decode(header, body).map(Self::Verify)
        } else if header.kind == FrameKind::Refund as u8 {
            Refund::decode(header, body).map(Self::Refund)
        } else if header.kind == FrameKind::Hello as u8 {
            Hello::decode(header, body).map(Self::Hello)
        } else {
            Err(header.fault(ErrorCode::UnknownKind, u32::from(header.kind)))
        }
    }
}

impl Hello {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let body = HelloBody { min_version: self.min_version, max_version: self.max_version };
        put_frame(FrameKind::Hello, 0, self.request_id, body, out, |_| ());
    }

    /// The highest version that both sides speak.
    ///
    /// # Errors
    /// `UNSUPPORTED_VERSION` where the client's range does not hold [`VERSION`].
    pub fn version(&self) -> Result<u8, ProtocolError> {
        if (self.min_version..=self.max_version).contains(&VERSION) {
            return Ok(VERSION);
        }
        Err(ProtocolError::new(ErrorCode::UnsupportedVersion, u32::from(self.max_version), self.request_id))
    }

    fn decode(header: &FrameHeader, body: &[u8]) -> Result<Self, ProtocolError> {
        header.flags(0)?;
        let mut fields = Fields::new(body, header.request_id);
        let min_version = fields.fixed()?;
        if min_version == 0 {
            return Err(fields.invalid(1));
        }
        let max_version = fields.fixed()?;
        if max_version < min_version {
            return Err(fields.invalid(2));
        }
        fields.end()?;
        Ok(Self { request_id: header.request_id, min_version, max_version })
    }
}

impl<'a> Verify<'a> {
    /// An ordinary request: one unit of cost, nothing else asked.
    #[inline]
    pub fn new(request_id: u32, credential: Credential<'a>) -> Self {
        Self {
            request_id,
            cost: 1,
            credential,
            scopes: None,
            ip: None,
            origin: None,
            environment: None,
            want_metadata: false,
        }
    }

    /// The request at the front of `buffer`, if it is the ordinary one: by digest, and nothing asked but a cost. `None` says only
    /// that [`parse_frame`](crate::parse_frame) and [`Request::decode`] have to look.
    ///
    /// Nearly all requests are ordinary, and one comparison of eight bytes tells that nothing can be wrong with them.
    #[inline]
    pub fn parse_fast_path(buffer: &[u8]) -> Option<Self> {
        let frame: &[u8; FAST_PATH_BYTES] = buffer.first_chunk()?;
        let (start, rest) = frame.split_first_chunk()?;
        let (request_id, rest) = rest.split_first_chunk()?;
        let (cost, digest) = rest.split_first_chunk()?;
        if u64::from_le_bytes(*start) != FAST_PATH_PREFIX {
            return None;
        }
        let credential = Credential::Digest(*digest.first_chunk()?);
        Some(Self {
            cost: u32::from_le_bytes(*cost),
            ..Self::new(u32::from_le_bytes(*request_id), credential)
        })
    }

    /// The same with the address that the request came from.
    pub fn from_ip(self, ip: IpAddr) -> Self {
        let ip = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Self { ip: Some(ip), ..self }
    }

    /// Appends the frame.
    ///
    /// # Errors
    /// When a field is over its limit; nothing has been appended then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FieldTooLongError> {
        self.check_lengths()?;
        put_frame(FrameKind::Verify, self.flags(), self.request_id, self.cost, out, |out| {
            match self.credential {
                Credential::Digest(digest) => put(digest, out),
                Credential::RawKey(key) => put_bytes16(key, out),
            }
            if let Some(scopes) = self.scopes {
                put_bytes16(scopes.names.as_bytes(), out);
            }
            if let Some(ip) = self.ip {
                put(ip.octets(), out);
            }
            if let Some(origin) = self.origin {
                put_bytes16(origin.as_bytes(), out);
            }
            if let Some(environment) = self.environment {
                put_text8(environment, MAX_NAME, out);
            }
        });
        Ok(())
    }

    fn flags(&self) -> u16 {
        let set = |flag, on| if on { flag } else { 0 };
        let any = self.scopes.is_some_and(|scopes| scopes.mode == ScopeMode::Any);
        set(verify_flag::RAW_KEY, matches!(self.credential, Credential::RawKey(_)))
            | set(verify_flag::SCOPES, self.scopes.is_some())
            | set(verify_flag::ANY_SCOPE, any)
            | set(verify_flag::IP, self.ip.is_some())
            | set(verify_flag::ORIGIN, self.origin.is_some())
            | set(verify_flag::ENVIRONMENT, self.environment.is_some())
            | set(verify_flag::METADATA, self.want_metadata)
    }

    fn check_lengths(&self) -> Result<(), FieldTooLongError> {
        let key = if let Credential::RawKey(key) = self.credential { key.len() } else { 0 };
        let scopes = self.scopes.map_or(0, |scopes| scopes.names.len());
        for (field, length, max) in [
            ("key", key, MAX_KEY),
            ("scopes", scopes, MAX_SCOPES),
            ("origin", self.origin.map_or(0, str::len), MAX_ORIGIN),
            ("environment", self.environment.map_or(0, str::len), MAX_NAME),
        ] {
            if length > max {
                return Err(FieldTooLongError { field, length, max });
            }
        }
        Ok(())
    }

    fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Self, ProtocolError> {
        let flags = header.flags(verify_flag::ALL)?;
        let has = |flag| flags & flag != 0;
        let mut fields = Fields::new(body, header.request_id);
        let (cost, credential) = if has(verify_flag::RAW_KEY) {
            (fields.fixed()?, Credential::RawKey(fields.bytes16(MAX_KEY, verify_field::KEY)?))
        } else {
            let DigestHead { cost, digest } = fields.fixed()?;
            (cost, Credential::Digest(digest))
        };
        let mut verify = Self { cost, ..Self::new(header.request_id, credential) };
        if has(verify_flag::SCOPES) {
            let names = fields.text16(MAX_SCOPES, verify_field::SCOPES)?;
            if names.split(' ').any(str::is_empty) {
                return Err(fields.invalid(verify_field::SCOPES));
            }
            let mode = if has(verify_flag::ANY_SCOPE) { ScopeMode::Any } else { ScopeMode::All };
            verify.scopes = Some(Scopes { names, mode });
        } else if has(verify_flag::ANY_SCOPE) {
            return Err(fields.invalid(verify_field::SCOPES));
        }
        if has(verify_flag::IP) {
            verify.ip = Some(Ipv6Addr::from(fields.fixed::<[u8; 16]>()?));
        }
        if has(verify_flag::ORIGIN) {
            verify.origin = Some(fields.text16(MAX_ORIGIN, verify_field::ORIGIN)?);
        }
        if has(verify_flag::ENVIRONMENT) {
            verify.environment = Some(fields.text8(MAX_NAME, verify_field::ENVIRONMENT)?);
        }
        verify.want_metadata = has(verify_flag::METADATA);
        fields.end()?;
        Ok(verify)
    }
}
