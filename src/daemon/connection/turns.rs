//! Turns: how the connections of a worker share its time.
//!
//! While a worker keeps up, each connection is answered when its input arrives. When requests
//! arrive faster than the worker answers them, connections take turns: the turns rotate among the
//! peers' user ids (uids) and, within a uid, among its connections. A turn is one read and its
//! answers. If the answers do not fit the output buffer, the rest of them is another turn.
//!
//! The runtime polls epoll only when no task is ready, or after many tasks. [`Turns`] makes it poll
//! after about as much work as one full turn. A request is found by that poll, and then waits for at
//! most one turn of each other busy uid, regardless of how many connections these uids have, and for
//! one turn of each connection of its own uid. A connection or uid that has just had a turn is the
//! last of them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;
use tokio::task::yield_now;

use super::buffers::INPUT_BYTES;

/// The cost of a read and a write, besides the bytes that they move. The unit of cost is a byte of
/// input or output: answering a request costs about as much time as 90 of them, and the two system
/// calls as much as some twenty requests.
const SYSTEM_CALL_COST: usize = 2 * 1024;

/// Cost after which the worker polls epoll before the next turn: less than a full buffer of requests
/// and its answers. Polling costs less than one per cent of that.
const COST_PER_POLL: usize = 2 * INPUT_BYTES;

/// The read limit of a turn is at least this.
pub(super) const MIN_READ: usize = 4 * 1024;

/// The turns of one worker's connections.
pub(super) struct Turns {
    /// The cost of all turns since the worker last polled epoll.
    cost: Cell<usize>,
    idle_count: IdleCount,
    /// The value of `idle_count` when `cost` was last reset.
    idle_count_at_reset: Cell<u64>,
    /// Whether connections have to wait for their turn.
    is_contended: Cell<bool>,
    waiting: RefCell<WaitingQueue>,
    /// Signals that epoll is to be polled before the next turn.
    poll_due: Notify,
}

/// How often the worker's runtime has had no task to run, and has waited in epoll.
#[derive(Clone, Default)]
pub struct IdleCount(Arc<AtomicU64>);

/// One connection's part in the rotation. Dropping it ends its turn.
pub(super) struct TurnHandle {
    turns: Rc<Turns>,
    waiter: Rc<Waiter>,
}

/// A connection in the rotation.
struct Waiter {
    uid: u32,
    state: Cell<WaiterState>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaiterState {
    /// Neither waiting nor in a turn that others wait for.
    Idle,
    Waiting,
    /// It is this connection's turn, and others wait for the end of it.
    Granted,
    Closed,
}

/// The waiting connections. [`pop`](Self::pop) rotates among the uids.
#[derive(Default)]
struct WaitingQueue {
    /// The uids with waiting connections, in the order of their next turns, without that of
    /// `current`.
    rotation: VecDeque<u32>,
    /// The waiting connections, without `current`. No queue is empty.
    by_uid: BTreeMap<u32, VecDeque<Rc<Waiter>>>,
    /// The connection that has the current turn, or had the last one. If it waits again, it joins
    /// the rotation before the next turn, and so does its uid: behind the connections and the uids
    /// whose requests arrived during its turn.
    current: Option<Rc<Waiter>>,
}

impl IdleCount {
    /// To be called by the worker's runtime when it has no task to run.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Turns {
    pub(super) fn new(idle_count: IdleCount) -> Rc<Self> {
        Rc::new(Self {
            cost: Cell::new(0),
            idle_count,
            idle_count_at_reset: Cell::new(0),
            is_contended: Cell::new(false),
            waiting: RefCell::default(),
            poll_due: Notify::new(),
        })
    }

    /// Adds a connection of a peer with this uid.
    pub(super) fn register(self: &Rc<Self>, uid: u32) -> TurnHandle {
        let waiter = Waiter { uid, state: Cell::new(WaiterState::Idle), waker: RefCell::new(None) };
        TurnHandle { turns: Rc::clone(self), waiter: Rc::new(waiter) }
    }

    /// Polls epoll when it is due, for as long as the worker runs.
    pub(super) async fn run(self: Rc<Self>) {
        loop {
            self.poll_due.notified().await;
            // A current-thread runtime polls epoll, without waiting, before it resumes a task that
            // has yielded.
            yield_now().await;
            self.cost.set(0);
            self.grant_next();
        }
    }

