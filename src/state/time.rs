//! Times and timed waits.
//!
//! In production these are the system's clock and the waits of the standard library. In the model
//! test (`tests/model`), an installed simulation determines the time, and decides when a wait has
//! lasted long enough.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
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

/// As [`Receiver::recv_timeout`]. A sender calls [`wake`] afterwards.
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

/// As [`Condvar::wait_timeout_while`], for a mutex that may be poisoned and is locked by this. What
/// notifies the condition variable calls [`wake`] afterwards.
pub fn wait_timeout_while<'m, T>(
    condvar: &Condvar,
    mutex: &'m Mutex<T>,
    timeout: Duration,
    condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'m, T> {
    #[cfg(feature = "simulation")]
    if simulation::is_installed() {
        return simulation::wait_timeout_while(mutex, timeout, condition);
    }
    let guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
    condvar.wait_timeout_while(guard, timeout, condition).unwrap_or_else(PoisonError::into_inner).0
}

/// In a simulation, wakes the threads that wait with a timeout, to see whether they have to go on.
#[inline]
pub fn wake() {
    #[cfg(feature = "simulation")]
    simulation::wake();
}
