//! The bounds of a listener, and of each of its connections.

use std::time::Duration;

/// Maximum number of headers of a request. Browsers and proxies together send some 30.
pub(crate) const MAX_HEADERS: usize = 128;

/// hyper's smallest buffer.
pub const MIN_HEADER_BYTES: usize = 8 << 10;

/// The bounds of one listener, and of each of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections beyond it wait to be accepted. It is also the number of requests of HTTP/2 in progress on
    /// all connections; further ones are refused.
    pub max_connections: usize,
    /// Bytes of the first line and the headers of a request, at least [`MIN_HEADER_BYTES`].
    pub max_header_bytes: usize,
    /// Time within which the next request has to arrive, and within which a peer has to take some of a
    /// reply.
    pub idle_timeout: Duration,
    /// Time that connections have to end in, once the server stops.
    pub drain_timeout: Duration,
}

/// Bounds that a test does not reach.
#[cfg(test)]
pub(crate) const UNREACHED: ServerLimits = ServerLimits {
    max_connections: 2,
    max_header_bytes: MIN_HEADER_BYTES,
    idle_timeout: Duration::from_secs(20),
    drain_timeout: Duration::from_secs(20),
};
