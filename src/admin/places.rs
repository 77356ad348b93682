//! Places of admin connections: a bounded number, of which an idle connection keeps none from another.
//!
//! A connection is idle unless a command of it is being carried out: before its first command, while it sends one byte by byte,
//! and while it does not read its answer. When all places are taken, the next connection gets the place of an idle one:
//! of the user with the most connections, the one that has been idle longest.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::Notify;

/// Connections at once: operators and their scripts, not applications.
const MAX_CONNECTIONS: usize = 48;

/// Those of them that may wait for a reload or a check, which can take long: the others are left to revocations and status.
const MAX_WAITING: usize = 32;

/// Those of one user, so that users cannot keep each other from reloading.
const MAX_WAITING_OF_USER: usize = MAX_WAITING / 2;

/// All places.
#[derive(Default)]
pub(super) struct Places {
    taken: RefCell<Vec<Rc<Entry>>>,
    /// A place was given back, or its connection has become idle.
    freed: Notify,
    waiting: RefCell<BTreeMap<u32, usize>>,
}

struct Entry {
    uid: u32,
    /// `None`: a command is being carried out.
    idle_since: Cell<Option<Instant>>,
    lost: Notify,
}

/// A connection's place, until it is dropped.
pub(super) struct Place {
    entry: Rc<Entry>,
    places: Rc<Places>,
}

/// One of the [`MAX_WAITING`], until it is dropped.
pub(super) struct Waiting<'a> {
    places: &'a Places,
    uid: u32,
}

impl Places {
    /// A place for a connection of the user `uid`, which is idle. Waits only while commands are being carried out in all places.
    pub(super) async fn take(self: &Rc<Self>, uid: u32) -> Place {
        while self.taken.borrow().len() >= MAX_CONNECTIONS {
            match self.longest_idle() {
                Some(idle) => self.remove(&idle),
                None => self.freed.notified().await,
            }
        }
        let entry = Rc::new(Entry { uid, idle_since: Cell::new(Some(Instant::now())), lost: Notify::new() });
        self.taken.borrow_mut().push(Rc::clone(&entry));
        Place { entry, places: Rc::clone(self) }
    }

    /// Leave to wait for a reload or a check; `None` if too many do.
    pub(super) fn wait(&self, uid: u32) -> Option<Waiting<'_>> {
        let mut waiting = self.waiting.borrow_mut();
        let of_user = waiting.get(&uid).copied().unwrap_or(0);
        if of_user >= MAX_WAITING_OF_USER || waiting.values().sum::<usize>() >= MAX_WAITING {
            return None;
        }
        waiting.insert(uid, of_user + 1);
        Some(Waiting { places: self, uid })
    }

    fn longest_idle(&self) -> Option<Rc<Entry>> {
        let taken = self.taken.borrow();
        let connections = |uid: u32| taken.iter().filter(|other| other.uid == uid).count();
        let idle = taken.iter().filter(|entry| entry.idle_since.get().is_some());
        idle.max_by_key(|entry| (connections(entry.uid), Reverse(entry.idle_since.get()))).cloned()
    }

    /// Takes a place away; its connection may not know yet.
    fn remove(&self, entry: &Rc<Entry>) {
        self.taken.borrow_mut().retain(|other| !Rc::ptr_eq(other, entry));
        entry.lost.notify_one();
    }
}

impl Place {
    /// A command is being carried out: the place cannot be lost.
    pub(super) fn set_busy(&self) {
        self.entry.idle_since.set(None);
    }

    /// No command is being carried out.
    pub(super) fn set_idle(&self) {
        self.entry.idle_since.set(Some(Instant::now()));
        self.places.freed.notify_one();
    }

    /// Resolves when another connection has got the place.
    pub(super) async fn lost(&self) {
        self.entry.lost.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.remove(&self.entry);
        self.places.freed.notify_one();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.places.waiting.borrow_mut();
        if let Some(of_user) = waiting.get_mut(&self.uid) {
            *of_user -= 1;
            if *of_user == 0 {
                waiting.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn take(places: &Rc<Places>, uid: u32) -> Place {
        now(places.take(uid)).expect("a place at once")
    }

    fn is_lost(place: &Place) -> bool {
        now(place.lost()).is_some()
    }

    #[test]
    fn longest_idle_connection_loses_its_place() {
        let places = Rc::new(Places::default());
        let mut held: Vec<Place> = (0..MAX_CONNECTIONS).map(|_| take(&places, 1)).collect();
        held[0].set_busy();
        held[1].set_idle();
        for _ in 0..100 {
            held.push(take(&places, 1));
            assert!(places.taken.borrow().len() <= MAX_CONNECTIONS);
        }
        assert!(!is_lost(&held[0]), "its command is being carried out");
        let lost: Vec<bool> = held[1..].iter().map(is_lost).collect();
        assert!(lost[..100].iter().all(|lost| *lost) && !lost[100..].contains(&true), "{lost:?}");
    }

    #[test]
    fn user_with_most_connections_loses_one() {
        let places = Rc::new(Places::default());
        let quiet = [take(&places, 2), take(&places, 2)];
        let mut held = Vec::new();
        for _ in 0..3 * MAX_CONNECTIONS {
            held.push(take(&places, 1));
        }
        assert!(!quiet.iter().any(is_lost));
    }

    #[test]
    fn connection_waits_only_while_all_places_are_busy() {
        let places = Rc::new(Places::default());
        let held: Vec<Place> = (0..MAX_CONNECTIONS).map(|_| take(&places, 1)).collect();
        held.iter().for_each(Place::set_busy);
        let mut next = std::pin::pin!(places.take(2));
        let mut context = Context::from_waker(Waker::noop());
        assert!(next.as_mut().poll(&mut context).is_pending());
        held[7].set_idle();
        assert!(next.as_mut().poll(&mut context).is_ready());
        assert!(is_lost(&held[7]));
    }

    #[test]
    fn one_user_leaves_others_room_to_wait() {
        let places = Places::default();
        let mut held: Vec<_> = std::iter::from_fn(|| places.wait(1)).collect();
        assert_eq!(held.len(), MAX_WAITING_OF_USER);
        held.extend(std::iter::from_fn(|| places.wait(2)));
        assert_eq!(held.len(), MAX_WAITING);
        assert!(places.wait(3).is_none());
        drop(held);
        assert!(places.wait(3).is_some() && places.waiting.borrow().is_empty());
    }
}
