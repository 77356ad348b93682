//! Web origins (RFC 6454: scheme, host and port) and patterns of them, for keys that are published
//! in web pages.

/// An origin that a key allows, such as `https://app.example.com`, or a pattern such as
/// `https://*.example.com`.
///
/// `*` matches exactly one label, as in a TLS certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The part before the wildcard, or the whole origin if there is none; in lower case.
    prefix: Box<str>,
    /// The part after the wildcard, beginning with a dot; empty if there is none.
    suffix: Box<str>,
    wildcard: bool,
}

/// An [`Origin`] whose texts are stored elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OriginRef<'o> {
    /// The part before the wildcard, or the whole origin if there is none; in lower case.
    pub(crate) prefix: &'o [u8],
    /// The part after the wildcard. It is not empty: without a wildcard, it is `None`.
    pub(crate) suffix: Option<&'o [u8]>,
}

/// Why a text is not an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// There is no scheme followed by `://`.
    #[error("an origin begins with a scheme, as in https://app.example.com")]
    NoScheme,
    /// There is no host after `://`.
    #[error("an origin names a host, as in https://app.example.com")]
    NoHost,
    /// There is a path, a query, a user or a space.
    #[error("an origin is scheme, host and port only, without a path or user")]
    NotBare,
    /// There is a `*` that is not the whole first label.
    #[error("* may only stand for the whole first label, as in https://*.example.com")]
    Wildcard,
}

impl Origin {
    /// Parses an origin or a pattern. Scheme and host are case-insensitive.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub fn parse(text: &str) -> Result<Self, OriginError> {
        let (scheme, rest) = text.split_once("://").ok_or(OriginError::NoScheme)?;
        if scheme.is_empty() || !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) {
            return Err(OriginError::NoScheme);
        }
        if rest.is_empty() {
            return Err(OriginError::NoHost);
        }
        if rest.bytes().any(|b| b"/?#@\\".contains(&b) || b.is_ascii_whitespace() || b.is_ascii_control()) {
            return Err(OriginError::NotBare);
        }
        let lower = text.to_ascii_lowercase();
        let Some(star) = lower.find('*') else {
            return Ok(Self { prefix: lower.into(), suffix: "".into(), wildcard: false });
        };
        let (prefix, suffix) = (&lower[..star], &lower[star + 1..]);
        if star != scheme.len() + 3 || !suffix.starts_with('.') || suffix.len() < 2 || suffix.contains('*') {
            return Err(OriginError::Wildcard);
        }
        Ok(Self { prefix: prefix.into(), suffix: suffix.into(), wildcard: true })
    }

    /// The origin as text. [`parse`](Self::parse) turns it into the same origin again.
    pub fn text(&self) -> String {
        self.parts().concat()
    }

    /// The parts of the [text](Self::text).
    pub(crate) fn parts(&self) -> [&str; 3] {
        [&self.prefix, if self.wildcard { "*" } else { "" }, &self.suffix]
    }

    /// Bytes of the [text](Self::text).
    pub(crate) fn text_length(&self) -> usize {
        self.parts().map(str::len).iter().sum()
    }

    /// The origin without texts of its own.
    pub(crate) fn as_ref(&self) -> OriginRef<'_> {
        OriginRef { prefix: self.prefix.as_bytes(), suffix: self.wildcard.then_some(self.suffix.as_bytes()) }
    }

    /// Whether `origin`, as sent by a browser, is this origin or matches this pattern.
    pub fn matches(&self, origin: &str) -> bool {
        self.as_ref().matches(origin.as_bytes())
    }
}

impl<'o> OriginRef<'o> {
    /// The origin with this [text](Origin::text).
    pub(crate) fn from_text(text: &'o str) -> Self {
        match text.split_once('*') {
            Some((prefix, suffix)) => Self { prefix: prefix.as_bytes(), suffix: Some(suffix.as_bytes()) },
            None => Self { prefix: text.as_bytes(), suffix: None },
        }
    }

    /// The origin with texts of its own.
    pub(crate) fn to_origin(self) -> Origin {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into();
        let Self { prefix, suffix } = self;
        Origin { prefix: text(prefix), suffix: text(suffix.unwrap_or_default()), wildcard: suffix.is_some() }
    }

    /// Whether this matches every origin that `other` matches.
    pub(crate) fn covers(self, other: OriginRef<'_>) -> bool {
        self == other || (other.suffix.is_none() && self.matches(other.prefix))
    }

    /// See [`Origin::matches`].
    pub(crate) fn matches(self, origin: &[u8]) -> bool {
        let Self { prefix, suffix } = self;
        let Some(suffix) = suffix else { return origin.eq_ignore_ascii_case(prefix) };
        if origin.len() <= prefix.len() + suffix.len() {
            return false;
        }
        let (head, rest) = origin.split_at(prefix.len());
        let (label, tail) = rest.split_at(rest.len() - suffix.len());
        head.eq_ignore_ascii_case(prefix)
            && tail.eq_ignore_ascii_case(suffix)
            && label.iter().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_is_compared_as_a_whole_and_case_insensitively() {
        let origin = Origin::parse("https://App.Example.com:8443").expect("an origin");
        assert!(origin.matches("https://app.example.com:8443"));
        assert!(origin.matches("HTTPS://APP.EXAMPLE.COM:8443"));
        assert!(!origin.matches("https://app.example.com"));
        assert!(!origin.matches("http://app.example.com:8443"));
        assert!(!origin.matches("https://app.example.com:8443.evil.test"));
    }

    #[test]
    fn text_parses_to_the_same_origin() {
        for text in ["https://app.example.com:8443", "https://*.example.com"] {
            let origin = Origin::parse(text).expect("an origin");
            assert_eq!((origin.text().as_str(), Origin::parse(&origin.text())), (text, Ok(origin)));
        }
    }

    #[test]
    fn wildcard_matches_exactly_one_label() {
        let origin = Origin::parse("https://*.example.com").expect("a pattern");
        assert!(origin.matches("https://app.example.com"));
        assert!(!origin.matches("https://example.com"));
        assert!(!origin.matches("https://.example.com"));
        assert!(!origin.matches("https://a.b.example.com"));
        assert!(!origin.matches("https://evil.test/.example.com"));
        assert!(!origin.matches("https://app.example.com.evil.test"));
    }

    #[test]
    fn invalid_origin_is_refused() {
        assert_eq!(Origin::parse("app.example.com"), Err(OriginError::NoScheme));
        assert_eq!(Origin::parse("://app"), Err(OriginError::NoScheme));
        assert_eq!(Origin::parse("https://"), Err(OriginError::NoHost));
        assert_eq!(Origin::parse("https://app/"), Err(OriginError::NotBare));
        assert_eq!(Origin::parse("https://me@app"), Err(OriginError::NotBare));
        for text in ["https://*", "https://*.", "https://a.*.com", "https://*.*.com", "https://*com"] {
            assert_eq!(Origin::parse(text), Err(OriginError::Wildcard), "{text}");
        }
    }
}
