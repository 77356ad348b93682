//! VERIFY (SPEC.md section 5): asks whether a key may do something now.

use std::net::{IpAddr, Ipv6Addr};

use crate::codec::{BodyReader, append_bytes16, append_fixed, append_text8};
use crate::costs::Costs;
use crate::credential::{Credential, RAW_KEY_FLAG};
use crate::error::{FieldTooLongError, ProtocolError};
use crate::frame::{FrameHeader, FrameKind, append_frame};
use crate::layout::{WireSize, wire_struct};
use crate::limits::{HEADER_BYTES, LENGTH_BYTES, MAX_KEY, MAX_NAME, MAX_ORIGIN, MAX_SCOPES, VERSION};

/// Flag of VERIFY, REFUND and DEBIT: `costs` is present.
pub(crate) const COSTS_FLAG: u16 = 0x0080;

/// Flag of VERIFY, REFUND and DEBIT: the answer shall carry the balances.
pub(crate) const BALANCES_FLAG: u16 = 0x0100;

/// Flags of VERIFY.
pub mod verify_flag {
    /// The frame has `key` instead of `digest`.
    pub const RAW_KEY: u16 = super::RAW_KEY_FLAG;
    /// `scopes` is present.
    pub const SCOPES: u16 = 0x0002;
    /// One of the scopes is enough.
    pub const ANY_SCOPE: u16 = 0x0004;
    /// `ip` is present.
    pub const IP: u16 = 0x0008;
    /// `origin` is present.
    pub const ORIGIN: u16 = 0x0010;
    /// `environment` is present.
    pub const ENVIRONMENT: u16 = 0x0020;
    /// The answer shall carry the key's metadata.
    pub const METADATA: u16 = 0x0040;
    /// `costs` is present.
    pub const COSTS: u16 = super::COSTS_FLAG;
    /// The answer shall carry the balances.
    pub const BALANCES: u16 = super::BALANCES_FLAG;
    /// All of the above.
    pub const ALL: u16 = 0x01ff;
}

/// Numbers of VERIFY's fields, as reported by INVALID_FIELD.
mod verify_field {
    pub(super) const KEY: u32 = 3;
    pub(super) const SCOPES: u32 = 4;
    pub(super) const ORIGIN: u32 = 6;
    pub(super) const ENVIRONMENT: u32 = 7;
    pub(super) const COSTS: u32 = 8;
}

/// May this key do this, now?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verify<'a> {
    /// Returned in the response.
    pub request_id: u32,
    /// What to charge each of the key's limits that `costs` does not name. If all amounts are 0,
    /// the request is a peek.
    pub cost: u32,
    /// The key.
    pub credential: Credential<'a>,
    /// The scopes that the key needs.
    pub scopes: Option<Scopes<'a>>,
    /// The address that the request came from; an IPv4 address is mapped (`::ffff:a.b.c.d`).
    pub ip: Option<Ipv6Addr>,
    /// The web origin of the request.
    pub origin: Option<&'a str>,
    /// The environment that the caller serves.
    pub environment: Option<&'a str>,
    /// What to charge the limits with these names.
    pub costs: Option<Costs<'a>>,
    /// Whether the answer shall carry the key's metadata.
    pub want_metadata: bool,
    /// Whether the answer shall carry the balance of every limit.
    pub want_balances: bool,
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
    /// All of them.
    #[default]
    All,
    /// At least one.
    Any,
}

/// Bytes of a VERIFY that has a digest, a cost and nothing else. Nearly all requests have this
/// form, and [`Verify::parse_fast_path`] accepts no other.
pub const FAST_PATH_BYTES: usize = HEADER_BYTES + DigestBody::WIRE_SIZE;

/// The first eight bytes of every such frame (length, version, kind, no flags) as a little-endian
/// integer.
const FAST_PATH_PREFIX: u64 = {
    let [a, b, c, d] = ((FAST_PATH_BYTES - LENGTH_BYTES) as u32).to_le_bytes();
    u64::from_le_bytes([a, b, c, d, VERSION, FrameKind::Verify as u8, 0, 0])
};

wire_struct! {
    /// The body up to the digest.
    struct DigestBody: 36 bytes {
        0 => cost: u32,
        4 => digest: [u8; 32],
    }
}

