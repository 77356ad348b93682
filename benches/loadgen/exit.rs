//! The exit codes, and which failure has which.

use std::fmt::Display;
use std::process::ExitCode;

use crate::fault::Fault;

/// Why the process ends without a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The load could not be carried out on this side.
    Failed = 1,
    /// The arguments or the key file are wrong.
    Usage = 2,
    /// The server cannot be reached, or failed (`EX_UNAVAILABLE`).
    Unreachable = 69,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Ends the command. The message never holds a key.
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

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let exit = match &fault {
            Fault::Unfit(_) => Exit::Usage,
            Fault::System { .. } => Exit::Failed,
            Fault::Connect { .. }
            | Fault::Refused(_)
            | Fault::Broken(_)
            | Fault::Ended { .. }
            | Fault::Stalled(_) => Exit::Unreachable,
        };
        Self::new(exit, fault)
    }
}
