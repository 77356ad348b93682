//! Encoding the policy of a record.

use ipnet::IpNet;

use super::{ABSENT, PER_OWNER, PRESENT, SHADOW};
use crate::limiter::RULE_BYTES;
use crate::record::{KeyRecord, Per};

/// Appends the policy of a record. 16 bits are enough for a length: all fields of a row, with its
/// digest, have at most 64 KiB.
pub(in crate::snapshot) fn encode(record: &KeyRecord<'_>, out: &mut Vec<u8>) {
    text(record.environment, out);
    text(record.plan, out);
    count(record.scopes.len(), out);
    record.scopes.iter().for_each(|scope| text(scope, out));
    optional(record.allowed_ips.as_deref(), out, encode_network);
    optional(record.allowed_origins.as_deref(), out, |origin, out| {
        length(origin.text_length(), out);
        origin.parts().into_iter().for_each(|part| out.extend(part.as_bytes()));
    });
    count(record.limits.len(), out);
    for limit in record.limits.iter() {
        text(&limit.name, out);
        let shadow = if limit.shadow { SHADOW } else { 0 };
        let per_owner = if limit.per == Per::Owner { PER_OWNER } else { 0 };
        out.push(shadow | per_owner);
        out.extend(limit.rule.to_bytes());
    }
}

/// Appends an optional list: [`ABSENT`], or [`PRESENT`] and the list.
fn optional<T>(list: Option<&[T]>, out: &mut Vec<u8>, mut item: impl FnMut(&T, &mut Vec<u8>)) {
    let Some(list) = list else { return out.push(ABSENT) };
    out.push(PRESENT);
    count(list.len(), out);
    list.iter().for_each(|element| item(element, out));
}

fn count(items: usize, out: &mut Vec<u8>) {
    out.extend((items as u32).to_le_bytes());
}

fn length(bytes: usize, out: &mut Vec<u8>) {
    out.extend((bytes as u16).to_le_bytes());
}

fn text(text: &str, out: &mut Vec<u8>) {
    length(text.len(), out);
    out.extend(text.as_bytes());
}

fn encode_network(network: &IpNet, out: &mut Vec<u8>) {
    match network {
        IpNet::V4(v4) => {
            out.extend([4, v4.prefix_len()]);
            out.extend(v4.addr().octets());
        }
        IpNet::V6(v6) => {
            out.extend([6, v6.prefix_len()]);
            out.extend(v6.addr().octets());
        }
    }
}

impl KeyRecord<'_> {
    /// Bytes that the policy of this record takes at most when it is [encoded](encode).
    pub(in crate::snapshot) fn policy_bytes(&self) -> usize {
        /// The counts and marks, the lengths of two texts, and what a network or the numbers of a
        /// limit take.
        const FIXED: usize = 2 * 2 + 2 * 4 + 2 * (1 + 4);
        const NETWORK: usize = 2 + 16;
        const NUMBERS: usize = 1 + RULE_BYTES;
        let scopes: usize = self.scopes.iter().map(|scope| 2 + scope.len()).sum();
        let origins = self.allowed_origins.iter().flat_map(|list| list.iter());
        let origins: usize = origins.map(|origin| 2 + origin.text_length()).sum();
        let limits: usize = self.limits.iter().map(|limit| 2 + limit.name.len() + NUMBERS).sum();
        let networks = self.allowed_ips.as_ref().map_or(0, |list| list.len() * NETWORK);
        FIXED + self.environment.len() + self.plan.len() + scopes + networks + origins + limits
    }
}