    /// Whether a connection may run without waiting for its turn.
    pub(super) fn is_uncontended(&self) -> bool {
        let idle_count = self.idle_count.get();
        if self.idle_count_at_reset.replace(idle_count) != idle_count {
            self.cost.set(0);
        }
        !self.is_contended.get() && self.cost.get() < COST_PER_POLL
    }

    /// Records that the runtime has polled epoll: the caller has yielded to it.
    pub(super) fn record_poll(&self) {
        if !self.is_contended.get() {
            self.cost.set(0);
        }
    }

    /// Grants the next turn, or requests a poll of epoll before it.
    fn grant_next(&self) {
        if self.cost.get() >= COST_PER_POLL {
            self.poll_due.notify_one();
            return;
        }
        match self.waiting.borrow_mut().pop() {
            Some(waiter) => {
                waiter.state.set(WaiterState::Granted);
                if let Some(waker) = waiter.waker.borrow_mut().take() {
                    waker.wake();
                }
            }
            None => self.is_contended.set(false),
        }
    }

    /// Adds a connection to the rotation, and starts the rotation if it is the first.
    fn enqueue(&self, waiter: &Rc<Waiter>) {
        waiter.state.set(WaiterState::Waiting);
        self.waiting.borrow_mut().push(Rc::clone(waiter));
        if !self.is_contended.replace(true) {
            self.poll_due.notify_one();
        }
    }
}

impl TurnHandle {
    /// Begins a turn, or registers the task to be woken when it is this connection's turn. To be
    /// called when there is something to do. Between the beginning and the [end](Self::end) of a
    /// turn there must be no await.
    pub(super) fn poll_begin(&self, cx: &Context<'_>) -> Poll<()> {
        match self.waiter.state.get() {
            WaiterState::Granted => return Poll::Ready(()),
            WaiterState::Idle if self.turns.is_uncontended() => return Poll::Ready(()),
            WaiterState::Idle => self.turns.enqueue(&self.waiter),
            WaiterState::Waiting | WaiterState::Closed => {}
        }
        *self.waiter.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Waits for this connection's turn. See [`poll_begin`](Self::poll_begin).
    pub(super) async fn begin(&self) {
        std::future::poll_fn(|cx| self.poll_begin(cx)).await;
    }

    /// The maximum number of bytes to read in this turn: a full buffer after a poll of epoll, and
    /// less after other turns, so that all turns between two polls cost about as much as a full one.
    pub(super) fn read_limit(&self) -> usize {
        let left = COST_PER_POLL.saturating_sub(self.turns.cost.get());
        (left / (COST_PER_POLL / INPUT_BYTES)).max(MIN_READ)
    }

    /// Ends a turn in which `bytes` were read and written.
    pub(super) fn end(&self, bytes: usize) {
        let cost = self.turns.cost.get() + SYSTEM_CALL_COST + bytes;
        self.turns.cost.set(cost);
        if self.waiter.state.get() == WaiterState::Granted {
            self.give_up();
        } else if cost >= COST_PER_POLL && !self.turns.is_contended.get() {
            // Nothing waits, but the rotation may start before the next turn.
            self.turns.waiting.borrow_mut().current = Some(Rc::clone(&self.waiter));
        }
    }

    /// Lets the next connection have its turn, if this one has it.
    pub(super) fn give_up(&self) {
        if self.waiter.state.get() == WaiterState::Granted {
            self.waiter.state.set(WaiterState::Idle);
            self.turns.grant_next();
        }
    }
}

impl Drop for TurnHandle {
    fn drop(&mut self) {
        self.give_up();
        // A waiting connection stays in the queue, which skips it.
        self.waiter.state.set(WaiterState::Closed);
    }
}

impl WaitingQueue {
    fn push(&mut self, waiter: Rc<Waiter>) {
        if let Some(current) = &self.current {
            if Rc::ptr_eq(current, &waiter) {
                return;
            }
            if current.uid == waiter.uid {
                return self.by_uid.entry(waiter.uid).or_default().push_back(waiter);
            }
        }
        self.join(waiter);
    }

    /// Adds a connection to the queue of its uid, and the uid to the rotation if it is not there.
    fn join(&mut self, waiter: Rc<Waiter>) {
        let queue = self.by_uid.entry(waiter.uid).or_default();
        if queue.is_empty() {
            self.rotation.push_back(waiter.uid);
        }
        queue.push_back(waiter);
    }

