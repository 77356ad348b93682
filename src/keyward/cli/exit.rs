//! Exit codes, and the errors that end a command.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::process::ExitCode;

use keyward_admin::CommandError;
use keyward_daemon::config::ConfigError;

/// The outcome of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The key is allowed, or the command has succeeded.
    Done = 0,
    /// The key is denied, or the command has failed.
    Denied = 1,
    /// The arguments or the input are invalid.
    Usage = 2,
    /// The daemon cannot be reached, or sent no result (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// The configuration or the source is invalid (`EX_CONFIG`).
    BadInput = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that ends a command. The message never contains a key.
#[derive(Debug)]
pub(super) struct CliError {
    pub(super) exit: Exit,
    pub(super) message: String,
}

impl CliError {
    pub(super) fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }

    /// A command that changes something has failed. If it was sent but not answered, it may have been
    /// carried out: then `hint` says how to find out.
    pub(super) fn of_change(error: CommandError, hint: &str) -> Self {
        let is_open = matches!(error, CommandError::Timeout { .. } | CommandError::Broken { .. });
        let Self { exit, message } = error.into();
        if is_open { Self::new(exit, format_args!("{message}; {hint}")) } else { Self { exit, message } }
    }

    /// The daemon's reply has no `part`: it may be of another version.
    pub(super) fn missing_in_reply(part: &str) -> Self {
        let message =
            format!("the daemon's answer has no {part} in it: are keyward and the daemon of one version?");
        Self::new(Exit::Denied, message)
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::BadInput, error)
    }
}

impl From<CommandError> for CliError {
    fn from(error: CommandError) -> Self {
        let is_absent =
            |error: &io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused);
        match &error {
            CommandError::Refused(_) => Self::new(Exit::Denied, error),
            CommandError::Unreachable { source, .. } if is_absent(source) => Self::new(
                Exit::Unavailable,
                format_args!(
                    "{error} If it listens elsewhere, say where: --socket, KEYWARD_SOCKET or --admin-socket"
                ),
            ),
            _ => Self::new(Exit::Unavailable, error),
        }
    }
}

impl From<keyward_client::Error> for CliError {
    fn from(error: keyward_client::Error) -> Self {
        use keyward_client::Error;
        let exit = match &error {
            Error::FieldTooLong(_) | Error::RequestTooLong { .. } | Error::InvalidScope { .. } => Exit::Usage,
            // There is no verdict, and exit code 1 would mean a denial.
            _ => Exit::Unavailable,
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
    fn exit_codes_are_the_documented_ones() {
        let codes = [Exit::Done, Exit::Denied, Exit::Usage, Exit::Unavailable, Exit::BadInput];
        assert_eq!(codes.map(|exit| exit as u8), [0, 1, 2, 69, 78]);
    }

    #[test]
    fn change_that_was_not_answered_may_have_been_carried_out() {
        let path = || "p".to_owned();
        let broken = || std::io::ErrorKind::UnexpectedEof.into();
        for (error, is_open) in [
            (CommandError::Timeout { path: path(), limit: std::time::Duration::from_secs(1) }, true),
            (CommandError::Broken { path: path(), source: broken() }, true),
            (CommandError::Unreachable { path: path(), source: broken() }, false),
            (CommandError::Refused("no".to_owned()), false),
            (CommandError::NotAdminSocket { path: path() }, false),
        ] {
            let text = error.to_string();
            let message = CliError::of_change(error, "look there").message;
            assert_eq!(message.ends_with("; look there"), is_open, "{message}");
            assert!(message.starts_with(&text), "{message}");
        }
    }

    #[test]
    fn each_error_has_its_exit_code() {
        use keyward_client::{DaemonError, Error, ErrorCode, ProtocolViolationError};
        let exit = |error: Error| CliError::from(error).exit;
        assert_eq!(exit(Error::ConnectionLost { written: true }), Exit::Unavailable);
        assert_eq!(exit(Error::Protocol(ProtocolViolationError::UnexpectedWelcome)), Exit::Unavailable);
        assert_eq!(exit(Error::InvalidScope { name: String::new() }), Exit::Usage);
        let daemon = |code: ErrorCode| {
            Error::Daemon(DaemonError { value: code as u8, detail: 0, closing: true, message: String::new() })
        };
        assert_eq!(exit(daemon(ErrorCode::PeerRefused)), Exit::Unavailable);
        assert_eq!(exit(daemon(ErrorCode::ShuttingDown)), Exit::Unavailable);
        assert_eq!(CliError::from(CommandError::Refused("no".to_owned())).exit, Exit::Denied);
        let broken = || std::io::ErrorKind::UnexpectedEof.into();
        let unreachable = CommandError::Unreachable { path: "p".to_owned(), source: broken() };
        assert_eq!(CliError::from(unreachable).exit, Exit::Unavailable);
        let broken = CommandError::Broken { path: "p".to_owned(), source: broken() };
        assert_eq!(CliError::from(broken).exit, Exit::Unavailable);
        assert_eq!(CliError::from(ConfigError::NoSource { file: None }).exit, Exit::BadInput);
    }
}
