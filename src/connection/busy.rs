//! Busy polling: looking at a socket for a while before sleeping on it.
//!
//! Where a client and its worker have a processor each, to fall asleep and be woken costs several times what an answer costs. A
//! connection that has been answered may therefore look for the next request itself, for up to `server.busy_poll`, with
//! a read that does not wait: tokio has forgotten that the socket was ready, and would not ask the system.
//!
//! Nobody is kept waiting by that. Every few looks the task gives way to the worker's others, which polls epoll: what has
//! arrived elsewhere is served by a worker that is awake. And it ends where it does not pay ([`Habit`]): a connection that is
//! idle, or slower than the spin is long, or whose client needs the same processor to ask, sleeps as if there were no busy
//! polling.
//!
//! The thread itself does not give way (`sched_yield`). Where the client shares its processor that would find most requests;
//! but where anything else does, be it of the lowest priority, it would run for milliseconds before the worker looks again.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::yield_now;

use super::Connection;

/// Connections of a worker that spin at a time. Each makes the others' looks come later; who finds no place is found by
/// epoll, which those who spin keep asking.
pub(super) const PLACES: usize = 4;

/// Looks after which the worker's other tasks have their turn: some three microseconds, less than an answer's way.
const LOOKS: u32 = 16;

/// Answers after which a connection that is always too slow tries again, at most: at 50 us each, trying then costs the
/// worker less than a thousandth of its time, however often it is asked.
const LONGEST_REST: u32 = 1023;

/// One answer, in [`Habit::caution`], whose eighths have to be told apart.
const ONE: u32 = 64;

/// Who spins on a worker.
#[derive(Default)]
pub(super) struct Places {
    taken: Cell<usize>,
}

/// One of them, until it is dropped.
struct Place<'a>(&'a Places);

impl Places {
    fn take(&self) -> Option<Place<'_>> {
        let taken = self.taken.get();
        (taken < PLACES).then(|| {
            self.taken.set(taken + 1);
            Place(self)
        })
    }

    /// How many spin.
    pub(super) fn taken(&self) -> usize {
        self.taken.get()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.taken.set(self.0.taken.get().saturating_sub(1));
    }
}

/// What a connection has learnt about its peer: whether the next request comes soon enough to be waited for awake.
///
/// Each spin that ends in vain, or too late because another thread had the processor, doubles the number of answers after
/// which nobody looks; each that finds its request lowers it by an eighth. So it goes on where five of six find one: a vain
/// one costs more than one that finds something saves.
#[derive(Default)]
pub(super) struct Habit {
    /// An answer has been given, and nobody has waited since. An alarm ends a wait but no silence: who goes on waiting
    /// after it has looked already, or has let this answer pass.
    has_answered: bool,
    /// Answers still to let pass.
    rest: u32,
    /// How many they were the last time, in parts of [`ONE`], less what has been found since.
    caution: u32,
    /// Whether the request that comes next has been looked for.
    has_spun: bool,
    /// Looks since the worker's other tasks had their turn.
    looks: u32,
}

impl Habit {
    /// The place to look for the next request from, if that is to be done.
    fn tries<'a>(&mut self, places: &'a Places) -> Option<Place<'a>> {
        if !std::mem::take(&mut self.has_answered) {
            return None;
        }
        let place = places.take()?;
        self.has_spun = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        self.has_spun.then_some(place)
    }

    /// A request has come.
    pub(super) fn learn(&mut self, in_time: bool) {
        self.has_answered = true;
        if !std::mem::take(&mut self.has_spun) {
            // Who sleeps does not learn: a client on the same processor is quick only because the worker sleeps.
        } else if in_time {
            self.caution -= self.caution / 8;
        } else {
            self.caution = (2 * self.caution + ONE).min(LONGEST_REST * ONE);
            self.rest = self.caution / ONE;
        }
    }
}

