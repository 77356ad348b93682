//! In which form keys are sent: as digests wherever the daemon takes them, as they are where it does not.
//!
//! WELCOME says what it takes when a connection begins. A daemon that is given a pepper later refuses digests from then
//! on; its ERROR says so, and that it has not processed the request (SPEC.md section 5). What is learnt from that holds
//! for the connection: the next one begins with a WELCOME of its own, so that keys do not go on leaving the process
//! when they no longer have to. Nothing is kept of any key: the request that is sent again still has its own.

use std::sync::atomic::{AtomicU8, Ordering};

use keyward_protocol::{CREDENTIAL_DIGEST, CREDENTIAL_RAW, Credential, ErrorCode};
use sha2::{Digest, Sha256};

use crate::Request;
use crate::error::{DaemonError, Error, Failure};

/// WELCOME's `credentials`, or what an ERROR has said since. Relaxed: it stands for itself, and who reads the older value is
/// refused and sends again.
pub(crate) struct Forms(AtomicU8);

impl Forms {
    pub(crate) fn new(credentials: u8) -> Self {
        Self(AtomicU8::new(credentials))
    }

    /// The key in the form that the daemon takes: its digest if at all possible, unless the request asks for more.
    pub(crate) fn credential<'a>(&self, request: &'a Request<'_>) -> Credential<'a> {
        let taken = self.0.load(Ordering::Relaxed);
        let raw_only = taken & CREDENTIAL_DIGEST == 0;
        if raw_only || (request.is_raw() && taken & CREDENTIAL_RAW != 0) {
            Credential::RawKey(request.key())
        } else {
            Credential::Digest(Sha256::digest(request.key()).into())
        }
    }

    /// What `error` means for a request whose key was sent as it is (`raw`) or as a digest: it is sent again where it was
    /// refused for its form, and there is another.
    pub(crate) fn failure(&self, error: Error, raw: bool) -> Failure {
        match &error {
            Error::Daemon(refusal) if self.learn(refusal, raw) => Failure::Retry(error),
            _ => Failure::Final(error),
        }
    }

    /// Notes which form the daemon takes now, if it says that this is the other one.
    fn learn(&self, refusal: &DaemonError, raw: bool) -> bool {
        let other = if raw { CREDENTIAL_DIGEST } else { CREDENTIAL_RAW };
        let taken = refusal.detail & u32::from(CREDENTIAL_DIGEST | CREDENTIAL_RAW);
        let is_other = refusal.code() == Some(ErrorCode::CredentialRefused) && taken == u32::from(other);
        if is_other {
            self.0.store(other, Ordering::Relaxed);
        }
        is_other
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

    fn sends_raw(forms: &Forms, request: &Request<'_>) -> bool {
        matches!(forms.credential(request), Credential::RawKey(_))
    }

    #[test]
    fn a_refused_form_is_given_up_for_the_other() {
        let refused = ErrorCode::CredentialRefused;
        let (plain, raw) = (Request::new("key"), Request::new("key").raw());
        let forms = Forms::new(CREDENTIAL_DIGEST | CREDENTIAL_RAW);
        assert_eq!([sends_raw(&forms, &plain), sends_raw(&forms, &raw)], [false, true]);
        assert!(matches!(forms.failure(refusal(refused, RAW), false), Failure::Retry(_)));
        assert_eq!([sends_raw(&forms, &plain), sends_raw(&forms, &raw)], [true, true]);
        assert!(matches!(forms.failure(refusal(refused, DIGEST), true), Failure::Retry(_)));
        assert_eq!([sends_raw(&forms, &plain), sends_raw(&forms, &raw)], [false, false]);
    }

    /// Only a daemon that says what it takes instead gets a raw key.
    #[test]
    fn anything_else_is_final_and_changes_nothing() {
        let forms = Forms::new(CREDENTIAL_DIGEST);
        let refused = ErrorCode::CredentialRefused;
        for (code, detail) in
            [(refused, DIGEST), (refused, DIGEST | RAW), (refused, 0), (ErrorCode::InvalidField, RAW)]
        {
            assert!(matches!(forms.failure(refusal(code, detail), false), Failure::Final(_)));
            assert!(!sends_raw(&forms, &Request::new("key")));
        }
    }
}
