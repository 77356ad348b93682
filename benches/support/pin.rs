//! Pinning threads to processors. Without it, the scheduler moves client and server between
//! processors during a measurement.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The processors that a bench pins threads to: the first two that it may use. With hyperthreading
/// these can be two threads of one core; run the bench under `taskset -c 0,2` or the like to choose
/// others.
pub(crate) fn processors() -> (usize, Option<usize>) {
    let allowed = sched_getaffinity(None).expect("the processors of this thread");
    let mut usable = (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor));
    (usable.next().expect("a thread has a processor"), usable.next())
}

/// Pins this thread, and the threads and processes that it starts, to one processor until it is
/// dropped.
pub(crate) struct Pinned {
    previous: CpuSet,
}

impl Pinned {
    pub(crate) fn to(processor: usize) -> Self {
        let previous = sched_getaffinity(None).expect("the processors of this thread");
        let mut only = CpuSet::new();
        only.set(processor);
        sched_setaffinity(None, &only).expect("the processor may be used");
        Self { previous }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        sched_setaffinity(None, &self.previous).expect("the previous processors may be used");
    }
}
