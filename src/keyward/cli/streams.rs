//! The standard streams of a command: data goes to standard output, everything else to standard
//! error.
//!
//! A closed standard output (`| head`) is no error. The rest of the data is not printed, and the
//! exit code is the same.

use std::fmt::{self, Display, Write as _};
use std::io::{self, Read, Write};

use serde::Serialize;

use super::exit::{CliError, Exit};
use keyward_engine::record::{Printable, escape_json};

/// The three standard streams, or those of a test. Output is not buffered, because a buffer could
/// keep a copy of a key.
pub(super) struct Streams<'a> {
    pub(super) input: &'a mut dyn Read,
    /// Whether the input is a terminal.
    pub(super) input_is_terminal: bool,
    output: &'a mut dyn Write,
    messages: &'a mut dyn Write,
    is_closed: bool,
}

impl<'a> Streams<'a> {
    pub(super) fn new(
        input: &'a mut dyn Read,
        output: &'a mut dyn Write,
        messages: &'a mut dyn Write,
    ) -> Self {
        Self { input, input_is_terminal: false, output, messages, is_closed: false }
    }

    /// Takes the input out, so that a command can print while it reads.
    pub(super) fn take_input(&mut self) -> &'a mut dyn Read {
        // `Empty` has no size, so the box allocates nothing and nothing leaks.
        std::mem::replace(&mut self.input, Box::leak(Box::new(io::empty())))
    }

    /// Prints a line of data for people. Invisible characters are escaped: a terminal would obey
    /// them.
    pub(super) fn print(&mut self, line: impl Display) -> Result<(), CliError> {
        self.print_by(|output| write_escaped(output, &line))
    }

    /// Prints a line of data for a file, as it is.
    pub(super) fn print_exact(&mut self, line: impl Display) -> Result<(), CliError> {
        self.print_by(|output| writeln!(output, "{line}"))
    }

    fn print_by(&mut self, print: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), CliError> {
        if self.is_closed {
            return Ok(());
        }
        match print(self.output) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(())
            }
            Err(error) => {
                Err(CliError::new(Exit::Denied, format_args!("cannot write to standard output: {error}")))
            }
        }
    }

    /// Prints a value as one line of JSON, with invisible characters escaped.
    pub(super) fn print_json(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let line = serde_json::to_string(value)
            .map_err(|error| CliError::new(Exit::Denied, format_args!("cannot write JSON: {error}")))?;
        self.print(escape_json(&line))
    }

    /// Prints a message to standard error, with invisible characters escaped. Errors are ignored,
    /// because there is nowhere to report them.
    pub(super) fn note(&mut self, line: impl Display) {
        let _ = write_escaped(self.messages, &line);
    }

    /// Whether standard output was closed by its reader.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }
}

/// Writes a line with invisible characters escaped, piece by piece: a buffer could keep a copy of a
/// key.
fn write_escaped(to: &mut dyn Write, line: &dyn Display) -> io::Result<()> {
    struct Escaping<'a> {
        to: &'a mut dyn Write,
        result: io::Result<()>,
    }

    impl fmt::Write for Escaping<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.result = write!(self.to, "{}", Printable(text));
            if self.result.is_ok() { Ok(()) } else { Err(fmt::Error) }
        }
    }

    let mut escaping = Escaping { to, result: Ok(()) };
    // The result of the writer says more than that of the formatter.
    let _ = write!(escaping, "{line}");
    escaping.result?;
    to.write_all(b"\n")
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
    fn output_and_messages_contain_no_invisible_characters() {
        use keyward_engine::record::is_invisible;
        let text: String =
            (0..=0x0010_ffff).filter_map(char::from_u32).filter(|c| is_invisible(*c)).collect();
        let (mut input, mut output, mut messages) = (io::empty(), Vec::new(), Vec::new());
        let mut streams = Streams::new(&mut input, &mut output, &mut messages);
        streams.print(&text).expect("prints");
        streams.print(format_args!("{text}")).expect("prints");
        streams.note(&text);
        streams.print_json(&text).expect("prints");
        for bytes in [output, messages] {
            let printed = String::from_utf8(bytes).expect("UTF-8");
            assert!(!printed.contains(|c| c != '\n' && is_invisible(c)));
            assert!(printed.contains("\\u{1b}"), "{printed}");
        }
        let mut output = Vec::new();
        Streams::new(&mut io::empty(), &mut output, &mut io::sink()).print_exact(&text).expect("prints");
        assert_eq!(output, (text + "\n").as_bytes());
    }

    #[test]
    fn closed_output_is_ignored_and_full_disk_is_an_error() {
        let mut head = Broken(io::ErrorKind::BrokenPipe);
        let mut messages = Broken(io::ErrorKind::BrokenPipe);
        let mut input = io::empty();
        let mut streams = Streams::new(&mut input, &mut head, &mut messages);
        assert!(streams.print("data").is_ok());
        assert!(streams.is_closed());
        streams.note("not read");

        let mut full = Broken(io::ErrorKind::StorageFull);
        let mut streams = Streams::new(&mut input, &mut full, &mut messages);
        let failure = streams.print("data").expect_err("a failure");
        assert_eq!(failure.exit, Exit::Denied);
        assert!(failure.message.starts_with("cannot write to standard output: "), "{}", failure.message);
    }
}
