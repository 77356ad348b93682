//! A timer built on `timerfd`, for what a worker does once a second.
//!
//! tokio passes the earliest of its own timers to epoll as a timeout. While one is set, the kernel
//! would start and cancel a timer for every request. This timer is a descriptor that becomes
//! readable: it is set once a second, and epoll waits without a timeout.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::read;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::socket::register;

/// A timer. It falls back to tokio's timer when the process has no descriptor left.
pub(super) struct TimerFd(Option<AsyncFd<OwnedFd>>);

impl TimerFd {
    /// A timer of the current runtime.
    pub(super) fn new() -> Self {
        Self(open().ok())
    }

    /// A timer of the runtime's clock, which a test can pause.
    #[cfg(test)]
    pub(super) fn of_runtime() -> Self {
        Self(None)
    }

    /// Waits until `deadline`. Cancel safe.
    pub(super) async fn sleep_until(&self, deadline: Instant) {
        let slept = match &self.0 {
            Some(timer) => sleep(timer, deadline).await,
            None => Err(io::ErrorKind::Unsupported.into()),
        };
        if slept.is_err() {
            tokio::time::sleep_until(deadline).await;
        }
    }
}

fn open() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    register(timerfd_create(TimerfdClockId::Monotonic, flags)?, Interest::READABLE)
}

async fn sleep(timer: &AsyncFd<OwnedFd>, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        timerfd_settime(
            timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: zero, it_value: left },
        )?;
        let mut fired = timer.readable().await?;
        // The number of expirations does not matter. The timer may also have fired for an earlier,
        // cancelled call, so that the loop checks the deadline again.
        let _ = read(timer, &mut [0; 8]);
        fired.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn cancelled_timer_still_waits_until_its_next_deadline() {
        for timer in [TimerFd::new(), TimerFd::of_runtime()] {
            let start = Instant::now();
            let soon = start + Duration::from_millis(20);
            let cancelled = tokio::time::timeout(Duration::ZERO, timer.sleep_until(soon)).await;
            assert!(cancelled.is_err());
            timer.sleep_until(start + Duration::from_millis(60)).await;
            assert!(start.elapsed() >= Duration::from_millis(60));
            timer.sleep_until(start).await;
        }
    }
}
