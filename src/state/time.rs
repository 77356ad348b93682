//! Times and timed waits.
//!
//! In production these are the system's clock and the waits of the standard library. In the model
//! test (`tests/model`), an installed [simulation](super::simulation) determines the time, and
//! decides when a wait has lasted long enough.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

#[cfg(feature = "simulation")]
use super::simulation;

#[cfg(feature = "simulation")]
pub use simulation::Instant;
#[cfg(not(feature = "simulation"))]
pub use std::time::Instant;

/// The current system time.
pub fn now() -> Timestamp {
    #[cfg(feature = "simulation")]
    if let Some(time) = simulation::time() {
        return Timestamp::from_nanosecond(time.realtime.into()).unwrap_or_default();
    }
    Timestamp::now()
}

/// The current system time, to the second.
pub fn current_second() -> Timestamp {
    let now = now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// As [`Receiver::recv_timeout`].
///
/// # Errors
/// As [`Receiver::recv_timeout`].
pub fn recv_timeout<T>(receiver: &Receiver<T>, timeout: Duration) -> Result<T, RecvTimeoutError> {
    #[cfg(feature = "simulation")]
    if simulation::is_installed() {
        return simulation::recv_timeout(receiver, timeout);
    }
    receiver.recv_timeout(timeout)
}

/// As [`Condvar::wait_timeout_while`], for a mutex that may be poisoned.
pub fn wait_timeout_while<'m, T>(
    condvar: &Condvar,
    guard: MutexGuard<'m, T>,
    timeout: Duration,
    condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'m, T> {
    #[cfg(feature = "simulation")]
    if simulation::is_installed() {
        return simulation::wait_timeout_while(condvar, guard, timeout, condition);
    }
    condvar.wait_timeout_while(guard, timeout, condition).unwrap_or_else(PoisonError::into_inner).0
}
