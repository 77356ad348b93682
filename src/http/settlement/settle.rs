//! Asks the daemon to debit or refund a key.

use keyward_client::Client;

use super::Operation;
use super::amounts::Amounts;
use crate::check::conclude;
use crate::credential::Credential;
use crate::outcome::{Outcome, Unavailable};

/// Debits or refunds the key, once.
pub(super) async fn settle(
    client: &Client,
    operation: Operation,
    credential: &Credential<'_>,
    amounts: &Amounts,
) -> Outcome {
    let answer = match operation {
        Operation::Debit => client.debit(&amounts.debit(credential.key())).await,
        Operation::Refund => client.refund(&amounts.refund(credential.key())).await,
    };
    conclude(answer, false)
}

/// Whether a settlement that was not confirmed may have been carried out: it was written to the daemon,
/// and its answer is missing.
pub(super) fn may_be_done(unavailable: &Unavailable) -> bool {
    match unavailable {
        Unavailable::NoAnswer(error) => error.may_have_been_charged(),
        Unavailable::NotReady(_) | Unavailable::Overloaded(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use keyward_client::{Decision, Error, Verdict};
    use keyward_protocol::Answer;

    use super::*;

    #[test]
    fn only_a_request_that_was_written_may_be_done() {
        let deadline = Duration::from_secs(1);
        for (error, expected) in [
            (Error::ConnectionLost { written: true }, true),
            (Error::ConnectionLost { written: false }, false),
            (Error::Deadline { deadline, written: true }, true),
            (Error::Deadline { deadline, written: false }, false),
            (Error::NoRuntime, false),
        ] {
            assert_eq!(may_be_done(&Unavailable::NoAnswer(error.clone())), expected, "{error}");
        }
        let not_ready = Decision::from(&Answer::without_key(1, Verdict::NotReady, 0));
        assert!(!may_be_done(&Unavailable::NotReady(not_ready)));
    }
}
