//! Checks that a gateway repeats: each request is charged once.
//!
//! A gateway that retries a check, or hedges it, would charge the client twice. If it states an id of
//! the request that it sets itself, a check with an id that has been charged is asked about again with
//! a cost of 0: what the key may do is decided anew, so a key that was revoked in the meantime is
//! refused, but nothing is charged.
//!
//! An id is remembered with the key, the route and the costs, so that one id cannot pay for another
//! request, and only for a short time. Ids are in memory, up to a limit; a request beyond it is charged
//! each time it is checked. So is one whose first check was broken off or got no answer in time, because
//! it may not have been charged.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use http::header::HeaderName;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::header;
use crate::metrics::RepetitionMetrics;
use crate::route::Requirements;

/// Maximum length of an id. The usual ones have 16 to 64 bytes.
const MAX_ID: usize = 128;

/// Maximum number of ids that one gateway has at the same time: some 15 MB.
const MAX_IDS: usize = 100_000;

/// Ids that one check forgets at most. All threads wait for it.
const MAX_FORGOTTEN: usize = 64;

/// Where a gateway states the id of a request, and how long a check can be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// The header, which the gateway sets over that of the client.
    pub header: HeaderName,
    /// How long an id is remembered.
    pub within: Duration,
}

impl RequestId {
    /// What a check is charged for, if the gateway states one id: the id, with the key, the route and
    /// the costs.
    pub(crate) fn of(
        &self,
        headers: &HeaderMap,
        key: &[u8],
        route: &str,
        requirements: &Requirements,
    ) -> Option<ChargeId> {
        let id = header::single(headers, &self.header).ok().flatten()?;
        if id.is_empty() || id.len() > MAX_ID {
            return None;
        }
        let mut hasher = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        add(key);
        add(id.as_bytes());
        add(route.as_bytes());
        add(&requirements.cost.unwrap_or(1).to_le_bytes());
        for (limit, cost) in &requirements.costs {
            add(limit.as_bytes());
            add(&cost.to_le_bytes());
        }
        Some(ChargeId(hasher.finalize().into()))
    }
}

/// What a request is charged for, as a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ChargeId([u8; 32]);

/// The requests of one gateway that have been charged, or are about to be.
#[derive(Debug)]
pub(crate) struct ChargedRequests {
    within: Duration,
    /// How long a check waits for another one with its id.
    deadline: Duration,
    max: usize,
    metrics: RepetitionMetrics,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    charges: HashMap<ChargeId, Entry>,
    /// The entries in the order in which they were made: when, the id, and the number. An entry stays here
    /// for a while when its check was not charged.
    made: VecDeque<(Instant, ChargeId, u64)>,
    /// The number of the latest entry.
    latest: u64,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    made: Instant,
    /// While the first check is in progress, a channel that closes when it ends.
    in_progress: Option<watch::Receiver<()>>,
}

/// Whether a check is to be charged.
pub(crate) enum Turn {
    /// It is the first one with its id.
    First(FirstCheck),
    /// The request has been charged.
    Repeated,
    /// It has to be charged, and is not remembered: there are too many ids.
    Unremembered,
    /// The first one has not ended within the deadline.
    Late(Duration),
}

/// The first check with an id. Unless it [has charged](Self::has_charged), it is forgotten on drop.
pub(crate) struct FirstCheck {
    requests: Arc<ChargedRequests>,
    id: ChargeId,
    number: u64,
    /// Closes on drop, which wakes repeated checks.
    _in_progress: watch::Sender<()>,
}

impl ChargedRequests {
    /// Remembers ids for the time `within`. `deadline` is that of a check.
    pub(crate) fn new(within: Duration, deadline: Duration, metrics: RepetitionMetrics) -> Arc<Self> {
        Arc::new(Self { within, deadline, max: MAX_IDS, metrics, state: Mutex::default() })
    }

    /// Time within which a check has to be decided, waiting included.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Waits until no other check with this id is in progress, within the deadline.
    pub(crate) async fn turn(self: &Arc<Self>, id: ChargeId) -> Turn {
        let turn = timeout(self.deadline, self.next_turn(id)).await.unwrap_or(Turn::Late(self.deadline));
        match turn {
            Turn::Repeated => _ = self.metrics.repeated.inc(),
            Turn::Unremembered => _ = self.metrics.unremembered.inc(),
            Turn::First(_) | Turn::Late(_) => {}
        }
        turn
    }

