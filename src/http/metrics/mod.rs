//! What a monitoring system collects: the companion's own metrics, and those that the daemon reports.
//! `systemd/METRICS.md` lists them; their names and labels are stable.

mod companion;
mod daemon;
#[cfg(test)]
pub(crate) mod example;
mod exposition;
mod process;
mod writer;

pub(crate) use companion::{CompanionMetrics, GatewayMetrics, RepetitionMetrics};
pub(crate) use daemon::DaemonMetrics;
pub(crate) use exposition::{Format, encode};
