//! Refused peers, counted: what is written about them is bounded in time and in memory, whatever they do.
//!
//! The first refusal of a user at a socket is written within a second; the next line about the same follows a minute
//! later at the earliest, with the number of those in between. Users beyond [`MAX_USERS`] are counted together.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::event::{Peer, PeerRefusal, Socket};

/// Users and sockets that are told apart. More than a handful are refused only where something is set up wrongly.
const MAX_USERS: usize = 64;

/// How long the first refusal waits for others of the same burst.
const FIRST: Duration = Duration::from_secs(1);

/// How long later ones wait: a line of 150 bytes a minute is 200 KB a day.
const LATER: Duration = Duration::from_secs(60);

/// Refusals that are not written yet.
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
    /// Counts one. Whether the writer has to be woken: it does not know of this user yet.
    pub(super) fn add(&mut self, socket: Socket, peer: Peer, now: Instant) -> bool {
        let is_full = self.by_user.len() >= MAX_USERS;
        let known = self.by_user.contains_key(&(socket, Some(peer.uid)));
        let user = (known || !is_full).then_some(peer.uid);
        let mut is_new = false;
        let counted = self.by_user.entry((socket, user)).or_insert_with(|| {
            is_new = true;
            PendingRefusal { count: 0, first_pid: None, due: now + FIRST }
        });
        if counted.count == 0 {
            counted.first_pid = peer.pid;
        }
        counted.count += 1;
        is_new
    }

    /// What is to be written now. Who was not refused again since the line before is forgotten.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<PeerRefusal> {
        self.by_user.retain(|_, counted| counted.count > 0 || counted.due > now);
        let due = self.by_user.iter_mut().filter(|(_, counted)| counted.due <= now);
        due.map(|(user, counted)| {
            counted.due = now + LATER;
            take(*user, counted)
        })
        .collect()
    }

    /// All that is not written yet.
    pub(super) fn take_all(&mut self) -> Vec<PeerRefusal> {
        let counted = self.by_user.iter_mut().filter(|(_, counted)| counted.count > 0);
        counted.map(|(user, counted)| take(*user, counted)).collect()
    }

    /// When to look again.
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
    fn the_first_is_written_soon_and_a_flood_once_a_minute() {
        let mut refusals = Refusals::default();
        let start = Instant::now();
        assert!(refusals.add(Socket::Verify, peer(7, 1), start));
        assert!(!refusals.add(Socket::Verify, peer(7, 2), start));
        assert_eq!(refusals.take_due(start), []);
        assert_eq!(refusals.next_due(), Some(start + FIRST));
        assert_eq!(refusals.take_due(start + FIRST), [refused(7, 1, 2)]);
        for second in 2..60 {
            refusals.add(Socket::Verify, peer(7, 3), start);
            assert_eq!(refusals.take_due(start + Duration::from_secs(second)), []);
        }
        assert_eq!(refusals.take_due(start + FIRST + LATER), [refused(7, 3, 58)]);
        assert_eq!(refusals.take_due(start + FIRST + 2 * LATER), []);
        assert_eq!(refusals.next_due(), None, "forgotten");
    }

    #[test]
    fn users_beyond_the_bound_are_counted_together() {
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
