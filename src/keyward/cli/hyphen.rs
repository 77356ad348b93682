//! Arguments that begin with a hyphen but are values: key ids and owners may begin with one.
//!
//! keyward has no short options other than `-h` and `-V`. clap would read a word such as `-Vx9` as
//! `-V` with other options behind it, and print the version. Such a word is therefore rewritten
//! before clap sees it: it is joined to the option before it (`--owner=-Vx9`), or moved behind
//! `--`.

use std::ffi::{OsStr, OsString};

use clap::Command;
use clap::error::ErrorKind;

/// Rewrites `arguments` so that clap takes such words as values. The first argument is the name of
/// the program.
pub(super) fn escape_values(
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
                let next = arguments.next_if(|next| {
                    takes_value(subcommand_at(&root, &path), &argument) && begins_with_hyphen(next)
                });
                kept.push(match next {
                    Some(value) => join_value(&mut root, argument, &value)?,
                    None => argument,
                });
            }
            [b'-', _, _, ..] => values.push(argument),
            _ => {
                let command =
                    argument.to_str().and_then(|name| subcommand_at(&root, &path).find_subcommand(name));
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

/// The subcommand with this path of names.
fn subcommand_at<'c>(root: &'c Command, path: &[String]) -> &'c Command {
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

/// Joins an option and its value into one word. A value that looks like another option is refused,
/// because the value was more likely forgotten.
fn join_value(root: &mut Command, option: OsString, value: &OsStr) -> Result<OsString, clap::Error> {
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
        let passed = escape_values(Cli::command(), arguments).map_err(|error| error.to_string())?;
        Ok(passed.iter().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn word_with_one_hyphen_is_a_value() {
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
    fn ids_and_owners_that_begin_with_a_hyphen_are_accepted() {
        for line in [
            &["revoke", "-Vx9"][..],
            &["revoke", "-hello"],
            &["unrevoke", "-Vx9", "--json"],
            &["revoke", "--owner", "-hello"],
            &["usage", "--key", "-Vx9"],
            &["usage", "--owner", "-hV"],
        ] {
            assert!(parse(line).is_ok(), "{line:?}");
            let arguments = [line, &["--socket", "/nonexistent/k.sock"]].concat();
            assert_eq!(run_with(&arguments, b"").0, Exit::Unavailable, "{line:?}");
        }
        let (exit, output, _) = run_with(&["key", "new", "--key-id", "-Vx9", "--owner", "-h"], b"");
        assert_eq!(exit, Exit::Done);
        assert!(output.ends_with(",-Vx9,-h\n"), "{output}");
    }

    #[test]
    fn unexpected_word_with_a_hyphen_is_an_error() {
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
