//! The address of the client, as the gateway states it.
//!
//! A client can send any header itself. So the address is taken from a header that the gateway sets,
//! counted from the end: a proxy appends the address that it was connected from, and what precedes the
//! entries of trusted proxies was written by the client.

use std::net::{IpAddr, SocketAddr};

use http::header::{HeaderMap, HeaderName};

/// Where the address of the client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressSource {
    /// The header that the gateway sets or appends to.
    pub header: HeaderName,
    /// How many trusted proxies are in front of the gateway. Each has appended one entry, and the
    /// client's is the one before them.
    pub trusted_hops: usize,
}

impl AddressSource {
    /// The address of the client. `None`: the header does not state it. Then a key that is bound to
    /// networks is denied.
    pub fn find(&self, headers: &HeaderMap) -> Option<IpAddr> {
        // Several header lines are one list (RFC 9110, section 5.3).
        let lines: Vec<&str> =
            headers.get_all(&self.header).iter().map(|line| line.to_str().ok()).collect::<Option<_>>()?;
        let entry = lines.iter().rev().flat_map(|line| line.rsplit(',')).nth(self.trusted_hops)?;
        parse(entry.trim())
    }
}

/// An address, with or without a port. IPv4 addresses within IPv6 are IPv4.
fn parse(text: &str) -> Option<IpAddr> {
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let with_port = || text.parse().ok().map(|address: SocketAddr| address.ip());
    text.parse().ok().or_else(in_brackets).or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn find(lines: &[&str], trusted_hops: usize) -> Option<String> {
        let header = HeaderName::from_static("x-forwarded-for");
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(&header, HeaderValue::from_bytes(line.as_bytes()).expect("a value"));
        }
        AddressSource { header, trusted_hops }.find(&headers).map(|address| address.to_string())
    }

    #[test]
    fn address_is_counted_from_the_end() {
        let forged = "6.6.6.6, 203.0.113.7, 10.0.0.1";
        assert_eq!(find(&[forged], 0).as_deref(), Some("10.0.0.1"));
        assert_eq!(find(&[forged], 1).as_deref(), Some("203.0.113.7"));
        assert_eq!(find(&["6.6.6.6", "203.0.113.7,10.0.0.1"], 1).as_deref(), Some("203.0.113.7"));
        assert_eq!(find(&["6.6.6.6, 203.0.113.7", "10.0.0.1"], 1).as_deref(), Some("203.0.113.7"));
    }

    #[test]
    fn address_may_have_a_port() {
        for (text, expected) in [
            ("203.0.113.7", "203.0.113.7"),
            ("203.0.113.7:443", "203.0.113.7"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
        ] {
            assert_eq!(find(&[text], 0).as_deref(), Some(expected), "{text}");
        }
    }

    /// A value that cannot be used must not be skipped: the entry before it is the client's.
    #[test]
    fn unusable_entry_is_no_address() {
        for lines in
            [&[][..], &[""], &["203.0.113.7, unknown"], &["203.0.113.7,"], &["203.0.113.7", "\u{e4}"]]
        {
            assert_eq!(find(lines, 0), None, "{lines:?}");
        }
        assert_eq!(find(&["203.0.113.7"], 1), None, "fewer entries than hops");
    }
}
