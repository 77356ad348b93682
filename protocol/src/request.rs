//! The frames that a client sends: HELLO, VERIFY, REFUND and DEBIT.

use crate::adjustment::{Debit, Refund};
use crate::error::{ErrorCode, ProtocolError};
use crate::frame::{FrameHeader, FrameKind};
use crate::hello::Hello;
use crate::verify::Verify;

/// A request that borrows from the buffer it was read into.
///
/// ```
/// use keyward_protocol::{Credential, MAX_REQUEST_LENGTH, ParsedFrame, Request, Verify, parse_frame};
///
/// let verify = Verify { cost: 5, ..Verify::new(7, Credential::Digest([0xab; 32])) };
/// let mut buffer = Vec::new();
/// verify.encode(&mut buffer)?;
///
/// let ParsedFrame::Complete { header, body, size } = parse_frame(&buffer, MAX_REQUEST_LENGTH) else {
///     panic!("the frame is complete");
/// };
/// assert_eq!(size, buffer.len());
/// assert_eq!(Request::decode(&header, body), Ok(Request::Verify(verify)));
/// # Ok::<(), keyward_protocol::FieldTooLongError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// A greeting, or a ping.
    Hello(Hello),
    /// Asks whether a key may do something now.
    Verify(Verify<'a>),
    /// Gives back what a key was charged.
    Refund(Refund<'a>),
    /// Charges what a response has cost.
    Debit(Debit<'a>),
}

impl<'a> Request<'a> {
    /// Decodes a frame that [`parse_frame`](crate::parse_frame) returned.
    ///
    /// # Errors
    /// The first error in the order of SPEC.md section 8: version, kind, flags, fields, trailing
    /// bytes.
    pub fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Self, ProtocolError> {
        header.check_version()?;
        if header.kind == FrameKind::Verify as u8 {
            Verify::decode(header, body).map(Self::Verify)
        } else if header.kind == FrameKind::Refund as u8 {
            Refund::decode(header, body).map(Self::Refund)
        } else if header.kind == FrameKind::Debit as u8 {
            Debit::decode(header, body).map(Self::Debit)
        } else if header.kind == FrameKind::Hello as u8 {
            Hello::decode(header, body).map(Self::Hello)
        } else {
            Err(header.error(ErrorCode::UnknownKind, u32::from(header.kind)))
        }
    }
}
