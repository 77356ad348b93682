//! Reports invalid arguments in clap's words, unless these would repeat a key.
//!
//! Keys are sometimes passed as arguments by mistake. The error message must not carry the key into
//! a log, where it would outlive the process list.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::exit::Exit;
use keyward_engine::record::Quoted;

/// Maximum length of a word that is taken for a misspelt command and repeated.
const MAX_COMMAND_LENGTH: usize = 12;

/// Advice about a surplus argument, for commands that take one argument and never a key.
const SURPLUS_ADVICE: [(&str, &str); 3] = [
    ("compile", "One source is compiled at a time, as in: keyward compile keys.csv --output keys.kwc"),
    ("revoke", "One key is named by its id at a time, as in: keyward revoke key_1"),
    ("unrevoke", "One key is named by its id at a time, as in: keyward unrevoke key_1"),
];

/// Prints the help, or the error in the arguments.
pub(super) fn report(error: &clap::Error) -> Exit {
    // Errors are ignored, because there is nowhere to report them.
    let _ = match redacted_message(error) {
        Some(message) => {
            use std::io::Write;
            writeln!(std::io::stderr(), "{message}")
        }
        None => error.print(),
    };
    if error.use_stderr() { Exit::Usage } else { Exit::Done }
}

/// The message that replaces clap's. `None`: clap's message contains no key.
fn redacted_message(error: &clap::Error) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let problem = match error.kind() {
        ErrorKind::UnknownArgument => {
            let argument = text(ContextKind::InvalidArg)?;
            let is_option = argument.starts_with('-') && !may_be_key(argument);
            (!is_option).then(|| "unexpected argument".to_owned())
        }
        ErrorKind::InvalidSubcommand => {
            let command = text(ContextKind::InvalidSubcommand)?;
            let is_command = command.len() <= MAX_COMMAND_LENGTH
                && command.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
            (!is_command).then(|| "there is no such command".to_owned())
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let value = text(ContextKind::InvalidValue)?;
            let option = text(ContextKind::InvalidArg).unwrap_or_default();
            may_be_key(value).then(|| format!("invalid value for {option}"))
        }
        _ => None,
    }?;
    let usage = error.get(ContextKind::Usage).map(|usage| format!("\n\n{usage}")).unwrap_or_default();
    let advice = SURPLUS_ADVICE.iter().find(|(command, _)| usage.contains(&format!(" keyward {command} ")));
    let advice = advice
        .map_or("Keys are read from standard input, as in: keyward verify < key.txt", |(_, advice)| advice);
    Some(format!(
        "error: {problem} (not repeated here: it may be a key)\n\n  {advice}\n  \
         The arguments of a process are public: if this was a key, replace it{usage}\n\n\
         For more information, try '--help'."
    ))
}

/// Whether [`Quoted`] would shorten the text.
fn may_be_key(text: &str) -> bool {
    Quoted(text).may_be_key()
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use super::*;

    const KEY: &str = "acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsEoJpHdG3vbKzT";

    fn message(arguments: &[&str]) -> String {
        let error = parse(arguments).expect_err("wrong");
        redacted_message(&error).unwrap_or_else(|| error.to_string())
    }

    #[test]
    fn key_in_the_arguments_is_not_repeated() {
        let option = format!("--{KEY}");
        let deadline = format!("5{KEY}");
        for arguments in [
            &["verify", KEY][..],
            &["verify", "short"],
            &["verify", "--", KEY],
            &["verify", &option],
            &["verify", "--ip", KEY],
            &["verify", "--cost", KEY],
            &["verify", "--deadline", &deadline],
            &["key", "check", KEY],
            &["key", "hash", "S3cret"],
            &["key", "new", "--prefix", KEY],
            &["key", KEY],
            &["key", "S3cret"],
            &[KEY],
            &["status", KEY],
        ] {
            let message = message(arguments);
            for part in [&KEY[10..16], "short", "S3cret"] {
                assert!(!message.contains(part), "{arguments:?}: {message}");
            }
            assert!(message.contains("Keys are read from standard input"), "{arguments:?}: {message}");
        }
    }

    #[test]
    fn typo_is_repeated_with_a_suggestion() {
        let text = message(&["verfy"]);
        assert!(text.contains("'verfy'") && text.contains("'verify'"), "{text}");
        let text = message(&["verify", "--jsn"]);
        assert!(text.contains("'--jsn'") && text.contains("'--json'"), "{text}");
        let text = message(&["verify", "--ip", "10.0.0.256"]);
        assert!(text.contains("'10.0.0.256'"), "{text}");
    }

    #[test]
    fn help_succeeds_and_errors_are_wrong_usage() {
        let exit = |arguments: &[&str]| {
            let error = parse(arguments).expect_err("no command");
            if error.use_stderr() { Exit::Usage } else { Exit::Done }
        };
        assert_eq!(exit(&["--help"]), Exit::Done);
        assert_eq!(exit(&["verify", "--version"]), Exit::Done);
        assert_eq!(exit(&[]), Exit::Usage);
        assert_eq!(exit(&["status", "--what"]), Exit::Usage);
    }
}
