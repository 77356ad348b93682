//! A bounded number of slots for admin connections. Idle connections cannot keep others out.
//!
//! A connection is busy while a command of it is being carried out, and idle otherwise: before its
//! first command, while it sends one byte by byte, and while it does not read its answer. When all
//! slots are in use, the next connection takes the slot of an idle one: of the user with the most
//! connections, the one that has been idle longest.
//!
//! Users that may only read share a few of the slots. They never wait and take the slots of each other
//! only, so they cannot keep operators out, however many commands they send.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::Notify;

/// Maximum number of connections. The socket is for operators and their scripts, not for
/// applications.
const MAX_CONNECTIONS: usize = 48;

/// Maximum number of connections of all users that may only read: several scrapes at once.
const MAX_READERS: usize = MAX_CONNECTIONS / 8;

/// Maximum number of connections that may wait for reloads: commands that reload or check, or that
/// wait for a reload in progress. The other slots are left to revocations and status.
const MAX_WAITING: usize = 32;

/// Maximum number of waiting connections of one user, so that users cannot keep each other from
/// reloading.
const MAX_WAITING_PER_USER: usize = MAX_WAITING / 2;

/// The slots of all connections.
#[derive(Default)]
pub(super) struct ConnectionSlots {
    used: RefCell<Vec<Rc<Entry>>>,
    /// Signals that a slot was released, or that its connection has become idle.
    released: Notify,
    /// The number of waiting connections by user.
    waiting: RefCell<BTreeMap<u32, usize>>,
}

struct Entry {
    uid: u32,
    /// Whether the user may only read.
    is_reader: bool,
    /// `None`: a command is being carried out.
    idle_since: Cell<Option<Instant>>,
    evicted: Notify,
}

/// The slot of a connection, released when it is dropped.
pub(super) struct Slot {
    entry: Rc<Entry>,
    slots: Rc<ConnectionSlots>,
}

/// The permission to wait for a reload or a check, returned when it is dropped.
pub(super) struct WaitPermit<'a> {
    slots: &'a ConnectionSlots,
    uid: u32,
}

impl ConnectionSlots {
    /// A slot for a connection of the user `uid`, which begins idle. Waits only while the
    /// connections in all slots are busy.
    pub(super) async fn acquire(self: &Rc<Self>, uid: u32) -> Slot {
        while self.used.borrow().len() >= MAX_CONNECTIONS {
            match self.eviction_candidate(|_| true) {
                Some(idle) => self.remove(&idle),
                None => self.released.notified().await,
            }
        }
        self.add(uid, false)
    }

    /// A slot for a connection of a user that may only read. It is a free one or that of an idle
    /// connection of such a user. `None`: there is no such slot.
    pub(super) fn acquire_for_reader(self: &Rc<Self>, uid: u32) -> Option<Slot> {
        let (used, readers) = {
            let used = self.used.borrow();
            (used.len(), used.iter().filter(|entry| entry.is_reader).count())
        };
        if used >= MAX_CONNECTIONS || readers >= MAX_READERS {
            let idle = self.eviction_candidate(|entry| entry.is_reader)?;
            self.remove(&idle);
        }
        Some(self.add(uid, true))
    }

    fn add(self: &Rc<Self>, uid: u32, is_reader: bool) -> Slot {
        let idle_since = Cell::new(Some(Instant::now()));
        let entry = Rc::new(Entry { uid, is_reader, idle_since, evicted: Notify::new() });
        self.used.borrow_mut().push(Rc::clone(&entry));
        Slot { entry, slots: Rc::clone(self) }
    }

    /// The permission to wait for a reload or a check. `None`: too many connections are waiting.
    pub(super) fn wait_permit(&self, uid: u32) -> Option<WaitPermit<'_>> {
        let mut waiting = self.waiting.borrow_mut();
        let of_user = waiting.get(&uid).copied().unwrap_or(0);
        if of_user >= MAX_WAITING_PER_USER || waiting.values().sum::<usize>() >= MAX_WAITING {
            return None;
        }
        waiting.insert(uid, of_user + 1);
        Some(WaitPermit { slots: self, uid })
    }

    /// The connection to be evicted, of those that `may_be_evicted` selects.
    fn eviction_candidate(&self, may_be_evicted: impl Fn(&Entry) -> bool) -> Option<Rc<Entry>> {
        let used = self.used.borrow();
        let connections = |uid: u32| used.iter().filter(|other| other.uid == uid).count();
        let idle = used.iter().filter(|entry| entry.idle_since.get().is_some() && may_be_evicted(entry));
        idle.max_by_key(|entry| (connections(entry.uid), Reverse(entry.idle_since.get()))).cloned()
    }

    /// Removes a slot, and tells its connection.
    fn remove(&self, entry: &Rc<Entry>) {
        self.used.borrow_mut().retain(|other| !Rc::ptr_eq(other, entry));
        entry.evicted.notify_one();
    }
}

