//! How often each kind of step has run.

use std::fmt;

#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub seeds: u64,
    pub requests: u64,
    pub lost_connections: u64,
    pub stalled_peers: u64,
    pub exports: u64,
    pub accepted_reloads: u64,
    pub refused_reloads: u64,
    pub polls: u64,
    pub commands: u64,
    pub revocations: u64,
    pub clock_changes: u64,
    pub saves: u64,
    pub stores: u64,
    pub failures: u64,
    pub starts: u64,
    pub failed_starts: u64,
    pub restarts: u64,
    pub crashes: u64,
    pub power_cuts: u64,
    pub last_good: u64,
    pub not_ready: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seeds,
            requests,
            lost_connections,
            stalled_peers,
            exports,
            accepted_reloads,
            refused_reloads,
            polls,
            commands,
            revocations,
            clock_changes,
            saves,
            stores,
            failures,
            starts,
            failed_starts,
            restarts,
            crashes,
            power_cuts,
            last_good,
            not_ready,
        } = self;
        write!(
            f,
            "{seeds} seeds: {requests} requests, {lost_connections} lost connections, {stalled_peers} stalled peers, {exports} exports, \
             {accepted_reloads} accepted and {refused_reloads} refused reloads ({polls} by the poll), {commands} commands, \
             {revocations} changes of the list of revocations, {clock_changes} clock changes, {saves} saves of balances, \
             {stores} writes of the last good keys, {failures} failing calls, {starts} starts ({failed_starts} failed): {restarts} orderly restarts, {crashes} crashes, \
             {power_cuts} power cuts; {last_good} starts with the last good keys, {not_ready} without keys"
        )
    }
}
