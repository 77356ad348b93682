//! Where a command reads and writes: data to standard output, everything else to standard error.
//!
//! A reader who has seen enough (`| head`) is no failure: what is left is not printed, and the exit code says what it
//! would have said.

use std::fmt::Display;
use std::io::{self, Read, Write};

use serde::Serialize;

use super::exit::{Exit, Failure};
use keyward_engine::record::escape_json;

/// The three standard streams, or what a test gives instead. Output is not buffered, so that a key in it is nowhere
/// else.
pub(super) struct Streams<'a> {
    pub(super) input: &'a mut dyn Read,
    /// Whether somebody is typing.
    pub(super) input_is_terminal: bool,
    output: &'a mut dyn Write,
    messages: &'a mut dyn Write,
    closed: bool,
}

impl<'a> Streams<'a> {
    pub(super) fn new(
        input: &'a mut dyn Read,
        output: &'a mut dyn Write,
        messages: &'a mut dyn Write,
    ) -> Self {
        Self { input, input_is_terminal: false, output, messages, closed: false }
    }

    /// The input, to print while it is being read; none is left.
    pub(super) fn take_input(&mut self) -> &'a mut dyn Read {
        // Of no size: nothing is allocated, and nothing leaks.
        std::mem::replace(&mut self.input, Box::leak(Box::new(io::empty())))
    }

    /// Prints a line of data.
    pub(super) fn print(&mut self, line: impl Display) -> Result<(), Failure> {
        if self.closed {
            return Ok(());
        }
        match writeln!(self.output, "{line}") {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            Err(error) => {
                Err(Failure::new(Exit::Denied, format_args!("cannot write to standard output: {error}")))
            }
        }
    }

    /// Prints a value as one line of JSON, in which a terminal shows every character.
    pub(super) fn print_json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let line = serde_json::to_string(value)
            .map_err(|error| Failure::new(Exit::Denied, format_args!("cannot write JSON: {error}")))?;
        self.print(escape_json(&line))
    }

    /// Says something to the person at the terminal. Where nobody listens, nobody is told.
    pub(super) fn note(&mut self, line: impl Display) {
        let _nobody_listens = writeln!(self.messages, "{line}");
    }

    /// Whether nobody reads the output any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_who_has_gone_is_no_failure_and_a_full_disk_is() {
        let mut head = Broken(io::ErrorKind::BrokenPipe);
        let mut messages = Broken(io::ErrorKind::BrokenPipe);
        let mut input = io::empty();
        let mut streams = Streams::new(&mut input, &mut head, &mut messages);
        assert!(streams.print("data").is_ok());
        assert!(streams.is_closed());
        streams.note("nobody listens");

        let mut full = Broken(io::ErrorKind::StorageFull);
        let mut streams = Streams::new(&mut input, &mut full, &mut messages);
        let failure = streams.print("data").expect_err("a failure");
        assert_eq!(failure.exit, Exit::Denied);
        assert!(failure.message.starts_with("cannot write to standard output: "), "{}", failure.message);
    }
}
