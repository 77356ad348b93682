//! Reads raw keys from standard input or a file, into memory that is wiped.
//!
//! Keys are never taken from the arguments, which are in the process list, readable for every user,
//! and in the history of the shell. A terminal does not show a typed key.

use std::io::{self, ErrorKind, Read};
use std::path::Path;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::exit::{CliError, Exit};
use super::streams::Streams;
use keyward_engine::record::Quoted;

/// Maximum length of a line: 64 times the maximum length of a raw key. A wrong file must not fill
/// the memory.
const MAX_LINE: usize = 64 << 10;

/// The message about a missing key.
pub(super) const NO_KEY: &str = "there is no key: give it on standard input, as in < key.txt";

/// Reads keys, one in each line. A line ends in LF, CRLF or the end of the input.
pub(super) struct KeyReader<'r> {
    input: &'r mut dyn Read,
    buffer: Zeroizing<Box<[u8]>>,
    start: usize,
    end: usize,
    is_at_end: bool,
    /// The number of lines that were read.
    pub(super) lines: u64,
}

impl<'r> KeyReader<'r> {
    pub(super) fn new(input: &'r mut dyn Read) -> Self {
        // A core dump would contain the keys. If it cannot be forbidden, the command works all the
        // same.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
        let buffer = Zeroizing::new(vec![0; MAX_LINE].into_boxed_slice());
        Self { input, buffer, start: 0, end: 0, is_at_end: false, lines: 0 }
    }

    /// The next line without its end. `None`: the input has ended.
    pub(super) fn next_key(&mut self) -> Result<Option<&[u8]>, CliError> {
        loop {
            let rest = &self.buffer[self.start..self.end];
            let (length, used) = match rest.iter().position(|byte| *byte == b'\n') {
                Some(newline) => {
                    let carriage_return = rest[..newline].ends_with(b"\r");
                    (newline - usize::from(carriage_return), newline + 1)
                }
                None if self.is_at_end && rest.is_empty() => return Ok(None),
                None if self.is_at_end => (rest.len(), rest.len()),
                None => {
                    self.fill()?;
                    continue;
                }
            };
            let line = self.start..self.start + length;
            self.start += used;
            self.lines += 1;
            return Ok(Some(&self.buffer[line]));
        }
    }

    fn fill(&mut self) -> Result<(), CliError> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.buffer.len() {
            let message = format!("line {} is longer than {MAX_LINE} bytes: is it a key?", self.lines + 1);
            return Err(CliError::new(Exit::Usage, message));
        }
        match self.input.read(&mut self.buffer[self.end..]) {
            Ok(0) => self.is_at_end = true,
            Ok(count) => self.end += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(CliError::new(Exit::Usage, format_args!("cannot read the key: {error}")));
            }
        }
        Ok(())
    }
}

/// Reads a single key from `file` or standard input.
pub(super) fn read_key(
    file: Option<&Path>,
    streams: &mut Streams<'_>,
) -> Result<Zeroizing<Vec<u8>>, CliError> {
    if let Some(path) = file {
        // A path that looks like a key was probably given by mistake, and is not repeated.
        let name = match path.to_str() {
            Some(name) if !Quoted(name).may_be_key() => name,
            _ => "it",
        };
        let mut file = std::fs::File::open(path).map_err(|error| {
            CliError::new(Exit::Usage, format_args!("--key-file: cannot open {name}: {error}"))
        })?;
        return only_line(&mut file, false).map_err(|CliError { exit, message }| {
            let message = if message == NO_KEY { "there is no key in it" } else { &message };
            CliError::new(exit, format_args!("--key-file: {name}: {message}"))
        });
    }
    if !streams.input_is_terminal {
        return only_line(streams.input, false);
    }
    streams.note("Type or paste the key (it is not shown), then press Enter:");
    let _echo_off = EchoOff::begin();
    only_line(streams.input, true)
}

/// Reads a key from input that has one line. With `is_typed`, reads only the first line.
fn only_line(input: &mut dyn Read, is_typed: bool) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let mut keys = KeyReader::new(input);
    let key = Zeroizing::new(keys.next_key()?.unwrap_or_default().to_vec());
    if key.is_empty() {
        return Err(CliError::new(Exit::Usage, NO_KEY));
    }
    if !is_typed && keys.next_key()?.is_some() {
        return Err(CliError::new(Exit::Usage, "there is more than one line: give one key at a time"));
    }
    Ok(key)
}

/// Turns off the echo of the terminal until it is dropped.
struct EchoOff {
    before: Termios,
}

impl EchoOff {
    fn begin() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent).ok()?;
        Some(Self { before })
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(mut input: &[u8]) -> Vec<Vec<u8>> {
        let mut keys = KeyReader::new(&mut input);
        let mut lines = Vec::new();
        while let Some(line) = keys.next_key().expect("a line") {
            lines.push(line.to_vec());
        }
        lines
    }

    #[test]
    fn line_ends_at_a_newline_or_the_end_of_input() {
        assert_eq!(lines(b""), Vec::<Vec<u8>>::new());
        assert_eq!(lines(b"a"), [b"a"]);
        assert_eq!(lines(b"a\nb\r\n"), [b"a", b"b"]);
        assert_eq!(
            lines(b"a\n\nb\r"),
            [&b"a"[..], b"", b"b\r"],
            "a carriage return alone is a part of the key"
        );
    }

    #[test]
    fn lines_are_found_wherever_the_input_is_split() {
        let line = [b'k'; 1000];
        let input = [&line[..], b"\n"].concat().repeat(200);
        assert!(lines(&input).iter().all(|found| *found == line));
        assert_eq!(lines(&input).len(), 200, "more than one buffer");
        assert_eq!(lines(&vec![b'k'; MAX_LINE - 1]).len(), 1);
        let mut endless = io::repeat(b'k');
        let failure = KeyReader::new(&mut endless).next_key().map(|_| ()).expect_err("too long");
        assert_eq!(failure.message, "line 1 is longer than 65536 bytes: is it a key?");
    }

    #[test]
    fn key_is_a_single_line() {
        let read = |mut input: &[u8]| only_line(&mut input, false).map(|key| key.to_vec());
        assert_eq!(read(b"key\r\n").expect("a key"), b"key");
        assert_eq!(read(b" key ").expect("a key"), b" key ", "spaces are part of the key");
        for (input, message) in [
            (&b""[..], "there is no key: give it on standard input, as in < key.txt"),
            (b"\n", "there is no key: give it on standard input, as in < key.txt"),
            (b"one\ntwo\n", "there is more than one line: give one key at a time"),
        ] {
            let failure = read(input).expect_err("no key");
            assert_eq!((failure.exit, failure.message.as_str()), (Exit::Usage, message));
        }
        let mut typed: &[u8] = b"key\nnot read any more";
        assert_eq!(*only_line(&mut typed, true).expect("a key"), b"key");
    }
}
