//! Raw keys on their way in: lines of standard input or of a file, in memory that is wiped.
//!
//! Never an argument: the arguments of a process are in the process list, for everyone to read, and in the shell's
//! history. Typed keys are not shown.

use std::io::{self, ErrorKind, Read};
use std::path::Path;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::exit::{Exit, Failure};
use super::streams::Streams;
use keyward_engine::record::Quoted;

/// Longest line that is taken for a key: 64 times what a daemon takes raw. A wrong file must not fill the memory.
const MAX_LINE: usize = 64 << 10;

/// What is said where a key is due and there is none.
pub(super) const NO_KEY: &str = "there is no key: give it on standard input, as in < key.txt";

/// Keys, one a line. A line ends in a newline, or a carriage return and a newline, or the end of the input.
pub(super) struct Keys<'r> {
    input: &'r mut dyn Read,
    buffer: Zeroizing<Box<[u8]>>,
    start: usize,
    end: usize,
    ended: bool,
    /// Lines taken so far.
    pub(super) lines: u64,
}

impl<'r> Keys<'r> {
    pub(super) fn new(input: &'r mut dyn Read) -> Self {
        // A core dump would hold the keys. Where the system does not let us forbid it, nothing is lost but that.
        let _best_effort = set_dumpable_behavior(DumpableBehavior::NotDumpable);
        let buffer = Zeroizing::new(vec![0; MAX_LINE].into_boxed_slice());
        Self { input, buffer, start: 0, end: 0, ended: false, lines: 0 }
    }

    /// The next line without its end; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, Failure> {
        loop {
            let rest = &self.buffer[self.start..self.end];
            let (length, used) = match rest.iter().position(|byte| *byte == b'\n') {
                Some(newline) => {
                    let carriage_return = rest[..newline].ends_with(b"\r");
                    (newline - usize::from(carriage_return), newline + 1)
                }
                None if self.ended && rest.is_empty() => return Ok(None),
                None if self.ended => (rest.len(), rest.len()),
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

    fn fill(&mut self) -> Result<(), Failure> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.buffer.len() {
            let message = format!("line {} is longer than {MAX_LINE} bytes: is it a key?", self.lines + 1);
            return Err(Failure::new(Exit::Usage, message));
        }
        match self.input.read(&mut self.buffer[self.end..]) {
            Ok(0) => self.ended = true,
            Ok(count) => self.end += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(Failure::new(Exit::Usage, format_args!("cannot read the key: {error}")));
            }
        }
        Ok(())
    }
}

/// Reads the one key in `file`, or on standard input.
pub(super) fn read_key(
    file: Option<&Path>,
    streams: &mut Streams<'_>,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if let Some(path) = file {
        // A path that may be a key, given in the wrong place, is not repeated.
        let name = match path.to_str() {
            Some(name) if !Quoted(name).may_be_key() => name,
            _ => "it",
        };
        let mut file = std::fs::File::open(path).map_err(|error| {
            Failure::new(Exit::Usage, format_args!("--key-file: cannot open {name}: {error}"))
        })?;
        return only_line(&mut file, false).map_err(|Failure { exit, message }| {
            let message = if message == NO_KEY { "there is no key in it" } else { &message };
            Failure::new(exit, format_args!("--key-file: {name}: {message}"))
        });
    }
    if !streams.input_is_terminal {
        return only_line(streams.input, false);
    }
    streams.note("Type or paste the key (it is not shown), then press Enter:");
    let _silence = Silence::begin();
    only_line(streams.input, true)
}

/// `is_typed`: the first line is all that there will be.
fn only_line(input: &mut dyn Read, is_typed: bool) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut keys = Keys::new(input);
    let key = Zeroizing::new(keys.next()?.unwrap_or_default().to_vec());
    if key.is_empty() {
        return Err(Failure::new(Exit::Usage, NO_KEY));
    }
    if !is_typed && keys.next()?.is_some() {
        return Err(Failure::new(Exit::Usage, "there is more than one line: give one key at a time"));
    }
    Ok(key)
}

/// The terminal does not show what is typed, until this is dropped.
struct Silence {
    before: Termios,
}

impl Silence {
    fn begin() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent).ok()?;
        Some(Self { before })
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let _terminal_has_gone = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(mut input: &[u8]) -> Vec<Vec<u8>> {
        let mut keys = Keys::new(&mut input);
        let mut lines = Vec::new();
        while let Some(line) = keys.next().expect("a line") {
            lines.push(line.to_vec());
        }
        lines
    }

    #[test]
    fn a_line_ends_in_a_newline_or_at_the_end() {
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
        let failure = Keys::new(&mut endless).next().map(|_| ()).expect_err("too long");
        assert_eq!(failure.message, "line 1 is longer than 65536 bytes: is it a key?");
    }

    #[test]
    fn a_key_is_one_line() {
        let read = |mut input: &[u8]| only_line(&mut input, false).map(|key| key.to_vec());
        assert_eq!(read(b"key\r\n").expect("a key"), b"key");
        assert_eq!(read(b" key ").expect("a key"), b" key ", "spaces are not ours to judge");
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
