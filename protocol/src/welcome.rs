//! WELCOME (SPEC.md section 4): the version to use, how the daemon accepts keys, and its limits.

use crate::codec::{BodyReader, append_text8};
use crate::error::ProtocolError;
use crate::frame::{FrameHeader, FrameKind, append_frame};
use crate::layout::wire_struct;
use crate::limits::MAX_MESSAGE;

/// Number of the field `server`, as reported by INVALID_FIELD.
const SERVER_FIELD: u32 = 8;

/// The daemon's greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome<'a> {
    /// The request id of the HELLO.
    pub request_id: u32,
    /// The version to write frames in.
    pub version: u8,
    /// Lowest version that the daemon speaks.
    pub min_version: u8,
    /// Highest version that the daemon speaks.
    pub max_version: u8,
    /// [`CREDENTIAL_DIGEST`](crate::CREDENTIAL_DIGEST), [`CREDENTIAL_RAW`](crate::CREDENTIAL_RAW)
    /// or both.
    pub credentials: u8,
    /// Largest `length` that the daemon accepts.
    pub max_length: u32,
    /// Milliseconds without a request after which the daemon closes the connection; 0 means never.
    pub idle_timeout_ms: u32,
    /// The generation in force; 0 means that there are no keys yet.
    pub generation: u64,
    /// Name and version of the daemon.
    pub server: &'a str,
}

wire_struct! {
    /// The body up to `server`.
    struct WelcomeFixed: 20 bytes {
        0 => version: u8,
        1 => min_version: u8,
        2 => max_version: u8,
        3 => credentials: u8,
        4 => max_length: u32,
        8 => idle_timeout_ms: u32,
        12 => generation: u64,
    }
}

impl<'a> Welcome<'a> {
    /// Appends the frame. A `server` of more than [`MAX_MESSAGE`] bytes is truncated.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = WelcomeFixed {
            version: self.version,
            min_version: self.min_version,
            max_version: self.max_version,
            credentials: self.credentials,
            max_length: self.max_length,
            idle_timeout_ms: self.idle_timeout_ms,
            generation: self.generation,
        };
        append_frame(FrameKind::Welcome as u8, 0, self.request_id, fixed, out, |out| {
            append_text8(self.server, MAX_MESSAGE, out);
        });
    }

    pub(crate) fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Self, ProtocolError> {
        header.check_flags(0)?;
        let mut reader = BodyReader::new(body, header.request_id);
        let fixed: WelcomeFixed = reader.read_fixed()?;
        let server = reader.read_text8(MAX_MESSAGE, SERVER_FIELD)?;
        reader.finish()?;
        Ok(Self {
            request_id: header.request_id,
            version: fixed.version,
            min_version: fixed.min_version,
            max_version: fixed.max_version,
            credentials: fixed.credentials,
            max_length: fixed.max_length,
            idle_timeout_ms: fixed.idle_timeout_ms,
            generation: fixed.generation,
            server,
        })
    }
}
