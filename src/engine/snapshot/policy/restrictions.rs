//! The scopes, networks and origins of a policy, in one string of bytes that look-ups read in place.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ip_set, origin_set, scope_set};
use crate::snapshot::row_policy::RowPolicy;

/// The lengths of the three parts, which follow. A part without bytes is an empty set.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Lengths {
    scopes: U32,
    networks: U32,
    origins: U32,
}

/// The encoding of no scopes, no networks and no origins.
pub(super) const NONE: [u8; size_of::<Lengths>()] = [0; _];

/// Encoded restrictions and their parts. The parts do not tell a missing list from an empty one:
/// [`PolicyRecord`](super::PolicyRecord) does.
#[derive(Clone, Copy, Default)]
pub(super) struct Restrictions<'s> {
    pub(super) encoded: &'s [u8],
    pub(super) scopes: &'s [u8],
    pub(super) networks: &'s [u8],
    pub(super) origins: &'s [u8],
}

impl<'s> Restrictions<'s> {
    /// The restrictions that `bytes` begin with.
    pub(super) fn read(bytes: &'s [u8]) -> Option<Self> {
        let (lengths, mut parts) = Lengths::ref_from_prefix(bytes).ok()?;
        let mut part = |length: U32| parts.split_off(..length.get() as usize);
        let [scopes, networks, origins] =
            [part(lengths.scopes)?, part(lengths.networks)?, part(lengths.origins)?];
        let encoded = bytes.get(..bytes.len() - parts.len())?;
        Some(Self { encoded, scopes, networks, origins })
    }
}

/// Appends the restrictions of a row policy.
pub(super) fn encode(row_policy: RowPolicy<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&NONE);
    let parts = out.len();
    scope_set::encode(row_policy.scopes(), out);
    let scopes = out.len();
    row_policy.networks().into_iter().for_each(|networks| ip_set::encode(networks, out));
    let networks = out.len();
    row_policy.origins().into_iter().for_each(|origins| origin_set::encode(origins, out));
    // A row policy fits in a block of a compiled file, which has less than 2 MiB. Its restrictions
    // take about twice as much at most ([`bytes_for`]).
    let length = |from: usize, to: usize| U32::new((to - from) as u32);
    let lengths = Lengths {
        scopes: length(parts, scopes),
        networks: length(scopes, networks),
        origins: length(networks, out.len()),
    };
    if let Some(header) = out.get_mut(start..parts) {
        header.copy_from_slice(lengths.as_bytes());
    }
}

/// Bytes that the restrictions of `policies` row policies of `bytes` bytes in total take at most. A
/// text of a row policy is preceded by two bytes, and here by four. A network takes up to 32 instead
/// of 18.
pub(super) fn bytes_for(policies: usize, bytes: usize) -> usize {
    /// The lengths, and the counts of scopes, wildcards and networks.
    const COUNTS: usize = size_of::<Lengths>() + 3 * 4;
    policies.saturating_mul(COUNTS).saturating_add(bytes.saturating_mul(2))
}
