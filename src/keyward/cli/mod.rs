//! The command line: parses the arguments, runs a command, and returns an exit code.
//!
//! Each command is a struct of its options with one method, `run`, in a file of its own. The
//! commands share these rules:
//!
//! * Data goes to standard output, everything else to standard error ([`streams`]).
//! * A key comes from standard input or a file, never from the arguments, which every user of the
//!   machine can read ([`secret`]). Error messages do not repeat a key that was given as an argument
//!   ([`arg_error`]).
//! * The exit code tells the outcome ([`Exit`]).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use clap::{CommandFactory, Parser, Subcommand};

mod arg_error;
mod balance;
mod check;
mod compile;
mod demo;
mod exit;
mod format;
mod http;
mod hyphen;
mod key;
mod key_change;
mod log;
mod options;
mod reload;
mod revoke;
mod secret;
mod serve;
mod state;
mod status;
mod streams;
mod usage;
mod verify;
mod withheld;

use exit::CliError;
pub(crate) use exit::Exit;
use streams::Streams;

use keyward_daemon::server::Signals;

const EXIT_CODES: &str = "\
Exit codes:
  0   allowed, or done
  1   denied, or failed; also in force, but NOT DURABLE
  2   wrong usage
  69  the daemon cannot be reached
  78  the configuration or the source is wrong

Example: validate an export, serve it, ask about a key
  keyward check --source keys.csv
  keyward serve --source keys.csv --socket /tmp/keyward.sock &
  keyward verify --socket /tmp/keyward.sock < key.txt";

/// Validates API keys for the processes of this host, over a Unix socket.
#[derive(Debug, Parser)]
#[command(name = "keyward", version, after_help = EXIT_CODES, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Http(http::Http),
    Check(check::Check),
    Compile(compile::Compile),
    Verify(verify::Verify),
    #[command(subcommand)]
    Key(key::Key),
    Status(status::Status),
    Reload(reload::Reload),
    Usage(usage::Usage),
    Balance(balance::Balance),
    Revoke(revoke::Revoke),
    Unrevoke(revoke::Unrevoke),
    #[command(subcommand)]
    State(state::State),
    Demo(demo::Demo),
}

impl Command {
    fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        match self {
            Self::Serve(serve) => serve.run(Signals::catch()),
            Self::Http(http) => http.run(streams),
            Self::Check(check) => check.run(streams),
            Self::Compile(compile) => compile.run(streams),
            Self::Verify(verify) => verify.run(streams),
            Self::Key(key) => key.run(streams),
            Self::Status(status) => status.run(streams),
            Self::Reload(reload) => reload.run(streams),
            Self::Usage(usage) => usage.run(streams),
            Self::Balance(balance) => balance.run(streams),
            Self::Revoke(revoke) => revoke.run(streams),
            Self::Unrevoke(unrevoke) => unrevoke.run(streams),
            Self::State(state) => state.run(streams),
            Self::Demo(demo) => demo.run(streams),
        }
    }
}

/// Runs the command that `arguments` name. The first argument is the name of the program.
pub(crate) fn run(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // Before anything else, parsing included: SIGHUP must not end a daemon that has just been
    // started.
    let signals = arguments.get(1).is_some_and(|command| command == "serve").then(Signals::catch);
    let command = match parse(arguments) {
        Ok(command) => command,
        Err(error) => return arg_error::report(&error),
    };
    // Not std's own handles, because their buffers are never wiped and may contain a key.
    let (mut input, mut output) = match (unbuffered(io::stdin()), unbuffered(io::stdout())) {
        (Ok(input), Ok(output)) => (input, output),
        (Err(error), _) | (_, Err(error)) => {
            Streams::new(&mut io::empty(), &mut io::sink(), &mut io::stderr())
                .note(format_args!("keyward: cannot open standard input and output: {error}"));
            return Exit::Denied;
        }
    };
    let mut messages = io::stderr();
    let mut streams = Streams::new(&mut input, &mut output, &mut messages);
    streams.input_is_terminal = io::stdin().is_terminal();
    let result = match (command, signals) {
        (Command::Serve(serve), Some(signals)) => serve.run(signals),
        (command, _) => command.run(&mut streams),
    };
    finish(result, &mut streams)
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, clap::Error> {
    let arguments = hyphen::escape_values(Cli::command(), arguments)?;
    Cli::try_parse_from(arguments).map(|cli| cli.command)
}

fn finish(result: Result<Exit, CliError>, streams: &mut Streams<'_>) -> Exit {
    result.unwrap_or_else(|CliError { exit, message }| {
        streams.note(format_args!("keyward: {message}"));
        exit
    })
}

fn unbuffered(stream: impl AsFd) -> io::Result<File> {
    stream.as_fd().try_clone_to_owned().map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a command. Returns its exit code, its output and its messages.
    pub(super) fn run_with(arguments: &[&str], mut input: &[u8]) -> (Exit, String, String) {
        let command = parse(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        let (mut output, mut messages) = (Vec::new(), Vec::new());
        let mut streams = Streams::new(&mut input, &mut output, &mut messages);
        let result = command.run(&mut streams);
        let exit = finish(result, &mut streams);
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (exit, text(output), text(messages))
    }

    pub(super) fn parse(arguments: &[&str]) -> Result<Command, clap::Error> {
        super::parse(["keyward"].iter().chain(arguments).map(OsString::from))
    }

    #[test]
    fn command_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        fn has_example(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{}", command.get_name());
            assert!(command.get_about().is_some(), "{}", command.get_name());
            command.get_subcommands().for_each(has_example);
        }
        has_example(&Cli::command());
    }

    #[test]
    fn error_names_the_program_and_the_cause() {
        let (exit, output, messages) = run_with(&["check", "--source", "missing.csv"], b"");
        assert_eq!((exit, output.as_str()), (Exit::BadInput, ""));
        assert_eq!(messages, "keyward: missing.csv: No such file or directory (os error 2)\n");
    }
}