    /// Ends the current turn and returns the connection that has the next one.
    fn pop(&mut self) -> Option<Rc<Waiter>> {
        if let Some(current) = self.current.take() {
            if self.by_uid.contains_key(&current.uid) {
                self.rotation.push_back(current.uid);
            }
            if current.state.get() == WaiterState::Waiting {
                self.join(current);
            }
        }
        loop {
            let uid = *self.rotation.front()?;
            let Some(queue) = self.by_uid.get_mut(&uid) else {
                self.rotation.pop_front();
                continue;
            };
            let waiter = queue.pop_front();
            let is_last = queue.is_empty();
            if is_last {
                self.by_uid.remove(&uid);
            }
            let waiter = waiter.filter(|waiter| waiter.state.get() == WaiterState::Waiting);
            if is_last || waiter.is_some() {
                self.rotation.pop_front();
            }
            if waiter.is_some() {
                self.current.clone_from(&waiter);
                return waiter;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of these connections have input. A busy worker makes them wait for their turns.
    fn wait(handles: &[&TurnHandle]) {
        let cx = Context::from_waker(Waker::noop());
        assert!(handles.iter().all(|handle| handle.poll_begin(&cx).is_pending()));
    }

    /// The worker has polled epoll.
    fn poll_epoll(turns: &Turns) {
        turns.cost.set(0);
        turns.grant_next();
    }

    fn assert_has_turn(handle: &TurnHandle) {
        assert!(handle.poll_begin(&Context::from_waker(Waker::noop())).is_ready());
    }

    /// These connections have the next turns, in this order, and no other one waits.
    fn assert_next_turns(turns: &Turns, handles: &[&TurnHandle]) {
        for handle in handles {
            assert_has_turn(handle);
            handle.give_up();
        }
        assert!(turns.is_uncontended());
    }

    /// Connections of the given uids that all wait for their turn, and the order of their turns.
    fn order_of_turns(uids: &[u32], cost: usize) -> Vec<usize> {
        let turns = Turns::new(IdleCount::default());
        let handles: Vec<_> = uids.iter().map(|uid| turns.register(*uid)).collect();
        turns.cost.set(COST_PER_POLL);
        let cx = Context::from_waker(Waker::noop());
        assert!(handles.iter().all(|handle| handle.poll_begin(&cx).is_pending()));
        let mut order = Vec::new();
        for _ in 0..uids.len() {
            turns.cost.set(0);
            turns.grant_next();
            let granted: Vec<_> =
                (0..uids.len()).filter(|i| handles[*i].waiter.state.get() == WaiterState::Granted).collect();
            order.extend(&granted);
            let [granted] = granted[..] else { panic!("one turn at a time, not {granted:?}") };
            turns.cost.set(COST_PER_POLL);
            handles[granted].end(cost);
        }
        order
    }

    #[test]
    fn turns_rotate_among_uids_and_then_among_their_connections() {
        assert_eq!(order_of_turns(&[1, 1, 1, 2, 2, 3], 0), [0, 3, 5, 1, 4, 2]);
    }

    /// A peer waits for the rest of the turn during which its request arrives, and not for another
    /// turn of the same uid.
    #[test]
    fn uid_that_joins_during_a_turn_is_served_before_the_uid_of_that_turn() {
        let turns = Turns::new(IdleCount::default());
        let [first, second, late] = [1, 1, 2].map(|uid| turns.register(uid));
        turns.cost.set(COST_PER_POLL);
        wait(&[&first, &second]);
        poll_epoll(&turns);
        assert_has_turn(&first);
        first.end(COST_PER_POLL);
        // The busy peer has more requests, and another peer's first one is found.
        wait(&[&first, &late]);
        poll_epoll(&turns);
        assert_next_turns(&turns, &[&late, &second, &first]);
    }

    /// A uid whose connections have filled the worker without waiting has had its turn.
    #[test]
    fn uid_that_ran_before_the_rotation_started_is_behind_others() {
        let turns = Turns::new(IdleCount::default());
        let [first, second, late] = [1, 1, 2].map(|uid| turns.register(uid));
        assert_has_turn(&first);
        first.end(COST_PER_POLL);
        wait(&[&second, &first, &late]);
        poll_epoll(&turns);
        assert_next_turns(&turns, &[&late, &second, &first]);
    }

    #[test]
    fn connection_that_reads_outside_the_rotation_does_not_displace_the_current_one() {
        let turns = Turns::new(IdleCount::default());
        let [first, second, other, probing] = [1, 1, 2, 2].map(|uid| turns.register(uid));
        turns.cost.set(COST_PER_POLL);
        wait(&[&first, &second, &other]);
        poll_epoll(&turns);
        probing.end(COST_PER_POLL);
        wait(&[&probing]);
        turns.cost.set(0);
        assert_next_turns(&turns, &[&first, &other, &second, &probing]);
    }

    /// A connection waits for one turn of each other connection of its uid, not for another turn of
    /// the one that ran when its request arrived.
    #[test]
    fn connection_that_waits_again_is_behind_those_that_joined_during_its_turn() {
        let turns = Turns::new(IdleCount::default());
        let [first, second, late] = [1, 1, 1].map(|uid| turns.register(uid));
        turns.cost.set(COST_PER_POLL);
        wait(&[&first, &second]);
        poll_epoll(&turns);
        assert_has_turn(&first);
        first.end(COST_PER_POLL);
        wait(&[&first, &late]);
        poll_epoll(&turns);
        assert_next_turns(&turns, &[&second, &late, &first]);
    }

    #[test]
    fn idle_worker_makes_no_connection_wait() {
        let turns = Turns::new(IdleCount::default());
        let (first, second) = (turns.register(1), turns.register(1));
        let cx = Context::from_waker(Waker::noop());
        for _ in 0..100 {
            for handle in [&first, &second] {
                assert!(handle.poll_begin(&cx).is_ready());
                handle.end(1_000);
            }
            turns.idle_count.increment();
        }
    }

    #[test]
    fn worker_polls_epoll_after_a_bounded_cost() {
        let turns = Turns::new(IdleCount::default());
        let handle = turns.register(1);
        let cx = Context::from_waker(Waker::noop());
        let mut cost = 0;
        while handle.poll_begin(&cx).is_ready() {
            handle.end(1_000);
            cost += SYSTEM_CALL_COST + 1_000;
            assert!(cost < 2 * COST_PER_POLL);
        }
        assert!(cost >= COST_PER_POLL);
        assert_eq!(handle.waiter.state.get(), WaiterState::Waiting);
    }

    /// Also while connections wait for their turns.
    #[tokio::test(flavor = "local")]
    async fn worker_polls_epoll_before_a_turn_that_follows_a_bounded_cost() {
        let turns = Turns::new(IdleCount::default());
        let handles = [1, 1, 1].map(|uid| turns.register(uid));
        let states = || handles.each_ref().map(|handle| handle.waiter.state.get());
        turns.cost.set(COST_PER_POLL);
        let cx = Context::from_waker(Waker::noop());
        assert!(handles.iter().all(|handle| handle.poll_begin(&cx).is_pending()));
        tokio::task::spawn_local(Rc::clone(&turns).run());
        for _ in 0..10 {
            yield_now().await;
        }
        use WaiterState::{Granted, Idle, Waiting};
        assert_eq!(states(), [Granted, Waiting, Waiting]);
        // The next turn follows at once, and the one after it only once epoll has been polled.
        handles[0].end(COST_PER_POLL / 2 - SYSTEM_CALL_COST);
        assert_eq!(states(), [Idle, Granted, Waiting]);
        handles[1].end(COST_PER_POLL / 2 - SYSTEM_CALL_COST);
        assert_eq!(states(), [Idle, Idle, Waiting]);
        for _ in 0..10 {
            yield_now().await;
        }
        assert_eq!(states(), [Idle, Idle, Granted]);
    }

    #[test]
    fn turn_reads_less_after_other_turns() {
        let turns = Turns::new(IdleCount::default());
        let handle = turns.register(1);
        assert_eq!(handle.read_limit(), INPUT_BYTES);
        handle.end(INPUT_BYTES - SYSTEM_CALL_COST);
        assert_eq!(handle.read_limit(), INPUT_BYTES / 2);
        handle.end(COST_PER_POLL);
        assert_eq!(handle.read_limit(), MIN_READ);
    }

    #[test]
    fn closed_connections_neither_keep_nor_get_a_turn() {
        let turns = Turns::new(IdleCount::default());
        let [first, second, third] = [1, 1, 1].map(|uid| turns.register(uid));
        turns.cost.set(COST_PER_POLL);
        let cx = Context::from_waker(Waker::noop());
        for handle in [&first, &second, &third] {
            assert!(handle.poll_begin(&cx).is_pending());
        }
        turns.cost.set(0);
        turns.grant_next();
        drop(second);
        assert!(third.poll_begin(&cx).is_pending());
        drop(first);
        assert!(third.poll_begin(&cx).is_ready());
        drop(third);
        assert!(turns.is_uncontended());
    }
}
