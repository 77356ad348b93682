//! The companion process `keyward http`: it answers the authorization subrequests of HTTP gateways.
//!
//! A gateway sends a subrequest for each request of a client, and lets the request through if the
//! reply allows it. The companion asks the daemon through the public client, holds no keys, and keeps
//! nothing that matters: it can be restarted at any time.
//!
//! # The way of a request
//!
//! 1. [`original`] reads the client's request from the subrequest, in the way of the [`gateway`].
//! 2. [`target`] parses its path, and refuses what programs read in different ways.
//! 3. [`route`] finds what the request needs. [`hint`] adds what the gateway's location needs.
//! 4. [`credential`] finds the key, [`client_address`] the address of the client.
//! 5. [`check`] asks the daemon, and [`charge_once`] keeps a repeated check from being charged again. The
//!    result is an [`outcome`].
//! 6. [`reply`] puts it in the terms of the gateway: the [`identity`] of the key, its limits
//!    ([`rate_limit`]), or the [`problem`].
//!
//! [`companion`] starts the threads that check, and one each for settlements and for metrics. Their
//! sockets are [`endpoint`]s, and each connection speaks HTTP/1.1, or HTTP/2 for Envoy's gRPC.
//!
//! What is missing, empty, repeated or ambiguous refuses the request.
//!
//! [`settlement`] takes debits and refunds, on a socket of its own.

mod accept;
pub mod charge_once;
pub mod check;
pub mod client_address;
pub mod companion;
pub mod config;
mod connection;
pub mod credential;
pub mod endpoint;
mod envoy_grpc;
mod escape;
pub mod gateway;
mod gateway_handler;
pub mod handler;
pub mod header;
pub mod hint;
pub mod host;
pub mod identity;
mod limited_log;
pub mod limits;
mod metrics;
mod monitor;
pub mod origin;
pub mod original;
pub mod outcome;
pub mod problem;
pub mod rate_limit;
pub mod reply;
mod reserved_header;
pub mod route;
pub mod server;
pub mod settlement;
pub mod target;
