//! What a sleeping connection is woken for besides its socket: its alarm, and the end of the daemon.
//!
//! A worker's connections share one timer. Each has a [`Seat`] with the moment when it wants to be woken, which moves with
//! every request at the cost of a store; the bell looks at the seats when the earliest of these moments has come, and not for
//! every request.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::timer::Timer;

/// How far apart the bell rings, at least, and so how much later than asked an alarm can be: alarms are a second and more,
/// and thousands of connections have theirs at different moments.
const TICK: Duration = Duration::from_millis(100);

/// A bell that nobody waits for.
const NEVER: Duration = Duration::from_secs(365 * 86_400);

/// One worker's.
pub(super) struct Bell {
    seats: RefCell<BTreeMap<u64, Rc<Place>>>,
    next_seat: Cell<u64>,
    /// When the seats are looked at next.
    rings: Cell<Instant>,
    /// An alarm comes before that.
    sooner: Notify,
    is_draining: Cell<bool>,
}

/// A connection's, until it is dropped.
pub(super) struct Seat {
    bell: Rc<Bell>,
    number: u64,
    place: Rc<Place>,
}

struct Place {
    alarm: Cell<Instant>,
    has_rung: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Why the bell has woken a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ring {
    /// Its alarm has come.
    Alarm,
    /// The daemon shuts down.
    Drain,
}

impl Bell {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            seats: RefCell::default(),
            next_seat: Cell::new(0),
            rings: Cell::new(Instant::now() + NEVER),
            sooner: Notify::new(),
            is_draining: Cell::new(false),
        })
    }

    /// Whether the daemon shuts down.
    pub(super) fn is_draining(&self) -> bool {
        self.is_draining.get()
    }

    /// A seat for a connection that is to be woken at `alarm`.
    pub(super) fn seat(self: &Rc<Self>, alarm: Instant) -> Seat {
        let place = Place { alarm: Cell::new(alarm), has_rung: Cell::new(false), waker: RefCell::new(None) };
        let (place, number) = (Rc::new(place), self.next_seat.get());
        self.next_seat.set(number + 1);
        self.seats.borrow_mut().insert(number, Rc::clone(&place));
        let seat = Seat { bell: Rc::clone(self), number, place };
        seat.set_alarm(alarm);
        seat
    }

    /// Rings for as long as the worker runs.
    pub(super) async fn ring(self: Rc<Self>, mut draining: watch::Receiver<bool>) {
        let timer = Timer::new();
        let mut last = Instant::now();
        loop {
            let next = self.earliest().map_or(last + NEVER, |alarm| alarm.max(last + TICK));
            self.rings.set(next);
            tokio::select! {
                () = timer.sleep_until(next) => {
                    last = Instant::now();
                    self.wake(|place| place.alarm.get() <= last);
                }
                () = self.sooner.notified() => {}
                _or_gone = draining.wait_for(|draining| *draining), if !self.is_draining() => {
                    self.is_draining.set(true);
                    self.wake(|_| true);
                }
            }
        }
    }

    fn earliest(&self) -> Option<Instant> {
        // An alarm that has rung is set anew by the connection that it wakes.
        let seats = self.seats.borrow();
        seats.values().filter(|place| !place.has_rung.get()).map(|place| place.alarm.get()).min()
    }

    fn wake(&self, is_due: impl Fn(&Place) -> bool) {
        for place in self.seats.borrow().values().filter(|place| is_due(place)) {
            place.has_rung.set(true);
            if let Some(waker) = place.waker.borrow().as_ref() {
                waker.wake_by_ref();
            }
        }
    }
}

impl Seat {
    /// When to be woken next.
    pub(super) fn set_alarm(&self, alarm: Instant) {
        self.place.alarm.set(alarm);
        self.place.has_rung.set(false);
        if alarm < self.bell.rings.get() {
            self.bell.sooner.notify_one();
        }
    }

    /// Whether the bell has rung; leaves word that the task is to be woken when it does.
    pub(super) fn listen(&self, cx: &Context<'_>) -> Option<Ring> {
        if self.bell.is_draining() {
            return Some(Ring::Drain);
        }
        if self.place.has_rung.get() {
            return Some(Ring::Alarm);
        }
        let mut waker = self.place.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        None
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.bell.seats.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    async fn rung(seat: &Seat) -> Ring {
        poll_fn(|cx| seat.listen(cx).map_or(Poll::Pending, Poll::Ready)).await
    }

    #[tokio::test(flavor = "local")]
    async fn each_is_woken_at_its_alarm_and_all_at_the_end() {
        let (drain, draining) = watch::channel(false);
        let bell = Bell::new();
        let ringing = tokio::task::spawn_local(Rc::clone(&bell).ring(draining));
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let (late, soon) = (bell.seat(after(600_000)), bell.seat(after(900_000)));
        tokio::task::yield_now().await;
        // Sooner than what the bell waits for.
        soon.set_alarm(after(5));
        assert_eq!(rung(&soon).await, Ring::Alarm);
        assert!((5..5_000).contains(&start.elapsed().as_millis()));
        soon.set_alarm(after(600_000));
        let mut waits = std::pin::pin!(rung(&late));
        assert!(poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx).is_pending())).await);
        drop(soon);
        assert_eq!(bell.seats.borrow().len(), 1);
        drain.send_replace(true);
        assert_eq!(waits.await, Ring::Drain);
        ringing.abort();
    }
}
