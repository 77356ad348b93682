//! What the check of a request came to, before it is put in the terms of a gateway.

use keyward_client::{Decision, Error};

use crate::credential::CredentialError;
use crate::header::HeaderError;
use crate::hint::HintError;
use crate::host::HostError;
use crate::limits::MAX_HEADERS;
use crate::origin::OriginError;
use crate::original::OriginalError;
use crate::target::TargetError;

/// What the check of a request came to. Only the first four let it through.
#[derive(Debug)]
pub enum Outcome {
    /// The daemon has allowed it.
    Allowed(Decision),
    /// Its route needs no key.
    Open,
    /// It is a CORS preflight request, which browsers send without a key.
    Preflight,
    /// The daemon could not be asked, and the route lets requests through then.
    FailedOpen(Unavailable),
    /// The daemon has denied it.
    Denied(Decision),
    /// The daemon could not be asked.
    Unavailable(Unavailable),
    /// It was refused before the daemon was asked.
    Refused(Refusal),
}

/// Why the daemon gave no decision about a key.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// It did not answer.
    #[error(transparent)]
    NoAnswer(Error),
    /// It has no keys yet, or too old ones.
    #[error("keyward has no keys that it may decide by ({})", .0.verdict().name())]
    NotReady(Decision),
    /// It was not asked, because too many requests are in progress.
    #[error("more than {0} requests are in progress, which `server.max_connections` allows a thread")]
    Overloaded(usize),
}

/// Why a request was refused before the daemon was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It carries no key, or not exactly one.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// Its path is ambiguous.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Its method has lower-case letters. Some programs take it for that in capitals, and others do not.
    #[error("the method has lower-case letters")]
    Method,
    /// It has more or larger headers than the configuration allows.
    #[error("the request has more than {MAX_HEADERS} headers, or larger ones than `server.max_header_size`")]
    HeadersTooLarge,
    /// Its host is malformed, or missing.
    #[error(transparent)]
    Host(#[from] HostError),
    /// No route matches it.
    #[error("no route matches the request")]
    NoRoute,
    /// Its route is closed.
    #[error("the route {0:?} is closed")]
    Closed(String),
    /// Its origin is not one of a browser.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The gateway has not stated the original request: its configuration is wrong.
    #[error(transparent)]
    Original(OriginalError),
    /// The gateway has sent hints that cannot be used: its configuration is wrong.
    #[error(transparent)]
    Hint(#[from] HintError),
    /// The request asks for something that no key can have: the configuration of the route is wrong.
    #[error("the request cannot be asked about: {0}")]
    Invalid(String),
}

impl From<OriginalError> for Refusal {
    fn from(error: OriginalError) -> Self {
        match error {
            // The gateway passes on what the client has sent.
            OriginalError::Header(HeaderError::NotText(_)) | OriginalError::Target => {
                Self::Target(TargetError::Character)
            }
            error => Self::Original(error),
        }
    }
}

impl Outcome {
    /// Whether the request is let through.
    pub fn is_let_through(&self) -> bool {
        match self {
            Self::Allowed(_) | Self::Open | Self::Preflight | Self::FailedOpen(_) => true,
            Self::Denied(_) | Self::Unavailable(_) | Self::Refused(_) => false,
        }
    }

    /// The decision, if the daemon gave one.
    pub fn decision(&self) -> Option<&Decision> {
        match self {
            Self::Allowed(decision)
            | Self::Denied(decision)
            | Self::Unavailable(Unavailable::NotReady(decision))
            | Self::FailedOpen(Unavailable::NotReady(decision)) => Some(decision),
            Self::Open | Self::Preflight | Self::FailedOpen(_) | Self::Unavailable(_) | Self::Refused(_) => {
                None
            }
        }
    }

    /// The name of the outcome in logs, metrics and problem bodies: the verdict of the daemon, or what
    /// came before it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Allowed(decision) | Self::Denied(decision) => decision.verdict().name(),
            Self::Unavailable(Unavailable::NotReady(decision)) => decision.verdict().name(),
            Self::Unavailable(Unavailable::NoAnswer(_) | Unavailable::Overloaded(_)) => "UNAVAILABLE",
            Self::FailedOpen(_) => "FAILED_OPEN",
            Self::Open => "OPEN",
            Self::Preflight => "PREFLIGHT",
            Self::Refused(refusal) => refusal.name(),
        }
    }
}

impl Refusal {
    fn name(&self) -> &'static str {
        match self {
            Self::Credential(CredentialError::Missing) => "NO_KEY",
            Self::Credential(_) => "INVALID_CREDENTIAL",
            Self::Target(_) => "AMBIGUOUS_PATH",
            Self::Method => "INVALID_METHOD",
            Self::HeadersTooLarge => "HEADERS_TOO_LARGE",
            Self::Host(_) => "INVALID_HOST",
            Self::Origin(_) => "INVALID_ORIGIN",
            Self::NoRoute => "NO_ROUTE",
            Self::Closed(_) => "CLOSED_ROUTE",
            Self::Original(_) | Self::Hint(_) | Self::Invalid(_) => "MISCONFIGURED",
        }
    }
}
