//! Sequence numbers of the requests of a connection.
//!
//! Requests are numbered in the order in which they are written. The request id is derived from the
//! sequence number, so the id of the next response is known without a table.

use crate::error::ProtocolViolationError;

/// The sequence number of the HELLO with which every connection begins.
pub(crate) const HELLO_SEQUENCE: u64 = 0;

/// The sequence number of the first request after HELLO.
pub(crate) const FIRST_SEQUENCE: u64 = HELLO_SEQUENCE + 1;

/// The id of request number `sequence`. It is never 0, which stands for no request (SPEC.md section
/// 8).
pub(crate) fn request_id(sequence: u64) -> u32 {
    (sequence % u64::from(u32::MAX)) as u32 + 1
}

/// Checks that a response with the id `actual` belongs to request number `sequence`, whose response
/// is due.
pub(crate) fn check_request_id(sequence: u64, actual: u32) -> Result<(), ProtocolViolationError> {
    let expected = request_id(sequence);
    if actual == expected { Ok(()) } else { Err(ProtocolViolationError::WrongRequestId { expected, actual }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_consecutive_and_never_zero() {
        let last = u64::from(u32::MAX);
        assert_eq!([0, 1, last - 1, last, last + 1].map(request_id), [1, 2, u32::MAX, 1, 2]);
    }
}
