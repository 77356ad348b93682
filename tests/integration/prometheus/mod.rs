//! A real Prometheus that scrapes `keyward http`, with the rules and the dashboard of `systemd/prometheus`.

mod alerts;
mod dashboard;
mod exposition;
mod rules;
mod server;
mod stack;
mod traffic;
