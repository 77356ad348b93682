//! Settlement: a program reports what a response has cost, after it. `systemd/SETTLEMENT.md` says how.
//!
//! # The way of a request
//!
//! 1. `handler` refuses processes of users that may not settle.
//! 2. `request` reads what is to be done, and the body. `amounts` parses that.
//! 3. The key is where checks expect it ([`credential`](crate::credential)).
//! 4. `settle` asks the daemon.
//! 5. `reply` states the balances, or the problem and whether the request can be sent again.
//!
//! Nothing is sent to the daemon twice: a duplicate debit would bill a response twice.

mod amounts;
mod handler;
mod reply;
mod request;
mod settle;

use std::time::Duration;

use crate::credential::CredentialPlaces;

pub(crate) use handler::SettlementHandler;

/// Which settlements are carried out.
#[derive(Clone, Debug)]
pub struct SettlementRules {
    /// Users whose processes may settle: at least one, sorted.
    pub uids: Box<[u32]>,
    /// Where the key is.
    pub credentials: CredentialPlaces,
    /// Time within which the daemon has to answer.
    pub deadline: Duration,
}

/// What is done with the amounts of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// They are charged, down to the floor of each limit.
    Debit,
    /// They are given back.
    Refund,
}