    async fn next_turn(self: &Arc<Self>, id: ChargeId) -> Turn {
        loop {
            let mut in_progress = {
                let mut state = self.state();
                let start = Instant::now().checked_sub(self.within);
                state.forget_before(start);
                // It may be over, and not be forgotten yet.
                match state.charges.get(&id).filter(|entry| start.is_none_or(|start| entry.made >= start)) {
                    Some(Entry { in_progress: None, .. }) => return Turn::Repeated,
                    Some(Entry { in_progress: Some(ended), .. }) => ended.clone(),
                    None if state.charges.len() >= self.max => return Turn::Unremembered,
                    None => {
                        let (in_progress, ended) = watch::channel(());
                        let number = state.begin(id, ended);
                        let requests = Arc::clone(self);
                        return Turn::First(FirstCheck { requests, id, number, _in_progress: in_progress });
                    }
                }
            };
            // Nothing is ever sent: it ends with an error, when the first check does.
            let _ = in_progress.changed().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock leaves it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_before(&mut self, time: Option<Instant>) {
        for _ in 0..MAX_FORGOTTEN {
            let Some((made, id, number)) = self.made.front() else { return };
            if time.is_none_or(|time| *made >= time) {
                return;
            }
            if self.charges.get(id).is_some_and(|entry| entry.number == *number) {
                self.charges.remove(id);
            }
            self.made.pop_front();
        }
    }

    /// Makes an entry for the first check with an id, and returns its number.
    fn begin(&mut self, id: ChargeId, ended: watch::Receiver<()>) -> u64 {
        self.latest += 1;
        let (number, made) = (self.latest, Instant::now());
        self.charges.insert(id, Entry { number, made, in_progress: Some(ended) });
        self.made.push_back((made, id, number));
        // Those of checks that were not charged are removed when they are the most.
        if self.made.len() > 2 * self.charges.len() + MAX_FORGOTTEN {
            let charges = &self.charges;
            self.made.retain(|(_, id, number)| charges.get(id).is_some_and(|entry| entry.number == *number));
        }
        number
    }

    /// The entry of a first check, unless it was forgotten in the meantime.
    fn entry(&mut self, id: &ChargeId, number: u64) -> Option<&mut Entry> {
        self.charges.get_mut(id).filter(|entry| entry.number == number)
    }
}

impl FirstCheck {
    /// The daemon has charged the request.
    pub(crate) fn has_charged(self) {
        if let Some(entry) = self.requests.state().entry(&self.id, self.number) {
            entry.in_progress = None;
        }
    }
}

impl Drop for FirstCheck {
    fn drop(&mut self) {
        let mut state = self.requests.state();
        if state.entry(&self.id, self.number).is_some_and(|entry| entry.in_progress.is_some()) {
            state.charges.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use tokio::task::yield_now;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(10);
    const DEADLINE: Duration = Duration::from_millis(50);

    fn id(number: u8) -> ChargeId {
        ChargeId([number; 32])
    }

    async fn first(requests: &Arc<ChargedRequests>, number: u8) -> FirstCheck {
        let Turn::First(first) = requests.turn(id(number)).await else { panic!("{number} is not the first") };
        first
    }

    #[tokio::test(start_paused = true)]
    async fn repeated_check_is_known_for_a_while() {
        let requests = ChargedRequests::new(WITHIN, DEADLINE, RepetitionMetrics::default());
        first(&requests, 1).await.has_charged();
        assert!(matches!(requests.turn(id(1)).await, Turn::Repeated));
        first(&requests, 2).await.has_charged();
        tokio::time::advance(WITHIN + Duration::from_millis(1)).await;
        first(&requests, 1).await.has_charged();
        assert_eq!(requests.state().made.len(), 1, "what is over is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn check_that_has_not_charged_is_forgotten() {
        let requests = ChargedRequests::new(WITHIN, DEADLINE, RepetitionMetrics::default());
        drop(first(&requests, 1).await);
        first(&requests, 1).await.has_charged();
    }

    #[tokio::test(start_paused = true)]
    async fn repeated_check_waits_for_the_first_one() {
        let requests = ChargedRequests::new(WITHIN, DEADLINE, RepetitionMetrics::default());
        for charges in [true, false] {
            let first = first(&requests, u8::from(charges)).await;
            let waiting = tokio::spawn({
                let requests = Arc::clone(&requests);
                async move { matches!(requests.turn(id(u8::from(charges))).await, Turn::Repeated) }
            });
            yield_now().await;
            assert!(!waiting.is_finished());
            if charges {
                first.has_charged()
            } else {
                drop(first)
            }
            assert_eq!(waiting.await.expect("ends"), charges);
        }
    }

    /// The first check took longer than ids are remembered.
    #[tokio::test(start_paused = true)]
    async fn late_first_check_does_not_touch_a_later_one() {
        let requests = ChargedRequests::new(WITHIN, DEADLINE, RepetitionMetrics::default());
        let late = first(&requests, 1).await;
        tokio::time::advance(2 * WITHIN).await;
        let next = first(&requests, 1).await;
        drop(late);
        next.has_charged();
        assert!(matches!(requests.turn(id(1)).await, Turn::Repeated));
    }

    #[tokio::test(start_paused = true)]
    async fn number_of_ids_is_bounded() {
        let (metrics, state) = (RepetitionMetrics::default(), Mutex::default());
        let requests =
            Arc::new(ChargedRequests { within: WITHIN, deadline: DEADLINE, max: 3, metrics, state });
        // Those that are not charged take no place.
        for _ in 0..1_000 {
            drop(first(&requests, 0).await);
        }
        assert!(requests.state().made.len() <= 2 * MAX_FORGOTTEN);
        for number in 0..3 {
            first(&requests, number).await.has_charged();
        }
        assert!(matches!(requests.turn(id(3)).await, Turn::Unremembered));
        assert!(matches!(requests.turn(id(2)).await, Turn::Repeated));
        assert_eq!((requests.metrics.repeated.get(), requests.metrics.unremembered.get()), (1, 1));
        tokio::time::advance(2 * WITHIN).await;
        first(&requests, 3).await.has_charged();
    }

    /// A hung daemon: no check waits for all that came before it.
    #[tokio::test(start_paused = true)]
    async fn repeated_check_waits_no_longer_than_the_deadline() {
        let requests = ChargedRequests::new(WITHIN, DEADLINE, RepetitionMetrics::default());
        let first = first(&requests, 1).await;
        let began = Instant::now();
        assert!(matches!(requests.turn(id(1)).await, Turn::Late(DEADLINE)));
        assert!(began.elapsed() < 2 * DEADLINE);
        drop(first);
    }

    /// More are over than one check forgets.
    #[tokio::test(start_paused = true)]
    async fn id_that_is_over_is_not_repeated_although_it_is_still_there() {
        let requests = ChargedRequests::new(WITHIN, DEADLINE, RepetitionMetrics::default());
        for number in 0..=u8::MAX {
            first(&requests, number).await.has_charged();
        }
        tokio::time::advance(2 * WITHIN).await;
        first(&requests, u8::MAX).await.has_charged();
        assert!(requests.state().charges.len() > MAX_FORGOTTEN, "not all are forgotten at once");
        assert!(matches!(requests.turn(id(u8::MAX)).await, Turn::Repeated));
    }

    #[test]
    fn id_is_of_one_key_route_and_cost() {
        let header = HeaderName::from_static("x-request-id");
        let source = RequestId { header: header.clone(), within: WITHIN };
        let headers = |value: &str| {
            HeaderMap::from_iter([(header.clone(), HeaderValue::from_str(value).expect("a value"))])
        };
        let requirements = |cost, costs: &[(&str, u32)]| Requirements {
            cost,
            costs: costs.iter().map(|(limit, cost)| ((*limit).to_owned(), *cost)).collect(),
            ..Requirements::default()
        };
        let of = |id, key: &[u8], route, requirements| source.of(&headers(id), key, route, &requirements);
        let usual = || requirements(None, &[]);
        let one = of("a", b"key", "r", usual());
        assert!(one.is_some() && one == of("a", b"key", "r", requirements(Some(1), &[])));
        for other in [
            of("b", b"key", "r", usual()),
            of("a", b"other", "r", usual()),
            of("a", b"key", "s", usual()),
            of("ar", b"key", "", usual()),
            of("a", b"key", "r", requirements(Some(2), &[])),
            of("a", b"key", "r", requirements(None, &[("tokens", 1)])),
        ] {
            assert!(other.is_some() && other != one);
        }
        assert_eq!(of("", b"key", "r", usual()), None);
        assert_eq!(of(&"a".repeat(MAX_ID + 1), b"key", "r", usual()), None);
        let mut twice = headers("a");
        twice.append(&header, HeaderValue::from_static("a"));
        assert_eq!(source.of(&twice, b"key", "r", &usual()), None);
        assert_eq!(source.of(&HeaderMap::new(), b"key", "r", &usual()), None);
    }
}
