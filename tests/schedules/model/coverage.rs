//! What happened in the sequences: a comparison in which something never happens means little.

use crate::reference::{Answer, Balances, Request, Verdict};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Peek,
    Admitted,
    SeveralAdmitted,
    Refused,
    OutOfCredit,
    ExceedsBurst,
    Superseded,
    ShadowRefusal,
    Debit,
    DebitStopped,
    Overdrawn,
    Refund,
    RefundStopped,
    Reload,
    DroppedReload,
    Conversion,
    KindChange,
    NewWindow,
    ClockBack,
    ZoneChange,
    Restart,
}

pub const EVENTS: [Event; 21] = [
    Event::Peek,
    Event::Admitted,
    Event::SeveralAdmitted,
    Event::Refused,
    Event::OutOfCredit,
    Event::ExceedsBurst,
    Event::Superseded,
    Event::ShadowRefusal,
    Event::Debit,
    Event::DebitStopped,
    Event::Overdrawn,
    Event::Refund,
    Event::RefundStopped,
    Event::Reload,
    Event::DroppedReload,
    Event::Conversion,
    Event::KindChange,
    Event::NewWindow,
    Event::ClockBack,
    Event::ZoneChange,
    Event::Restart,
];

/// How often each event happened.
#[derive(Clone, Debug, Default)]
pub struct Coverage([u64; EVENTS.len()]);

impl Coverage {
    pub fn add(&mut self, event: Event, count: u64) {
        self.0[event as usize] += count;
    }

    pub fn count(&self, event: Event) -> u64 {
        self.0[event as usize]
    }

    pub fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, count)| *sum += count);
    }

    pub fn count_charge(&mut self, requests: &[Request], (verdict, _, shadow): &Answer) {
        if requests.is_empty() {
            return;
        }
        let charged = requests.iter().filter(|request| request.cost > 0).count();
        self.add(Event::ShadowRefusal, u64::from(shadow.is_some()));
        self.add(Event::SeveralAdmitted, u64::from(charged > 1 && *verdict == Verdict::Admitted));
        let event = match verdict {
            Verdict::Admitted if charged == 0 => Event::Peek,
            Verdict::Admitted => Event::Admitted,
            Verdict::Refused => Event::Refused,
            Verdict::OutOfCredit => Event::OutOfCredit,
            Verdict::ExceedsBurst => Event::ExceedsBurst,
            Verdict::Superseded => Event::Superseded,
        };
        self.add(event, 1);
    }

    /// Counts a debit or refund, and limits of which less than the cost was debited or refunded.
    pub fn count_settled(&mut self, event: Event, stopped: Event, requests: &[Request], balances: &Balances) {
        self.add(event, u64::from(!balances.is_empty()));
        for (position, changed, (available, ..)) in balances {
            self.add(stopped, u64::from(*changed < requests[*position].cost));
            self.add(Event::Overdrawn, u64::from(event == Event::Debit && *available < 0));
        }
    }
}
