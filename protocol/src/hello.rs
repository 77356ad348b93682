//! HELLO (SPEC.md section 4): the versions that a client speaks.

use crate::codec::BodyReader;
use crate::error::{ErrorCode, ProtocolError};
use crate::frame::{FrameHeader, FrameKind, append_frame};
use crate::layout::wire_struct;
use crate::limits::VERSION;

/// Numbers of HELLO's fields, as reported by INVALID_FIELD.
mod hello_field {
    pub(super) const MIN_VERSION: u32 = 1;
    pub(super) const MAX_VERSION: u32 = 2;
}

/// A client's greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Returned in the response.
    pub request_id: u32,
    /// Lowest version that the client speaks.
    pub min_version: u8,
    /// Highest version that the client speaks.
    pub max_version: u8,
}

wire_struct! {
    struct HelloBody: 2 bytes {
        0 => min_version: u8,
        1 => max_version: u8,
    }
}

impl Hello {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let body = HelloBody { min_version: self.min_version, max_version: self.max_version };
        append_frame(FrameKind::Hello as u8, 0, self.request_id, body, out, |_| ());
    }

    /// The highest version that both sides speak.
    ///
    /// # Errors
    /// `UNSUPPORTED_VERSION` if the client's range does not contain [`VERSION`].
    pub fn version(&self) -> Result<u8, ProtocolError> {
        if (self.min_version..=self.max_version).contains(&VERSION) {
            return Ok(VERSION);
        }
        Err(ProtocolError::new(ErrorCode::UnsupportedVersion, u32::from(self.max_version), self.request_id))
    }

    pub(crate) fn decode(header: &FrameHeader, body: &[u8]) -> Result<Self, ProtocolError> {
        header.check_flags(0)?;
        let mut reader = BodyReader::new(body, header.request_id);
        let min_version = reader.read_fixed()?;
        if min_version == 0 {
            return Err(reader.invalid_field(hello_field::MIN_VERSION));
        }
        let max_version = reader.read_fixed()?;
        if max_version < min_version {
            return Err(reader.invalid_field(hello_field::MAX_VERSION));
        }
        reader.finish()?;
        Ok(Self { request_id: header.request_id, min_version, max_version })
    }
}