impl<'a> Verify<'a> {
    /// A request of cost 1 without any optional field.
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
            costs: None,
            want_metadata: false,
            want_balances: false,
        }
    }

    /// Decodes the frame at the front of `buffer` if it is a VERIFY of [`FAST_PATH_BYTES`] with a
    /// digest and no optional field. One comparison of eight bytes proves that such a frame is
    /// valid.
    ///
    /// `None` means that [`parse_frame`](crate::parse_frame) and
    /// [`Request::decode`](crate::Request::decode) must examine the buffer; it does not mean that
    /// the frame is invalid.
    ///
    /// ```
    /// use keyward_protocol::{Credential, FAST_PATH_BYTES, Verify};
    ///
    /// let verify = Verify::new(7, Credential::Digest([0xab; 32]));
    /// let mut buffer = Vec::new();
    /// verify.encode(&mut buffer)?;
    /// assert_eq!(buffer.len(), FAST_PATH_BYTES);
    /// assert_eq!(Verify::parse_fast_path(&buffer), Some(verify));
    ///
    /// buffer.clear();
    /// Verify { environment: Some("live"), ..verify }.encode(&mut buffer)?;
    /// assert_eq!(Verify::parse_fast_path(&buffer), None);
    /// # Ok::<(), keyward_protocol::FieldTooLongError>(())
    /// ```
    #[inline]
    pub fn parse_fast_path(buffer: &[u8]) -> Option<Self> {
        let frame: &[u8; FAST_PATH_BYTES] = buffer.first_chunk()?;
        let (prefix, rest) = frame.split_first_chunk()?;
        let (request_id, rest) = rest.split_first_chunk()?;
        let (cost, digest) = rest.split_first_chunk()?;
        if u64::from_le_bytes(*prefix) != FAST_PATH_PREFIX {
            return None;
        }
        let credential = Credential::Digest(*digest.first_chunk()?);
        Some(Self {
            cost: u32::from_le_bytes(*cost),
            ..Self::new(u32::from_le_bytes(*request_id), credential)
        })
    }

    /// The same request with the address that it came from. An IPv4 address is mapped.
    pub fn with_ip(self, ip: IpAddr) -> Self {
        let ip = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Self { ip: Some(ip), ..self }
    }

    /// Appends the frame.
    ///
    /// # Errors
    /// If a field is over its limit; `out` is unchanged then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FieldTooLongError> {
        self.check_lengths()?;
        append_frame(FrameKind::Verify as u8, self.flags(), self.request_id, self.cost, out, |out| {
            self.credential.append(out);
            if let Some(scopes) = self.scopes {
                append_bytes16(scopes.names.as_bytes(), out);
            }
            if let Some(ip) = self.ip {
                append_fixed(ip.octets(), out);
            }
            if let Some(origin) = self.origin {
                append_bytes16(origin.as_bytes(), out);
            }
            if let Some(environment) = self.environment {
                append_text8(environment, MAX_NAME, out);
            }
            if let Some(costs) = self.costs {
                costs.append(out);
            }
        });
        Ok(())
    }

    fn flags(&self) -> u16 {
        let flag_if = |flag, condition| if condition { flag } else { 0 };
        let any = self.scopes.is_some_and(|scopes| scopes.mode == ScopeMode::Any);
        flag_if(verify_flag::RAW_KEY, matches!(self.credential, Credential::RawKey(_)))
            | flag_if(verify_flag::SCOPES, self.scopes.is_some())
            | flag_if(verify_flag::ANY_SCOPE, any)
            | flag_if(verify_flag::IP, self.ip.is_some())
            | flag_if(verify_flag::ORIGIN, self.origin.is_some())
            | flag_if(verify_flag::ENVIRONMENT, self.environment.is_some())
            | flag_if(verify_flag::METADATA, self.want_metadata)
            | flag_if(verify_flag::COSTS, self.costs.is_some())
            | flag_if(verify_flag::BALANCES, self.want_balances)
    }

    fn check_lengths(&self) -> Result<(), FieldTooLongError> {
        for (field, length, max) in [
            ("key", self.credential.raw_key_length(), MAX_KEY),
            ("scopes", self.scopes.map_or(0, |scopes| scopes.names.len()), MAX_SCOPES),
            ("origin", self.origin.map_or(0, str::len), MAX_ORIGIN),
            ("environment", self.environment.map_or(0, str::len), MAX_NAME),
        ] {
            if length > max {
                return Err(FieldTooLongError { field, length, max });
            }
        }
        Ok(())
    }

    pub(crate) fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Self, ProtocolError> {
        let flags = header.check_flags(verify_flag::ALL)?;
        let has = |flag| flags & flag != 0;
        let mut reader = BodyReader::new(body, header.request_id);
        let (cost, credential) = if has(verify_flag::RAW_KEY) {
            (reader.read_fixed()?, Credential::RawKey(reader.read_bytes16(MAX_KEY, verify_field::KEY)?))
        } else {
            let DigestBody { cost, digest } = reader.read_fixed()?;
            (cost, Credential::Digest(digest))
        };
        let mut verify = Self { cost, ..Self::new(header.request_id, credential) };
        if has(verify_flag::SCOPES) {
            let names = reader.read_text16(MAX_SCOPES, verify_field::SCOPES)?;
            if names.split(' ').any(str::is_empty) {
                return Err(reader.invalid_field(verify_field::SCOPES));
            }
            let mode = if has(verify_flag::ANY_SCOPE) { ScopeMode::Any } else { ScopeMode::All };
            verify.scopes = Some(Scopes { names, mode });
        } else if has(verify_flag::ANY_SCOPE) {
            return Err(reader.invalid_field(verify_field::SCOPES));
        }
        if has(verify_flag::IP) {
            verify.ip = Some(Ipv6Addr::from(reader.read_fixed::<[u8; 16]>()?));
        }
        if has(verify_flag::ORIGIN) {
            verify.origin = Some(reader.read_text16(MAX_ORIGIN, verify_field::ORIGIN)?);
        }
        if has(verify_flag::ENVIRONMENT) {
            verify.environment = Some(reader.read_text8(MAX_NAME, verify_field::ENVIRONMENT)?);
        }
        if has(verify_flag::COSTS) {
            verify.costs = Some(Costs::read(&mut reader, verify_field::COSTS)?);
        }
        verify.want_metadata = has(verify_flag::METADATA);
        verify.want_balances = has(verify_flag::BALANCES);
        reader.finish()?;
        Ok(verify)
    }
}
