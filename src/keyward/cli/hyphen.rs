//! Arguments that begin with a hyphen and are no options: key ids and owners may begin so.
//!
//! keyward has no short options but `-h` and `-V`, and clap reads a word such as `-Vx9` as `-V` with others behind it: it prints
//! the version and the command does nothing. So before clap sees it, such a word becomes what it must be: the value of the
//! option before it, or an argument behind `--`.

use std::ffi::{OsStr, OsString};

use clap::Command;
use clap::error::ErrorKind;

/// `arguments`, the program's own name first, with such words where clap takes them as they are.
pub(super) fn as_values(
    mut root: Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Vec<OsString>, clap::Error> {
    let mut arguments = arguments.into_iter().peekable();
    let (mut kept, mut values) = (Vec::new(), Vec::new());
    kept.extend(arguments.next());
    let mut path: Vec<String> = Vec::new();
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_encoded_bytes();
        match bytes {
            b"--" => {
                values.extend(arguments);
                break;
            }
            [b'-', b'-', ..] => {
                let next = arguments
                    .next_if(|next| takes_value(at(&root, &path), &argument) && begins_with_hyphen(next));
                kept.push(match next {
                    Some(value) => joined(&mut root, argument, &value)?,
                    None => argument,
                });
            }
            [b'-', _, _, ..] => values.push(argument),
            _ => {
                let command = argument.to_str().and_then(|name| at(&root, &path).find_subcommand(name));
                path.extend(command.map(|command| command.get_name().to_owned()));
                kept.push(argument);
            }
        }
    }
    if !values.is_empty() {
        kept.push("--".into());
        kept.extend(values);
    }
    Ok(kept)
}

/// The command that the names lead to.
fn at<'c>(root: &'c Command, path: &[String]) -> &'c Command {
    path.iter().fold(root, |command, name| command.find_subcommand(name).unwrap_or(command))
}

fn takes_value(command: &Command, option: &OsStr) -> bool {
    let name = option.to_str().and_then(|option| option.strip_prefix("--"));
    let option = command.get_arguments().find(|known| known.get_long().is_some() && known.get_long() == name);
    option.is_some_and(|option| option.get_action().takes_values())
}

fn begins_with_hyphen(argument: &OsStr) -> bool {
    matches!(argument.as_encoded_bytes(), [b'-', _, ..])
}

/// An option and its value as one word. What looks like another option is refused: a value was more likely forgotten.
fn joined(root: &mut Command, option: OsString, value: &OsStr) -> Result<OsString, clap::Error> {
    if value.as_encoded_bytes().starts_with(b"--") {
        let option = option.to_string_lossy();
        return Err(root.error(
            ErrorKind::MissingRequiredArgument,
            format!(
                "a value is missing behind {option}; one that begins with -- is written as {option}=--VALUE"
            ),
        ));
    }
    let mut joined = option;
    joined.push("=");
    joined.push(value);
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::tests::{parse, run_with};
    use super::super::{Cli, Exit};
    use super::*;

    fn passed(line: &str) -> Result<String, String> {
        let arguments = line.split(' ').map(OsString::from);
        let passed = as_values(Cli::command(), arguments).map_err(|error| error.to_string())?;
        Ok(passed.iter().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_word_behind_one_hyphen_is_a_value() {
        for (line, expected) in [
            ("keyward revoke -Vx9", "keyward revoke -- -Vx9"),
            ("keyward revoke -hello --json", "keyward revoke --json -- -hello"),
            ("keyward unrevoke --deadline 1s -hV", "keyward unrevoke --deadline 1s -- -hV"),
            ("keyward revoke --owner -hello", "keyward revoke --owner=-hello"),
            ("keyward revoke --owner -V --json", "keyward revoke --owner=-V --json"),
            ("keyward usage --key -Vx9", "keyward usage --key=-Vx9"),
            ("keyward key new --key-id -Vx9 --owner -h", "keyward key new --key-id=-Vx9 --owner=-h"),
            ("keyward revoke -- -Vx9", "keyward revoke -- -Vx9"),
            ("keyward revoke key_1 --json", "keyward revoke key_1 --json"),
            ("keyward revoke -h", "keyward revoke -h"),
            ("keyward -V", "keyward -V"),
            ("keyward verify --scope -x --json", "keyward verify --scope=-x --json"),
            ("keyward verify --json -x9", "keyward verify --json -- -x9"),
        ] {
            assert_eq!(passed(line), Ok(expected.to_owned()), "{line}");
        }
        for line in [
            "keyward revoke --owner --help",
            "keyward usage --key --version",
            "keyward revoke --owner --json",
        ] {
            assert!(
                passed(line).is_err_and(|error| error.contains("a value is missing behind --")),
                "{line}"
            );
        }
    }

    #[test]
    fn ids_and_owners_that_begin_with_a_hyphen_reach_the_commands() {
        for line in [
            &["revoke", "-Vx9"][..],
            &["revoke", "-hello"],
            &["unrevoke", "-Vx9", "--json"],
            &["revoke", "--owner", "-hello"],
            &["usage", "--key", "-Vx9"],
            &["usage", "--owner", "-hV"],
        ] {
            assert!(parse(line).is_ok(), "{line:?}");
            // Not even a daemon is asked: there is none.
            let arguments = [line, &["--socket", "/nonexistent/k.sock"]].concat();
            assert_eq!(run_with(&arguments, b"").0, Exit::Unreachable, "{line:?}");
        }
        let (exit, output, _) = run_with(&["key", "new", "--key-id", "-Vx9", "--owner", "-h"], b"");
        assert_eq!(exit, Exit::Done);
        assert!(output.ends_with(",-Vx9,-h\n"), "{output}");
    }

    #[test]
    fn what_is_no_value_of_a_command_is_an_error_and_no_help() {
        for line in [
            &["-hello"][..],
            &["status", "-Vx9"],
            &["verify", "-hello"],
            &["key", "-Vx9"],
            &["revoke", "-a", "-b"],
        ] {
            let error = parse(line).expect_err("too many arguments");
            assert!(error.use_stderr(), "{line:?}: {error}");
        }
    }
}
