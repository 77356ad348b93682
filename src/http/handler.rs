//! What answers the requests of a listener.

use std::error::Error;
use std::future::Future;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Incoming};

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1
    Http1,
    /// HTTP/2 without TLS, from the first byte.
    Http2,
}

/// The process that has connected to a Unix socket, as the kernel states it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its number, if it is in a namespace of this process.
    pub pid: Option<i32>,
}

/// What answers requests.
pub trait Handler: 'static {
    /// The body of its replies.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + 'static;

    /// The reply to a request. `peer` is `None` if it came through TCP. A body is read within bounds, or
    /// not at all.
    fn handle(
        &self,
        peer: Option<Peer>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>>;

    /// What its peers speak.
    fn protocol(&self) -> Protocol {
        Protocol::Http1
    }

    /// Whether requests of this peer are answered with more than a refusal.
    fn expects(&self, _peer: Option<Peer>) -> bool {
        true
    }

    /// Called when a connection was accepted.
    fn connection_opened(&self) {}

    /// Called when it has ended.
    fn connection_closed(&self) {}

    /// Called about once a second, and at the end.
    fn each_second(&self) {}
}
