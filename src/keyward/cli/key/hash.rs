//! `keyward key hash`: hashes keys that exist already, for an export.

use clap::Args;

use super::pepper::PepperOptions;
use crate::cli::exit::{CliError, Exit};
use crate::cli::secret::KeyReader;
use crate::cli::streams::Streams;

const HELP: &str = "\
Reads one key from each line, and prints its SHA-256 in hex, as for key_hash in an export. An empty line is an error,
because line n of the output has to belong to line n of the input. With a pepper (--pepper-file, or keys.pepper_file of the
configuration that --config or KEYWARD_CONFIG names), it prints the HMAC-SHA256 under the pepper instead.

Example:
  keyward key hash < key.txt";

/// Print the SHA-256 of the keys on standard input
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(in crate::cli) struct Hash {
    #[command(flatten)]
    pepper: PepperOptions,
}

impl Hash {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        let hasher = self.pepper.hasher(self.pepper.config()?.as_ref())?;
        let mut keys = KeyReader::new(streams.take_input());
        while let Some(key) = keys.next_key()? {
            if key.is_empty() {
                return Err(CliError::new(Exit::Denied, format_args!("line {} is empty", keys.lines)));
            }
            streams.print(const_hex::encode(hasher.hash(key)))?;
            if streams.is_closed() {
                return Ok(Exit::Done);
            }
        }
        if keys.lines == 0 {
            return Err(CliError::new(Exit::Usage, "there is no key: give one a line on standard input"));
        }
        Ok(Exit::Done)
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::Exit;
    use crate::cli::tests::run_with;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const KEY: &str = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683";

    #[test]
    fn each_line_is_a_key() {
        let (exit, output, messages) = run_with(&["key", "hash"], b"abc\r\nkey");
        assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
        assert_eq!(output, format!("{ABC}\n{KEY}\n"));
    }

    #[test]
    fn pepper_is_used_for_the_hash() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pepper");
        std::fs::write(&path, "0123456789abcdef0123456789abcdef\n").expect("writes");
        let mode =
            |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        let arguments = ["key", "hash", "--pepper-file", path.to_str().expect("UTF-8")];
        mode(0o600);
        let (exit, output, _) = run_with(&arguments, b"abc");
        // Computed with Python's hmac.
        let expected = "a60c859a6827c5ea576a48d8d368672fbfe4667c6a927428284a0cb3859cc1d6";
        assert_eq!((exit, output), (Exit::Done, format!("{expected}\n")));
        mode(0o644);
        let (exit, output, messages) = run_with(&arguments, b"abc");
        assert_eq!((exit, output.as_str()), (Exit::BadInput, ""));
        assert!(messages.contains("has mode 0644, so that others can read"), "{messages}");
    }

    #[test]
    fn empty_or_too_long_line_is_an_error() {
        let (exit, output, messages) = run_with(&["key", "hash"], b"abc\n\nabc\n");
        assert_eq!((exit, output), (Exit::Denied, format!("{ABC}\n")));
        assert_eq!(messages, "keyward: line 2 is empty\n");
        assert_eq!(run_with(&["key", "hash"], b"").0, Exit::Usage);
        let long = [b"abc\n", &[b'k'; 70_000][..]].concat();
        let (exit, output, messages) = run_with(&["key", "hash"], &long);
        assert_eq!(
            (exit, output),
            (Exit::Usage, format!("{ABC}\n")),
            "hashes of earlier lines are printed already"
        );
        assert!(messages.contains("line 2 is longer than"), "{messages}");
    }
}
