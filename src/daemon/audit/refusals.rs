//! Counts refused peers. The rate of their lines and the memory for them are bounded.
//!
//! The first refusal of a user at a socket is written within a second. The next line about the same
//! user follows after a minute at the earliest, with the number of refusals since. Users beyond
//! [`MAX_USERS`] are counted together.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::event::{Peer, PeerRefusal, Socket};

/// Pairs of user and socket that are counted separately. More than a few indicate a wrong set-up.
const MAX_USERS: usize = 64;

/// How long the first refusal waits for others of the same burst.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// How long later refusals wait: a line of 150 bytes a minute is 200 KB a day.
const REPEAT_DELAY: Duration = Duration::from_secs(60);

/// Refusals that are not written yet, and users that have been refused recently.
#[derive(Default)]
pub(super) struct Refusals {
    by_user: BTreeMap<(Socket, Option<u32>), PendingRefusal>,
}

struct PendingRefusal {
    count: u64,
    first_pid: Option<i32>,
    due: Instant,
}

impl Refusals {
    /// Counts a refusal. Returns whether the writer must be woken, because the user is new to it.
    pub(super) fn add(&mut self, socket: Socket, peer: Peer, now: Instant) -> bool {
        let is_full = self.by_user.len() >= MAX_USERS;
        let known = self.by_user.contains_key(&(socket, Some(peer.uid)));
        let user = (known || !is_full).then_some(peer.uid);
        let mut is_new = false;
        let counted = self.by_user.entry((socket, user)).or_insert_with(|| {
            is_new = true;
            PendingRefusal { count: 0, first_pid: None, due: now + FIRST_DELAY }
        });
        if counted.count == 0 {
            counted.first_pid = peer.pid;
        }
        counted.count += 1;
        is_new
    }

    /// The refusals to be written now. Users without a refusal since their last line are forgotten.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<PeerRefusal> {
        self.by_user.retain(|_, counted| counted.count > 0 || counted.due > now);
        let due = self.by_user.iter_mut().filter(|(_, counted)| counted.due <= now);
        due.map(|(user, counted)| {
            counted.due = now + REPEAT_DELAY;
            take(*user, counted)
        })
        .collect()
    }

    /// All refusals that are not written yet.
    pub(super) fn take_all(&mut self) -> Vec<PeerRefusal> {
        let counted = self.by_user.iter_mut().filter(|(_, counted)| counted.count > 0);
        counted.map(|(user, counted)| take(*user, counted)).collect()
    }

    /// When the next refusal is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.by_user.values().map(|counted| counted.due).min()
    }
}

fn take((socket, uid): (Socket, Option<u32>), counted: &mut PendingRefusal) -> PeerRefusal {
    let count = std::mem::take(&mut counted.count);
    PeerRefusal { socket, uid, pid: counted.first_pid.take(), count }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, pid: i32) -> Peer {
        Peer { uid, pid: Some(pid) }
    }

    fn refused(uid: u32, pid: i32, count: u64) -> PeerRefusal {
        PeerRefusal { socket: Socket::Verify, uid: Some(uid), pid: Some(pid), count }
    }

    #[test]
    fn first_refusal_is_written_soon_and_repeats_once_a_minute() {
        let mut refusals = Refusals::default();
        let start = Instant::now();
        assert!(refusals.add(Socket::Verify, peer(7, 1), start));
        assert!(!refusals.add(Socket::Verify, peer(7, 2), start));
        assert_eq!(refusals.take_due(start), []);
        assert_eq!(refusals.next_due(), Some(start + FIRST_DELAY));
        assert_eq!(refusals.take_due(start + FIRST_DELAY), [refused(7, 1, 2)]);
        for second in 2..60 {
            refusals.add(Socket::Verify, peer(7, 3), start);
            assert_eq!(refusals.take_due(start + Duration::from_secs(second)), []);
        }
        assert_eq!(refusals.take_due(start + FIRST_DELAY + REPEAT_DELAY), [refused(7, 3, 58)]);
        assert_eq!(refusals.take_due(start + FIRST_DELAY + 2 * REPEAT_DELAY), []);
        assert_eq!(refusals.next_due(), None, "forgotten");
    }

    #[test]
    fn users_beyond_the_limit_are_counted_together() {
        let mut refusals = Refusals::default();
        let now = Instant::now();
        for uid in 0..1000 {
            refusals.add(Socket::Admin, peer(uid, 1), now);
        }
        refusals.add(Socket::Admin, peer(0, 1), now);
        let all = refusals.take_all();
        assert_eq!(all.len(), MAX_USERS + 1);
        assert_eq!(all.iter().map(|refused| refused.count).sum::<u64>(), 1001);
        assert_eq!((all[0].uid, all[0].count), (None, 1000 - MAX_USERS as u64));
        assert_eq!((all[1].uid, all[1].count), (Some(0), 2));
        assert_eq!(refusals.take_all(), []);
    }
}
