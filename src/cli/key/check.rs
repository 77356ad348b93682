//! `keyward key check`: whether a text is a key that keyward minted, as far as its form can tell.

use clap::Args;
use serde::Serialize;

use crate::cli::exit::{Exit, Failure};
use crate::cli::secret;
use crate::cli::streams::Streams;
use crate::key_format::{CHECKSUM_CHARACTERS, Minted, Prefix, RANDOM_CHARACTERS, check};

const HELP: &str = "\
The exit code is 0 if the checksum fits, else 1. Whether the key is in force, only a daemon can tell.

Example:
  keyward key check --prefix acme_live_ --prefix acme_test_ < key.txt";

/// Check the form and the checksum of the key on standard input
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(in crate::cli) struct Check {
    /// What minted keys begin with; may be repeated
    #[arg(long = "prefix", value_name = "PREFIX", default_value = "acme_live_")]
    prefixes: Vec<Prefix>,

    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    valid: bool,
    reason: String,
}

impl Check {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, Failure> {
        let key = secret::read_key(None, streams)?;
        let (word, reason) = self.judge(&key);
        let valid = word == VALID;
        match self.json {
            true => streams.print_json(&Report { valid, reason })?,
            false => streams.print(format_args!("{word}: {reason}"))?,
        }
        Ok(if valid { Exit::Done } else { Exit::Denied })
    }

    /// A word for the result, and the reason; nothing of the key but its prefix is in it.
    fn judge(&self, key: &[u8]) -> (&'static str, String) {
        let prefix = self.longest_prefix(key);
        match (check(key, &self.prefixes), prefix) {
            (Minted::Valid, _) => (VALID, "the checksum fits".to_owned()),
            (Minted::Malformed, Some(prefix)) => ("malformed", why(prefix, key)),
            (Minted::Malformed | Minted::NotOurs, _) => {
                let prefixes: Vec<_> = self.prefixes.iter().map(Prefix::as_str).collect();
                ("not minted here", format!("it does not begin with {}", prefixes.join(" or ")))
            }
        }
    }

    fn longest_prefix(&self, key: &[u8]) -> Option<&Prefix> {
        let fitting = self.prefixes.iter().filter(|prefix| key.starts_with(prefix.as_str().as_bytes()));
        fitting.max_by_key(|prefix| prefix.as_str().len())
    }
}

const VALID: &str = "valid";

fn why(prefix: &Prefix, key: &[u8]) -> String {
    let rest = key.get(prefix.as_str().len()..).unwrap_or_default();
    let due = RANDOM_CHARACTERS + CHECKSUM_CHARACTERS;
    if rest.len() != due {
        return format!("{due} characters are due after {prefix}, and there are {}", rest.len());
    }
    match rest.iter().position(|byte| !byte.is_ascii_alphanumeric()) {
        Some(at) => format!("character {} is neither a letter nor a digit", prefix.as_str().len() + at + 1),
        None => "the checksum does not fit: there is a typo in it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::Exit;
    use crate::cli::tests::run_with;

    const KEY: &str = "acme_live_0123456789ABCDEFGHIJKLMNOPQRST4MTgoG";

    fn check(key: &str, options: &[&str]) -> (Exit, String) {
        let (exit, output, messages) = run_with(&[&["key", "check"], options].concat(), key.as_bytes());
        assert_eq!(messages, "");
        (exit, output)
    }

    #[test]
    fn a_key_is_valid_or_there_is_a_reason() {
        assert_eq!(check(&format!("{KEY}\n"), &[]), (Exit::Done, "valid: the checksum fits\n".to_owned()));
        for (key, reason) in [
            (KEY.replace('4', "5"), "malformed: the checksum does not fit: there is a typo in it"),
            (KEY[..45].to_owned(), "malformed: 36 characters are due after acme_live_, and there are 35"),
            (KEY.replace('0', "-"), "malformed: character 11 is neither a letter nor a digit"),
            ("sk_live_1".to_owned(), "not minted here: it does not begin with acme_live_"),
        ] {
            assert_eq!(check(&key, &[]), (Exit::Denied, format!("{reason}\n")));
        }
    }

    #[test]
    fn prefixes_are_a_list() {
        let prefixes = ["--prefix", "acme_live_", "--prefix", "acme_"];
        assert_eq!(check(KEY, &prefixes).0, Exit::Done);
        let (_, text) = check("x", &prefixes);
        assert_eq!(text, "not minted here: it does not begin with acme_live_ or acme_\n");
        let (exit, text) = check("x", &["--json"]);
        let expected = "{\"valid\":false,\"reason\":\"it does not begin with acme_live_\"}\n";
        assert_eq!((exit, text.as_str()), (Exit::Denied, expected));
    }
}
