//! The gateways, and how they differ: where they state the client's request, and which answers they
//! understand.

use http::StatusCode;
use http::header::HeaderName;
use serde::Deserialize;

use crate::handler::Protocol;

/// A gateway, as the configuration names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gateway {
    /// nginx with `auth_request`.
    Nginx,
    /// Envoy's `ext_authz` over HTTP, and what is built on it: Istio, Contour.
    Envoy,
    /// Envoy's `ext_authz` over gRPC.
    EnvoyGrpc,
    /// Traefik's `ForwardAuth`.
    Traefik,
    /// Caddy's `forward_auth`.
    Caddy,
    /// APISIX's `forward-auth`.
    Apisix,
    /// HAProxy with the Lua script of keyward.
    Haproxy,
}

/// Where a gateway states the client's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RequestSource {
    /// In its own first line, and in `Host`: the gateway forwards the request without its body.
    Itself,
    /// In a message ([`Attributes`](crate::original::Attributes)).
    Attributes,
    /// In headers that the gateway sets. `host` is `None` if the header `Host` states it.
    Headers { method: HeaderName, target: HeaderName, host: Option<HeaderName> },
}

impl Gateway {
    pub(crate) fn request_source(self) -> RequestSource {
        let headers = |method, target, host: Option<&'static str>| RequestSource::Headers {
            method: HeaderName::from_static(method),
            target: HeaderName::from_static(target),
            host: host.map(HeaderName::from_static),
        };
        match self {
            Self::Envoy => RequestSource::Itself,
            Self::EnvoyGrpc => RequestSource::Attributes,
            Self::Nginx => headers("x-original-method", "x-original-uri", None),
            Self::Traefik | Self::Caddy | Self::Apisix | Self::Haproxy => {
                headers("x-forwarded-method", "x-forwarded-uri", Some("x-forwarded-host"))
            }
        }
    }

    /// What the gateway speaks.
    pub(crate) fn protocol(self) -> Protocol {
        if self == Self::EnvoyGrpc { Protocol::Http2 } else { Protocol::Http1 }
    }

    /// Whether the query of a subrequest is always the one in the gateway's configuration. Envoy forwards
    /// the client's, and so does Caddy unless its configuration replaces it.
    pub fn sets_query(self) -> bool {
        !matches!(self, Self::Envoy | Self::EnvoyGrpc | Self::Caddy)
    }

    /// Whether the gateway sends context extensions.
    pub fn sets_context(self) -> bool {
        self == Self::EnvoyGrpc
    }

    /// The status that the gateway gets for `status`, which the client is to see. nginx takes every
    /// status but these for a failure. `X-Keyward-Status` states the real one, and the configuration of
    /// nginx turns it back.
    pub(crate) fn status(self, status: StatusCode) -> StatusCode {
        let is_understood =
            matches!(status, StatusCode::OK | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        match self {
            Self::Nginx if !is_understood => StatusCode::FORBIDDEN,
            _ => status,
        }
    }

    /// Whether the gateway drops the body of an answer, so that the problem has to be in a header.
    pub(crate) fn drops_body(self) -> bool {
        self == Self::Nginx
    }

    /// The header of an answer that lists the headers to remove from the client's request. Other
    /// gateways are configured to remove them.
    pub(crate) fn removal_header(self) -> Option<HeaderName> {
        (self == Self::Envoy).then(|| HeaderName::from_static("x-envoy-auth-headers-to-remove"))
    }
}
