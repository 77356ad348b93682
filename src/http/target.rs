//! The target of a client's request: its path and its query, as the gateway states them.
//!
//! A path decides which scopes a request needs. So it must mean the same to the gateway, to keyward
//! and to the upstream. A path that programs are known to read in different ways is refused instead of
//! normalised: keyward cannot know what the upstream makes of it.

use percent_encoding::percent_decode_str;

use crate::escape;

/// A path whose segments are unambiguous, and the query as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'r> {
    /// The decoded segments between the slashes. `/` has one, which is empty; `/a/` has two.
    segments: Vec<Vec<u8>>,
    /// What follows the first question mark.
    pub query: Option<&'r str>,
}

/// Why a target is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It is not an absolute path.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// A slash follows another.
    #[error("the path has an empty segment (two slashes in a row)")]
    EmptySegment,
    /// A segment is `.` or `..`, encoded or not.
    #[error("the path has a dot segment")]
    DotSegment,
    /// A segment contains an encoded slash, a backslash, or a control character.
    #[error("the path has a slash, backslash or control character within a segment")]
    Separator,
    /// A segment has parameters (`;v=1`), which some programs remove and others do not.
    #[error("the path has a semicolon")]
    Parameters,
    /// A segment is encoded twice. Some programs decode twice.
    #[error("the path is encoded twice")]
    EncodedTwice,
    /// A percent sign is not followed by two hexadecimal digits.
    #[error("the path is not encoded correctly")]
    Encoding,
    /// Characters that a target cannot have.
    #[error("the target has characters that must be percent-encoded")]
    Character,
}

impl<'r> Target<'r> {
    /// Parses the target of a request, as it stands in the first line of HTTP: an absolute path and a
    /// query, or an absolute URL, whose authority is ignored.
    ///
    /// # Errors
    /// If the path is ambiguous.
    pub fn parse(target: &'r str) -> Result<Self, TargetError> {
        if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err(TargetError::Character);
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let path = without_authority(path);
        let segments = path.strip_prefix('/').ok_or(TargetError::NotAbsolute)?;
        let last = segments.split('/').count() - 1;
        let segments = segments.split('/').enumerate();
        let segments = segments.map(|(position, text)| match text {
            "" if position < last => Err(TargetError::EmptySegment),
            _ => segment(text),
        });
        Ok(Self { segments: segments.collect::<Result<_, _>>()?, query })
    }

    /// The decoded segments between the slashes.
    pub fn segments(&self) -> &[Vec<u8>] {
        &self.segments
    }
}

/// The path of an absolute URL, which HTTP/1.1 allows as a target. Others are returned unchanged.
fn without_authority(target: &str) -> &str {
    match target.split_once("://") {
        Some((scheme, rest))
            if !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) =>
        {
            rest.find('/').map_or("/", |slash| &rest[slash..])
        }
        _ => target,
    }
}

fn segment(text: &str) -> Result<Vec<u8>, TargetError> {
    if !escape::is_well_formed(text) {
        return Err(TargetError::Encoding);
    }
    let decoded: Vec<u8> = percent_decode_str(text).collect();
    if matches!(&*decoded, b"." | b"..") {
        return Err(TargetError::DotSegment);
    }
    if decoded.contains(&b';') {
        return Err(TargetError::Parameters);
    }
    let is_escape = |window: &[u8]| window[0] == b'%' && window[1..].iter().all(u8::is_ascii_hexdigit);
    if decoded.windows(3).any(is_escape) {
        return Err(TargetError::EncodedTwice);
    }
    let separates = |byte: &u8| matches!(byte, b'/' | b'\\') || byte.is_ascii_control();
    if decoded.iter().any(separates) { Err(TargetError::Separator) } else { Ok(decoded) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(target: &str) -> Vec<String> {
        let target = Target::parse(target).expect("it is unambiguous");
        target.segments().iter().map(|segment| String::from_utf8_lossy(segment).into_owned()).collect()
    }

    #[test]
    fn target_is_split_into_decoded_segments_and_a_query() {
        for (target, expected, query) in [
            ("/", &[""][..], None),
            ("/?", &[""], Some("")),
            ("/a", &["a"], None),
            ("/a/b%20c?d=e?f", &["a", "b c"], Some("d=e?f")),
            ("/a/", &["a", ""], None),
            ("/.../a", &["...", "a"], None),
            ("/%61", &["a"], None),
            ("http://example.com/a?b", &["a"], Some("b")),
            ("https://example.com", &[""], None),
            ("/a?u=http://x/../y", &["a"], Some("u=http://x/../y")),
            ("/a%25", &["a%"], None),
        ] {
            assert_eq!(segments(target), expected, "{target}");
            assert_eq!(Target::parse(target).expect("parses").query, query, "{target}");
        }
    }

    #[test]
    fn ambiguous_path_is_refused() {
        for (target, expected) in [
            ("", TargetError::NotAbsolute),
            ("a", TargetError::NotAbsolute),
            ("*", TargetError::NotAbsolute),
            ("example.com:443", TargetError::NotAbsolute),
            ("//a", TargetError::EmptySegment),
            ("/a//b", TargetError::EmptySegment),
            ("/a//", TargetError::EmptySegment),
            ("/a/../b", TargetError::DotSegment),
            ("/a/..", TargetError::DotSegment),
            ("/./a", TargetError::DotSegment),
            ("/a/%2e%2E/b", TargetError::DotSegment),
            ("/a/.%2e", TargetError::DotSegment),
            ("/a/..;v=1/b", TargetError::Parameters),
            ("/a;v/b", TargetError::Parameters),
            ("/a%3bv/b", TargetError::Parameters),
            ("/a%252fb", TargetError::EncodedTwice),
            ("/%252e%252e/b", TargetError::EncodedTwice),
            ("/a%2fb", TargetError::Separator),
            ("/a%5Cb", TargetError::Separator),
            ("/a\\b", TargetError::Separator),
            ("/a%00", TargetError::Separator),
            ("/a%0a", TargetError::Separator),
            ("/a%7f", TargetError::Separator),
            ("/a%", TargetError::Encoding),
            ("/a%2", TargetError::Encoding),
            ("/a%2g", TargetError::Encoding),
            ("/a%%20", TargetError::Encoding),
            ("/a b", TargetError::Character),
            ("/a\u{e4}", TargetError::Character),
            ("/a#b", TargetError::Character),
            ("/a\t", TargetError::Character),
        ] {
            assert_eq!(Target::parse(target), Err(expected), "{target:?}");
        }
    }
}
