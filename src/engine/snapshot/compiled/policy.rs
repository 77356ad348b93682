//! The encoding of a row policy in a compiled file: texts and lists, each after its length. A
//! policy that is read has to meet the same requirements as one in a source.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::limiter::Rate;
use crate::record::{Limit, MAX_LIMITS, MAX_NAME, Origin, is_limit_name, is_printable, is_scope};
use crate::snapshot::policy::RowPolicy;

/// The row has no such list and is not restricted by one.
const ABSENT: u8 = 0;
/// A list follows. An empty list admits nothing.
const PRESENT: u8 = 1;

/// Appends a policy. The lengths fit, because a row of a source is shorter than 64 KiB, and so is
/// any text in it.
pub(super) fn encode(policy: &RowPolicy, out: &mut Vec<u8>) {
    text(&policy.environment, out);
    text(&policy.plan, out);
    count(policy.scopes.len(), out);
    policy.scopes.iter().for_each(|scope| text(scope, out));
    optional(policy.ips.as_deref(), out, encode_network);
    optional(policy.origins.as_deref(), out, |origin, out| text(&origin.text(), out));
    count(policy.limits.len(), out);
    for limit in policy.limits.iter() {
        text(&limit.name, out);
        out.extend(limit.rate.period().get().to_le_bytes());
        out.extend(limit.rate.burst().to_le_bytes());
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

fn text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u16).to_le_bytes());
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

/// Takes a policy from the front of `bytes`; `None` if there is none that a row can have.
pub(super) fn decode(bytes: &mut &[u8]) -> Option<RowPolicy> {
    let environment = take_text(bytes).filter(|text| is_printable(text, MAX_NAME))?.into();
    let plan = take_text(bytes).filter(|text| is_printable(text, MAX_NAME))?.into();
    let scopes = list(bytes, |bytes| take_text(bytes).filter(|scope| is_scope(scope)).map(Box::from))?;
    let ips = take_optional(bytes, take_network)?;
    let origins = take_optional(bytes, |bytes| Origin::parse(take_text(bytes)?).ok())?;
    let limits: Arc<[Limit]> = list(bytes, take_limit)?;
    let repeats_a_name =
        |(at, limit): (usize, &Limit)| limits[..at].iter().any(|other| other.name == limit.name);
    let are_valid = limits.len() <= MAX_LIMITS && !limits.iter().enumerate().any(repeats_a_name);
    are_valid.then_some(RowPolicy { environment, plan, scopes, ips, origins, limits })
}

/// Takes an optional list. The outer `None` means that the bytes are neither a list nor [`ABSENT`].
fn take_optional<T>(
    bytes: &mut &[u8],
    item: impl FnMut(&mut &[u8]) -> Option<T>,
) -> Option<Option<Arc<[T]>>> {
    match take(bytes)? {
        [ABSENT] => Some(None),
        [PRESENT] => list(bytes, item).map(Some),
        _ => None,
    }
}

/// Takes a list. The count is not trusted: no memory is reserved for it, and each item takes at
/// least a byte of the input.
fn list<T>(bytes: &mut &[u8], mut item: impl FnMut(&mut &[u8]) -> Option<T>) -> Option<Arc<[T]>> {
    let count = u32::from_le_bytes(take(bytes)?);
    (0..count).map(|_| item(bytes)).collect()
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    bytes.split_off(..N)?.first_chunk().copied()
}

fn take_text<'b>(bytes: &mut &'b [u8]) -> Option<&'b str> {
    let length = u16::from_le_bytes(take(bytes)?);
    str::from_utf8(bytes.split_off(..usize::from(length))?).ok()
}

fn take_network(bytes: &mut &[u8]) -> Option<IpNet> {
    let [family, prefix] = take(bytes)?;
    let network = match family {
        4 => Ipv4Net::new(Ipv4Addr::from(take::<4>(bytes)?), prefix).ok()?.into(),
        6 => Ipv6Net::new(Ipv6Addr::from(take::<16>(bytes)?), prefix).ok()?.into(),
        _ => return None,
    };
    (IpNet::trunc(&network) == network).then_some(network)
}

fn take_limit(bytes: &mut &[u8]) -> Option<Limit> {
    let name = take_text(bytes).filter(|name| is_limit_name(name))?;
    let period = u64::from_le_bytes(take(bytes)?);
    let burst = u32::from_le_bytes(take(bytes)?);
    Some(Limit::new(name, Rate::from_period(period, burst).ok()?))
}