impl Connection {
    /// Looks for the next request for as long as that may pay; the bytes that have been read. `None`: it is time to sleep.
    pub(super) async fn spin(&mut self) -> io::Result<Option<usize>> {
        let shared = Rc::clone(&self.shared);
        let patience = shared.timeouts.busy_poll;
        if patience == Duration::ZERO {
            return Ok(None);
        }
        let Some(_place) = self.habit.tries(&shared.places) else {
            return Ok(None);
        };
        loop {
            let looks = if shared.places.taken() > 1 { 1 } else { LOOKS };
            if self.habit.looks >= looks {
                self.habit.looks = 0;
                yield_now().await;
                if self.last_read.elapsed() > patience || shared.bell.is_draining() {
                    return Ok(None);
                }
            }
            self.habit.looks += 1;
            if let Some(bytes) = self.read_now()? {
                return Ok(Some(bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `answers` to a peer whose requests come `in_time` were followed by a spin.
    fn spins(habit: &mut Habit, answers: u32, in_time: bool) -> u32 {
        let mut spins = 0;
        for _ in 0..answers {
            spins += u32::from(habit.tries(&Places::default()).is_some());
            habit.learn(in_time);
        }
        spins
    }

    #[test]
    fn a_peer_that_is_always_late_is_looked_for_ever_less_often() {
        let mut habit = Habit::default();
        assert_eq!(spins(&mut habit, 1, false), 0, "it has just connected");
        assert_eq!(spins(&mut habit, 1 + 1 + 3 + 7 + 5, false), 4);
        spins(&mut habit, 100_000, false);
        assert!((8..=10).contains(&spins(&mut habit, 10_000, false)), "and never given up");
    }

    #[test]
    fn one_that_is_quick_again_is_looked_for_again() {
        let mut habit = Habit::default();
        spins(&mut habit, 100_000, false);
        assert!(spins(&mut habit, 2_000, true) > 900, "after one rest");
        assert_eq!(spins(&mut habit, 3, false), 2, "one late request is forgiven after one answer");
    }

    #[test]
    fn finding_some_is_not_enough() {
        let mut habit = Habit::default();
        let mut most = 0;
        for _ in 0..1_000 {
            most += spins(&mut habit, 3, true) + spins(&mut habit, 1, false);
        }
        assert!(most < 400, "{most} of 4,000");
    }

    #[test]
    fn a_quick_peer_of_a_sleeping_connection_proves_nothing() {
        let mut habit = Habit { has_answered: true, rest: 5, ..Habit::default() };
        assert_eq!(spins(&mut habit, 5, true), 0);
        assert_eq!(spins(&mut habit, 5, true), 5);
    }

    /// Each of them ends a wait, and another begins.
    #[test]
    fn alarms_are_neither_answers_nor_requests() {
        let places = Places::default();
        let alarms = |habit: &mut Habit| (0..100).all(|_| habit.tries(&places).is_none());
        let mut habit = Habit::default();
        assert!(alarms(&mut habit), "it has just connected");
        habit.learn(true);
        assert_eq!(spins(&mut habit, 1, false), 1);
        assert_eq!(habit.rest, 1);
        assert!(habit.tries(&places).is_none() && alarms(&mut habit));
        assert_eq!(habit.rest, 0, "one answer has passed");
        habit.learn(false);
        assert_eq!(habit.rest, 0, "nobody has looked for that");
        assert!(habit.tries(&places).is_some() && alarms(&mut habit));
        habit.learn(false);
        assert_eq!(habit.rest, 3, "somebody had, though not last");
    }

    #[test]
    fn who_finds_no_place_lets_nothing_pass() {
        let places = Places::default();
        let taken: Vec<_> = (0..PLACES).filter_map(|_| places.take()).collect();
        let mut habit = Habit { has_answered: true, rest: 1, ..Habit::default() };
        assert!(habit.tries(&places).is_none());
        habit.learn(false);
        assert_eq!(habit.rest, 1);
        drop(taken);
        assert_eq!(spins(&mut habit, 2, true), 1);
    }

    #[test]
    fn places_are_few_and_come_back() {
        let places = Places::default();
        let mut taken: Vec<_> = (0..PLACES).filter_map(|_| places.take()).collect();
        assert!(taken.len() == PLACES && places.taken() == PLACES && places.take().is_none());
        taken.truncate(1);
        assert!(places.taken() == 1 && places.take().is_some());
    }
}
