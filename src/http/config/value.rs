//! Values of the configuration that are texts.

use std::net::SocketAddr;

use http::{HeaderName, Method};
use keyward_settings::text::Text;
use keyward_settings::{SocketPath, deserialize_text};

use super::ListenAddress;
use crate::route::{HostPattern, PathPattern};
use crate::target::Target;

/// Maximum length of names in bytes.
const MAX_NAME: usize = 64;

/// Maximum length of a scope, an environment or a parameter in bytes.
const MAX_WORD: usize = 256;

/// The name of a gateway or a route.
#[derive(Debug)]
pub(super) struct NameText(pub(super) String);

impl Text for NameText {
    const EXPECTED: &'static str = "a name such as \"nginx\"";

    fn parse(text: &str) -> Result<Self, String> {
        let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(is_of_name) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is not a name: it has 1 to {MAX_NAME} letters, digits, -, _ and ."))
        }
    }
}

/// A word of visible ASCII: a scope, an environment, a parameter of a query.
#[derive(Debug)]
pub(super) struct WordText(pub(super) String);

impl Text for WordText {
    const EXPECTED: &'static str = "a word";

    fn parse(text: &str) -> Result<Self, String> {
        let is_word = |text: &str| text.chars().all(|c| !c.is_whitespace() && !c.is_control());
        if (1..=MAX_WORD).contains(&text.len()) && is_word(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is not one word: it has 1 to {MAX_WORD} bytes and no spaces"))
        }
    }
}

/// The name of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeaderText(pub(super) HeaderName);

impl Text for HeaderText {
    const EXPECTED: &'static str = "the name of a header, such as \"x-api-key\"";

    fn parse(text: &str) -> Result<Self, String> {
        HeaderName::from_bytes(text.as_bytes())
            .map(Self)
            .map_err(|_| format!("{text:?} is not the name of a header: write one such as \"x-api-key\""))
    }
}

impl PartialOrd for HeaderText {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for HeaderText {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.as_str().cmp(other.0.as_str())
    }
}

/// The method of a request.
#[derive(Debug)]
pub(super) struct MethodText(pub(super) Method);

impl Text for MethodText {
    const EXPECTED: &'static str = "a method, such as \"GET\"";

    fn parse(text: &str) -> Result<Self, String> {
        // Methods are case-sensitive, and all in use are in upper case.
        let is_upper_case = !text.bytes().any(|byte| byte.is_ascii_lowercase());
        match Method::from_bytes(text.as_bytes()) {
            Ok(method) if is_upper_case => Ok(Self(method)),
            _ => Err(format!("{text:?} is not a method: write one such as \"GET\", in capitals")),
        }
    }
}

/// A host of a route.
#[derive(Debug)]
pub(super) struct HostText(pub(super) HostPattern);

impl Text for HostText {
    const EXPECTED: &'static str = "a host such as \"api.example.com\" or \"*.example.com\"";

    fn parse(text: &str) -> Result<Self, String> {
        HostPattern::parse(text).map(Self).map_err(|error| error.to_string())
    }
}

/// A path of a route.
#[derive(Debug)]
pub(super) struct PathText(pub(super) PathPattern);

impl Text for PathText {
    const EXPECTED: &'static str = "a path such as \"/v1/invoices/**\"";

    fn parse(text: &str) -> Result<Self, String> {
        PathPattern::parse(text).map(Self).map_err(|error| error.to_string())
    }
}

/// The path that a gateway puts before that of a request.
#[derive(Debug)]
pub(super) struct PrefixText(pub(super) String);

impl Text for PrefixText {
    const EXPECTED: &'static str = "a path such as \"/check\"";

    fn parse(text: &str) -> Result<Self, String> {
        match Target::parse(text) {
            Ok(target) if target.query.is_none() => Ok(Self(text.trim_end_matches('/').to_owned())),
            Ok(_) => Err(format!("{text:?} has a query: write a path such as \"/check\"")),
            Err(error) => Err(format!("{text:?}: {error}; write a path such as \"/check\"")),
        }
    }
}

/// Where a listener listens.
#[derive(Debug)]
pub(super) struct ListenText(pub(super) ListenAddress);

impl Text for ListenText {
    const EXPECTED: &'static str =
        "the path of a socket such as \"/run/keyward-http/nginx.sock\", or \"127.0.0.1:9180\"";

    fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return SocketPath::parse(text).map(|path| Self(ListenAddress::Unix(path)));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() && address.port() != 0 => {
                Ok(Self(ListenAddress::Tcp(address)))
            }
            // Whatever can connect can try keys and claim addresses.
            Ok(_) => Err(format!(
                "{text:?} is not on the loopback interface: write 127.0.0.1 or [::1] and a port, or the path of a socket; a \
                 proxy has to be in front"
            )),
            Err(_) => Err(format!("{text:?} is no address: write {}", Self::EXPECTED)),
        }
    }
}

/// Where a listener listens that has to know the user of each connection.
#[derive(Debug)]
pub(super) struct SocketText(pub(super) SocketPath);

impl Text for SocketText {
    const EXPECTED: &'static str = "the path of a socket such as \"/run/keyward-http/settlement.sock\"";

    fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return SocketPath::parse(text).map(Self);
        }
        if text.parse::<SocketAddr>().is_ok() {
            return Err(format!(
                "{text:?} is a TCP port, and a TCP connection does not state which user has opened it, so `uids` would mean \
                 nothing: write {}",
                Self::EXPECTED
            ));
        }
        Err(format!("{text:?} is no address: write {}", Self::EXPECTED))
    }
}

deserialize_text!(
    NameText, WordText, HeaderText, MethodText, HostText, PathText, PrefixText, ListenText, SocketText
);
