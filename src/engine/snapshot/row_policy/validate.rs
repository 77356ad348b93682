//! A policy that is read from a compiled file has to meet the same requirements as one in a source.

use ipnet::IpNet;

use super::RowPolicy;
use super::list::take_text;
use crate::record::{MAX_LIMITS, MAX_NAME, Origin, is_limit_name, is_printable, is_scope};

impl RowPolicy<'_> {
    /// Takes the bytes of a policy from the front of `bytes`; `None` if there is none that a row can
    /// have.
    pub(in crate::snapshot) fn take_valid<'b>(bytes: &mut &'b [u8]) -> Option<&'b [u8]> {
        let start = *bytes;
        let is_valid = RowPolicy::take(bytes)?.is_valid();
        is_valid.then(|| start.get(..start.len() - bytes.len()))?
    }

    fn is_valid(self) -> bool {
        let is_network = |network: IpNet| network.trunc() == network;
        // The text of an origin is in lower case.
        let is_origin = |text: &str| Origin::parse(text).is_ok_and(|origin| origin.text() == text);
        let repeats_a_name =
            |(at, name): (usize, &str)| self.limits().take(at).any(|other| other.name == name);
        [self.environment, self.plan].into_iter().all(|text| is_printable(text, MAX_NAME))
            && self.scopes().all(is_scope)
            && self.networks().is_none_or(|mut networks| networks.all(is_network))
            && self.origins.is_none_or(|origins| origins.items(take_text).all(is_origin))
            && self.limits().take(MAX_LIMITS + 1).count() <= MAX_LIMITS
            && self.limits().all(|limit| is_limit_name(limit.name) && !limit.shadow)
            && !self.limits().map(|limit| limit.name).enumerate().any(repeats_a_name)
    }
}
