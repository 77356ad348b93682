//! Headers that cannot state a field of the metadata, because their names mean something already.

use http::HeaderName;

/// Headers that frame a message, or control the connection that carries it. A gateway that copied one
/// from a reply would send a malformed request to the upstream, or one that ends elsewhere.
const FRAMING: [&str; 8] =
    ["connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

/// Headers that the reply has with a meaning of their own.
const OF_REPLY: [&str; 6] = [
    "cache-control",
    "content-type",
    "date",
    "retry-after",
    "www-authenticate",
    "x-envoy-auth-headers-to-remove",
];

/// Prefixes of headers that the reply has, or can have.
const PREFIXES_OF_REPLY: [&str; 3] = ["ratelimit", "x-keyward-", "x-ratelimit"];

/// Why `name` is reserved; `None` if it is not. The reason completes a sentence about "this header".
pub(crate) fn reason(name: &HeaderName) -> Option<&'static str> {
    let name = name.as_str();
    if FRAMING.contains(&name) || name.starts_with("proxy-") {
        Some("belongs to the connection between two programs")
    } else if name == "authorization" {
        Some("holds the credentials of a request")
    } else if OF_REPLY.contains(&name) || PREFIXES_OF_REPLY.iter().any(|prefix| name.starts_with(prefix)) {
        Some("has a meaning of its own in the reply of keyward")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_meaning_are_reserved() {
        for name in [
            "Connection",
            "Content-Length",
            "Host",
            "Keep-Alive",
            "TE",
            "Trailer",
            "Transfer-Encoding",
            "Upgrade",
            "Proxy-Authorization",
            "Proxy-Connection",
            "Authorization",
            "Retry-After",
            "WWW-Authenticate",
            "RateLimit",
            "RateLimit-Policy",
            "X-RateLimit-Reset",
            "X-Keyward-Owner",
            "X-Keyward-Verdict",
            "X-Keyward-Status",
            "X-Keyward-Problem",
            "Cache-Control",
            "X-Envoy-Auth-Headers-To-Remove",
        ] {
            let header = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            assert!(reason(&header).is_some(), "{name}");
        }
        for name in ["X-Tenant", "Tenant-Host", "X-Proxy-Tier", "Keyward", "X-Keywards"] {
            let header = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            assert_eq!(reason(&header), None, "{name}");
        }
    }
}
