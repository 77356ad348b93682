//! Percent-encoding, as RFC 3986 defines it.

/// Whether every percent sign is followed by two hexadecimal digits.
pub(crate) fn is_well_formed(text: &str) -> bool {
    let is_escape = |rest: &str| rest.len() >= 2 && rest.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit);
    text.split('%').skip(1).all(is_escape)
}