impl Slot {
    /// Marks the connection as carrying out a command. A busy connection is not evicted.
    pub(super) fn set_busy(&self) {
        self.entry.idle_since.set(None);
    }

    /// Marks the connection as idle.
    pub(super) fn set_idle(&self) {
        self.entry.idle_since.set(Some(Instant::now()));
        self.slots.released.notify_one();
    }

    /// Resolves when another connection has taken the slot.
    pub(super) async fn evicted(&self) {
        self.entry.evicted.notified().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.remove(&self.entry);
        self.slots.released.notify_one();
    }
}

impl Drop for WaitPermit<'_> {
    fn drop(&mut self) {
        let mut waiting = self.slots.waiting.borrow_mut();
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

    /// The output of a future that is ready.
    fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
        match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn acquire(slots: &Rc<ConnectionSlots>, uid: u32) -> Slot {
        poll_once(slots.acquire(uid)).expect("a slot at once")
    }

    fn is_evicted(slot: &Slot) -> bool {
        poll_once(slot.evicted()).is_some()
    }

    #[test]
    fn longest_idle_connection_is_evicted() {
        let slots = Rc::new(ConnectionSlots::default());
        let mut held: Vec<Slot> = (0..MAX_CONNECTIONS).map(|_| acquire(&slots, 1)).collect();
        held[0].set_busy();
        held[1].set_idle();
        for _ in 0..100 {
            held.push(acquire(&slots, 1));
            assert!(slots.used.borrow().len() <= MAX_CONNECTIONS);
        }
        assert!(!is_evicted(&held[0]), "it is busy");
        let evicted: Vec<bool> = held[1..].iter().map(is_evicted).collect();
        assert!(
            evicted[..100].iter().all(|evicted| *evicted) && !evicted[100..].contains(&true),
            "{evicted:?}"
        );
    }

    #[test]
    fn connection_of_the_user_with_most_is_evicted() {
        let slots = Rc::new(ConnectionSlots::default());
        let of_other_user = [acquire(&slots, 2), acquire(&slots, 2)];
        let mut held = Vec::new();
        for _ in 0..3 * MAX_CONNECTIONS {
            held.push(acquire(&slots, 1));
        }
        assert!(!of_other_user.iter().any(is_evicted));
    }

    /// Not even with commands that never end.
    #[test]
    fn readers_leave_slots_to_operators() {
        let slots = Rc::new(ConnectionSlots::default());
        let readers: Vec<Slot> = (0..).map_while(|uid| busy(slots.acquire_for_reader(1_000 + uid))).collect();
        assert_eq!(readers.len(), MAX_READERS);
        let operators: Vec<Slot> = (MAX_READERS..MAX_CONNECTIONS).map(|_| acquire(&slots, 1)).collect();
        assert!(!operators.iter().any(is_evicted));
    }

    #[test]
    fn reader_evicts_readers_only() {
        let slots = Rc::new(ConnectionSlots::default());
        let operators: Vec<Slot> = (1..MAX_CONNECTIONS).map(|_| acquire(&slots, 1)).collect();
        let first = slots.acquire_for_reader(2).expect("the last slot");
        let second = slots.acquire_for_reader(3).expect("the slot of the first");
        assert!(is_evicted(&first) && !operators.iter().any(is_evicted));
        second.set_busy();
        assert!(slots.acquire_for_reader(2).is_none());
        drop(second);
        let last = acquire(&slots, 1);
        assert!(slots.acquire_for_reader(2).is_none());
        drop((operators, last));
        assert!(slots.acquire_for_reader(2).is_some());
    }

    fn busy(slot: Option<Slot>) -> Option<Slot> {
        slot.inspect(Slot::set_busy)
    }

    #[test]
    fn connection_waits_only_while_all_slots_are_busy() {
        let slots = Rc::new(ConnectionSlots::default());
        let held: Vec<Slot> = (0..MAX_CONNECTIONS).map(|_| acquire(&slots, 1)).collect();
        held.iter().for_each(Slot::set_busy);
        let mut next = std::pin::pin!(slots.acquire(2));
        let mut context = Context::from_waker(Waker::noop());
        assert!(next.as_mut().poll(&mut context).is_pending());
        held[7].set_idle();
        assert!(next.as_mut().poll(&mut context).is_ready());
        assert!(is_evicted(&held[7]));
    }

    #[test]
    fn one_user_leaves_wait_permits_to_others() {
        let slots = ConnectionSlots::default();
        let mut held: Vec<_> = std::iter::from_fn(|| slots.wait_permit(1)).collect();
        assert_eq!(held.len(), MAX_WAITING_PER_USER);
        held.extend(std::iter::from_fn(|| slots.wait_permit(2)));
        assert_eq!(held.len(), MAX_WAITING);
        assert!(slots.wait_permit(3).is_none());
        drop(held);
        assert!(slots.wait_permit(3).is_some() && slots.waiting.borrow().is_empty());
    }
}
