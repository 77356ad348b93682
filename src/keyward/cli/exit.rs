//! What a command's exit code says, and which failure has which.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::process::ExitCode;

use keyward_daemon::admin::CommandError;
use keyward_daemon::config::ConfigError;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Allowed, or done.
    Done = 0,
    /// Denied, or failed.
    Denied = 1,
    /// The arguments, or what was given as a key, make no sense.
    Usage = 2,
    /// The daemon cannot be reached (`EX_UNAVAILABLE`).
    Unreachable = 69,
    /// The configuration or the source is wrong (`EX_CONFIG`).
    BadInput = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What ends a command early. The message is for people and never holds a key.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::BadInput, error)
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        let is_absent =
            |error: &io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused);
        match &error {
            CommandError::Refused(_) => Self::new(Exit::Denied, error),
            CommandError::Unreachable { source, .. } if is_absent(source) => Self::new(
                Exit::Unreachable,
                format_args!(
                    "{error} If it listens elsewhere, say where: --socket, KEYWARD_SOCKET or --admin-socket"
                ),
            ),
            _ => Self::new(Exit::Unreachable, error),
        }
    }
}

impl From<keyward_client::Error> for Failure {
    fn from(error: keyward_client::Error) -> Self {
        use keyward_client::Error;
        let exit = match &error {
            Error::FieldTooLong(_) | Error::RequestTooLong { .. } | Error::InvalidScope { .. } => Exit::Usage,
            // Connect, Deadline, ConnectionLost, Protocol, Daemon: there is no verdict, and 1 would be taken for one.
            _ => Exit::Unreachable,
        };
        match error {
            Error::Connect { .. } => Self::new(
                exit,
                format_args!("{error} If it listens elsewhere, say where: --socket or KEYWARD_SOCKET"),
            ),
            error => Self::new(exit, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_the_documented_ones() {
        let codes = [Exit::Done, Exit::Denied, Exit::Usage, Exit::Unreachable, Exit::BadInput];
        assert_eq!(codes.map(|exit| exit as u8), [0, 1, 2, 69, 78]);
    }

    #[test]
    fn every_failure_has_its_code() {
        use keyward_client::{DaemonError, Error, ErrorCode, ProtocolViolationError};
        let exit = |error: Error| Failure::from(error).exit;
        assert_eq!(exit(Error::ConnectionLost { written: true }), Exit::Unreachable);
        assert_eq!(exit(Error::Protocol(ProtocolViolationError::UnexpectedWelcome)), Exit::Unreachable);
        assert_eq!(exit(Error::InvalidScope { name: String::new() }), Exit::Usage);
        let daemon = |code: ErrorCode| {
            Error::Daemon(DaemonError { value: code as u8, detail: 0, closing: true, message: String::new() })
        };
        assert_eq!(exit(daemon(ErrorCode::PeerRefused)), Exit::Unreachable);
        assert_eq!(exit(daemon(ErrorCode::ShuttingDown)), Exit::Unreachable);
        assert_eq!(Failure::from(CommandError::Refused("no".to_owned())).exit, Exit::Denied);
        let broken = || std::io::ErrorKind::UnexpectedEof.into();
        let unreachable = CommandError::Unreachable { path: "p".to_owned(), source: broken() };
        assert_eq!(Failure::from(unreachable).exit, Exit::Unreachable);
        let broken = CommandError::Broken { path: "p".to_owned(), source: broken() };
        assert_eq!(Failure::from(broken).exit, Exit::Unreachable);
        assert_eq!(Failure::from(ConfigError::NoSource { file: None }).exit, Exit::BadInput);
    }
}
