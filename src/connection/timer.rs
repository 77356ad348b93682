//! A timer for what a worker does once a second.
//!
//! tokio's own timers are kept by the wait for events: while one is set, every wait has a timeout, and for every request the
//! kernel starts a timer and cancels it. This one is a descriptor that becomes readable: it is set once a second, and waits
//! have none.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::read;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::socket::watch;

/// One timer. Where the system has no descriptor left for it, tokio's takes its place.
pub(super) struct Timer(Option<AsyncFd<OwnedFd>>);

impl Timer {
    /// A timer of the worker whose runtime this is called in.
    pub(super) fn new() -> Self {
        Self(descriptor().ok())
    }

    /// Waits until `deadline`. May be dropped at any time, and called again.
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

fn descriptor() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    watch(timerfd_create(TimerfdClockId::Monotonic, flags)?, Interest::READABLE)
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
        // What it says is how often it has fired; it may also have been set to a time before this one, and fired then.
        let _count = read(timer, &mut [0; 8]);
        fired.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_waits_as_long_as_it_should_however_often_it_was_dropped() {
        for timer in [Timer::new(), Timer(None)] {
            let start = Instant::now();
            let soon = start + Duration::from_millis(20);
            let cut_short = tokio::time::timeout(Duration::ZERO, timer.sleep_until(soon)).await;
            assert!(cut_short.is_err());
            timer.sleep_until(start + Duration::from_millis(60)).await;
            assert!(start.elapsed() >= Duration::from_millis(60));
            timer.sleep_until(start).await;
        }
    }
}
