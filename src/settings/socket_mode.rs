//! Permissions of sockets, such as `server.socket_mode`.

use crate::deserialize_text;
use crate::text::Text;

/// Permission bits of a Unix socket: at most `0o777`, with at least one write bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketMode(u32);

impl SocketMode {
    /// The default: the owner and the socket's group may connect.
    pub const DEFAULT: Self = Self(0o660);

    /// The bits, as for `chmod`.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl Text for SocketMode {
    const EXPECTED: &'static str = "octal digits in quotes, such as \"0660\"";

    fn parse(text: &str) -> Result<Self, String> {
        let octal = matches!(text.len(), 3 | 4) && text.bytes().all(|byte| byte.is_ascii_digit());
        match u32::from_str_radix(text, 8) {
            Ok(mode) if octal && mode <= 0o777 && mode & 0o222 != 0 => Ok(Self(mode)),
            Ok(mode) if octal && mode <= 0o777 => Err(format!(
                "{text:?} allows no one to write, and so no one to connect: write one such as \"0660\""
            )),
            _ => Err(format!("{text:?} is not a mode: write octal digits from \"0200\" to \"0777\"")),
        }
    }
}

deserialize_text!(SocketMode);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_is_three_or_four_octal_digits_with_a_write_bit() {
        for (text, bits) in [("0660", 0o660), ("660", 0o660), ("0777", 0o777), ("0200", 0o200)] {
            assert_eq!(SocketMode::parse(text).map(SocketMode::bits), Ok(bits), "{text}");
        }
        for text in ["", "0", "66", "0o660", "1660", "4755", "0680", "+660", "rw-rw----", "00660"] {
            let refused = SocketMode::parse(text).expect_err("not a mode");
            let expected = format!("{text:?} is not a mode: write octal digits from \"0200\" to \"0777\"");
            assert_eq!(refused, expected);
        }
        let refused = SocketMode::parse("0444").expect_err("no one may connect");
        assert_eq!(
            refused,
            r#""0444" allows no one to write, and so no one to connect: write one such as "0660""#
        );
    }
}
