//! Envoy's `ext_authz` over gRPC: the service `envoy.service.auth.v3.Authorization`.
//!
//! A [`call`] carries a message with the client's request, which [`attributes`] reads, where other
//! gateways send a subrequest. It is checked in the same way, and the [`response`] puts the result in
//! the terms of the service. What gRPC adds to HTTP are context extensions, which only Envoy's
//! configuration can set, and dynamic metadata for the filters and logs of Envoy.

pub(crate) mod attributes;
pub(crate) mod call;
mod messages;
pub(crate) mod response;

pub(crate) use messages::{CheckRequest, CheckResponse};
