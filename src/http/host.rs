//! The host of a client's request.
//!
//! A host decides which routes apply. Programs that cut a malformed one at different places would
//! disagree about it, so it is refused.

/// Why a host is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// It is not a name or an address with a port.
    #[error("the host is not a name or an address, with or without a port")]
    Malformed,
    /// There is none, and routes depend on it.
    #[error("the request names no host")]
    Missing,
}

/// The name in a Host header, in lower case, without a port and without a dot at its end.
///
/// # Errors
/// If the host is malformed.
pub fn name(host: &str) -> Result<String, HostError> {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let (name, rest) = match host.find(']') {
        Some(end) if host.starts_with('[') => host.split_at(end + 1),
        _ => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let has_port = rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
    if has_port && (is_name(name) || is_address(name)) { Ok(normal(name)) } else { Err(HostError::Malformed) }
}

/// Whether a text is a name, as in DNS.
pub(crate) fn is_name(text: &str) -> bool {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !text.is_empty() && !text.starts_with('.') && text.bytes().all(is_of_name)
}

/// Whether a text is an IPv6 address in brackets.
pub(crate) fn is_address(text: &str) -> bool {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
}

/// A name in lower case, without a dot at its end.
pub(crate) fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_is_a_name_or_an_address_with_or_without_a_port() {
        for (host, expected) in [
            ("api.example.com", "api.example.com"),
            ("API.Example.com:8443", "api.example.com"),
            ("api.example.com.", "api.example.com"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[::1]:80", "[::1]"),
            ("a:", "a"),
        ] {
            assert_eq!(name(host).as_deref(), Ok(expected), "{host}");
        }
        for host in
            ["", ":80", "a:x", "a:80:80", "u@a", "a b", "a/b", ".a", "[a]", "[::1", "::1", "a,b", "a%2e"]
        {
            assert_eq!(name(host), Err(HostError::Malformed), "{host}");
        }
    }
}
