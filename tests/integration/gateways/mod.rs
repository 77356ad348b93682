//! Real gateways in front of a real upstream, with the configurations of `systemd/gateways`.
//!
//! A test starts the daemon, `keyward http`, the gateway and an upstream that answers with what it has
//! received. [`cases`] are the same for all gateways.

mod browser;
mod caddy;
mod cases;
mod envoy;
mod haproxy;
mod nginx;
mod page;
mod stack;
mod traefik;
mod upstream;
