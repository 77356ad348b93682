//! The form in which keys are sent: as digests if the daemon accepts them, raw otherwise.
//!
//! WELCOME contains the accepted forms when a connection begins. A daemon that is given a pepper
//! later refuses digests from then on; its ERROR says so, and that it has not processed the request
//! (SPEC.md section 5). The client then changes the mode for this connection only. The next
//! connection begins with its own WELCOME, so that keys stop leaving the process when that is no
//! longer necessary. No key is stored here: the request that is sent again still has its own.

use std::sync::atomic::{AtomicU8, Ordering};

use keyward_protocol::{CREDENTIAL_DIGEST, CREDENTIAL_RAW, Credential, ErrorCode};
use sha2::{Digest, Sha256};

use crate::Request;
use crate::error::{DaemonError, Error};
use crate::failure::Failure;

/// WELCOME's `credentials`, or the forms that a later ERROR named. `Relaxed` is sufficient: the
/// value guards no other data, and a request that used the older value is refused and sent again.
pub(crate) struct CredentialMode(AtomicU8);

impl CredentialMode {
    pub(crate) fn new(credentials: u8) -> Self {
        Self(AtomicU8::new(credentials))
    }

    /// The key of `request` as it is sent: its digest, unless the daemon accepts raw keys only, or
    /// accepts both and the request prefers the raw key.
    pub(crate) fn credential<'a>(&self, request: &'a Request<'_>) -> Credential<'a> {
        let accepted = self.0.load(Ordering::Relaxed);
        let raw_only = accepted & CREDENTIAL_DIGEST == 0;
        if raw_only || (request.prefers_raw() && accepted & CREDENTIAL_RAW != 0) {
            Credential::RawKey(request.key())
        } else {
            Credential::Digest(Sha256::digest(request.key()).into())
        }
    }

    /// The failure of a request that got `error`, and whose key was sent raw or as a digest. The
    /// request is sent again if its form was refused and the daemon accepts the other one.
    pub(crate) fn failure(&self, error: Error, sent_raw: bool) -> Failure {
        match &error {
            Error::Daemon(refusal) if self.switch(refusal, sent_raw) => Failure::Retryable(error),
            _ => Failure::Final(error),
        }
    }

    /// Switches to the other form if `refusal` says that the daemon accepts only that one.
    fn switch(&self, refusal: &DaemonError, sent_raw: bool) -> bool {
        let other = if sent_raw { CREDENTIAL_DIGEST } else { CREDENTIAL_RAW };
        let accepted = refusal.detail & u32::from(CREDENTIAL_DIGEST | CREDENTIAL_RAW);
        let switches = refusal.code() == Some(ErrorCode::CredentialRefused) && accepted == u32::from(other);
        if switches {
            self.0.store(other, Ordering::Relaxed);
        }
        switches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: u32 = CREDENTIAL_DIGEST as u32;
    const RAW: u32 = CREDENTIAL_RAW as u32;

    fn refusal(code: ErrorCode, detail: u32) -> Error {
        let message = String::new();
        Error::Daemon(DaemonError { value: code as u8, detail, closing: false, message })
    }

    fn sends_raw(mode: &CredentialMode, request: &Request<'_>) -> bool {
        matches!(mode.credential(request), Credential::RawKey(_))
    }

    #[test]
    fn refused_form_is_replaced_by_the_other() {
        let refused = ErrorCode::CredentialRefused;
        let (plain, raw) = (Request::new("key"), Request::new("key").raw());
        let mode = CredentialMode::new(CREDENTIAL_DIGEST | CREDENTIAL_RAW);
        assert_eq!([sends_raw(&mode, &plain), sends_raw(&mode, &raw)], [false, true]);
        assert!(matches!(mode.failure(refusal(refused, RAW), false), Failure::Retryable(_)));
        assert_eq!([sends_raw(&mode, &plain), sends_raw(&mode, &raw)], [true, true]);
        assert!(matches!(mode.failure(refusal(refused, DIGEST), true), Failure::Retryable(_)));
        assert_eq!([sends_raw(&mode, &plain), sends_raw(&mode, &raw)], [false, false]);
    }

    /// A raw key is sent only to a daemon that names this form in its refusal.
    #[test]
    fn other_refusals_are_final_and_do_not_change_the_mode() {
        let mode = CredentialMode::new(CREDENTIAL_DIGEST);
        let refused = ErrorCode::CredentialRefused;
        for (code, detail) in
            [(refused, DIGEST), (refused, DIGEST | RAW), (refused, 0), (ErrorCode::InvalidField, RAW)]
        {
            assert!(matches!(mode.failure(refusal(code, detail), false), Failure::Final(_)));
            assert!(!sends_raw(&mode, &Request::new("key")));
        }
    }
}
