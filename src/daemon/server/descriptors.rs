//! The number of connections that fit below the limit of open files.

use keyward_service::descriptors::raise_limit;
use tracing::warn;

/// Descriptors that are not connections: sockets, peers of the admin socket, epoll, inotify, the
/// source, logs, and a margin.
const OWN_DESCRIPTORS: u64 = 96;

/// Descriptors of a worker: its epoll instance, the eventfd that wakes it, and two timers.
const DESCRIPTORS_PER_WORKER: u64 = 4;

/// Raises the limit of open files as far as possible, and returns how many of the `requested`
/// connections fit below it.
pub(super) fn connection_limit(requested: usize, workers: usize) -> usize {
    let own = OWN_DESCRIPTORS + DESCRIPTORS_PER_WORKER * workers as u64;
    let possible = raise_limit().saturating_sub(own);
    let possible = usize::try_from(possible).unwrap_or(usize::MAX).max(1);
    if possible < requested {
        warn!(
            max_connections = requested,
            possible,
            "the limit of open files allows fewer connections than server.max_connections: raise LimitNOFILE= in the unit \
             (or ulimit -n), or lower the setting"
        );
    }
    requested.min(possible)
}
