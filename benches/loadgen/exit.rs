//! The exit codes, and the code of each failure.

use std::fmt::Display;
use std::process::ExitCode;

use crate::error::LoadError;

/// Why the program ends without a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The load failed on the client's side.
    Failed = 1,
    /// The arguments or the key file are wrong.
    Usage = 2,
    /// The server cannot be reached, refused the load, or failed (`EX_UNAVAILABLE`).
    Unavailable = 69,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Ends the program with a message. The message never contains a key.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        let exit = match &error {
            LoadError::KeyTooLong(_) | LoadError::NoRequests(_) | LoadError::Pin { .. } => Exit::Usage,
            LoadError::System { .. } => Exit::Failed,
            LoadError::Connect { .. }
            | LoadError::Refused(_)
            | LoadError::Protocol(_)
            | LoadError::Closed { .. }
            | LoadError::Stalled(_) => Exit::Unavailable,
        };
        Self::new(exit, error)
    }
}
