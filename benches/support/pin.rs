//! Pinning threads to processors. Without it the scheduler moves both ends of a socket about while they are
//! measured.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The processors that a bench pins to: the first two that it may use. On a machine with hyperthreads these can be two
/// threads of one core; start the bench under `taskset -c 0,2` or the like to choose others.
pub(crate) fn processors() -> (usize, Option<usize>) {
    let allowed = sched_getaffinity(None).expect("the processors of this thread");
    let mut usable = (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor));
    (usable.next().expect("a thread runs somewhere"), usable.next())
}

/// Keeps this thread, and what it starts meanwhile, on one processor until it is dropped.
pub(crate) struct Pinned {
    before: CpuSet,
}

impl Pinned {
    pub(crate) fn to(processor: usize) -> Self {
        let before = sched_getaffinity(None).expect("the processors of this thread");
        let mut only = CpuSet::new();
        only.set(processor);
        sched_setaffinity(None, &only).expect("this processor may be used");
        Self { before }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        sched_setaffinity(None, &self.before).expect("these processors were used before");
    }
}
