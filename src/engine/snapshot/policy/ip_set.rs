//! A set of IP networks with binary search: a look-up among thousands costs little more than one
//! among ten.

use std::net::Ipv6Addr;

use ipnet::IpNet;
use zerocopy::little_endian::{U32, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

/// Sorted, disjoint ranges of addresses, each with its first and its last. IPv4 and IPv6 are
/// separate, so `::/0` does not silently admit IPv4.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::snapshot) struct IpSet<'s> {
    v4: &'s [[U32; 2]],
    v6: &'s [[U128; 2]],
}

/// Appends the union of `networks`: the number of IPv4 ranges, these, and the IPv6 ranges. An empty
/// set has no bytes. A network of IPv4-mapped addresses (`::ffff:10.0.0.0/104`) counts as the IPv4
/// network.
pub(super) fn encode(networks: impl Iterator<Item = IpNet>, out: &mut Vec<u8>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for network in networks {
        match network {
            IpNet::V4(network) => v4.push((network.network().to_bits(), network.broadcast().to_bits())),
            IpNet::V6(network) => {
                match (network.network().to_ipv4_mapped(), network.broadcast().to_ipv4_mapped()) {
                    (Some(first), Some(last)) => v4.push((first.to_bits(), last.to_bits())),
                    _ => v6.push((network.network().to_bits(), network.broadcast().to_bits())),
                }
            }
        }
    }
    let (v4, v6) = (disjoint::<U32>(v4), disjoint::<U128>(v6));
    if !(v4.is_empty() && v6.is_empty()) {
        out.extend_from_slice(&(v4.len() as u32).to_le_bytes());
        out.extend_from_slice(v4.as_bytes());
        out.extend_from_slice(v6.as_bytes());
    }
}

impl<'s> IpSet<'s> {
    /// The set that was [encoded](encode) as `bytes`.
    pub(super) fn new(bytes: &'s [u8]) -> Self {
        Self::read(bytes).unwrap_or_default()
    }

    fn read(bytes: &'s [u8]) -> Option<Self> {
        let (v4_count, rest) = U32::read_from_prefix(bytes).ok()?;
        let (v4, rest) = <[[U32; 2]]>::ref_from_prefix_with_elems(rest, v4_count.get() as usize).ok()?;
        Some(Self { v4, v6: <[[U128; 2]]>::ref_from_bytes(rest).ok()? })
    }

    /// Whether every address of `other` is in the set.
    pub(super) fn covers(self, other: IpSet<'_>) -> bool {
        covers(self.v4, other.v4) && covers(self.v6, other.v6)
    }

    /// Whether `ip` is in the set. An IPv4 address is passed in its mapped form.
    pub(super) fn contains(self, ip: Ipv6Addr) -> bool {
        match ip.to_ipv4_mapped() {
            Some(v4) => within(self.v4, v4.to_bits()),
            None => within(self.v6, ip.to_bits()),
        }
    }
}

/// An address in little-endian bytes.
trait Address: Copy + IntoBytes + Immutable + Unaligned {
    type Bits: Copy + Ord;
    fn new(bits: Self::Bits) -> Self;
    fn bits(self) -> Self::Bits;
    /// The bits of the next address, if there is one.
    fn successor(bits: Self::Bits) -> Self::Bits;
}

impl Address for U32 {
    type Bits = u32;

    fn new(bits: u32) -> Self {
        bits.into()
    }

    fn bits(self) -> u32 {
        self.get()
    }

    fn successor(bits: u32) -> u32 {
        bits.saturating_add(1)
    }
}

impl Address for U128 {
    type Bits = u128;

    fn new(bits: u128) -> Self {
        bits.into()
    }

    fn bits(self) -> u128 {
        self.get()
    }

    fn successor(bits: u128) -> u128 {
        bits.saturating_add(1)
    }
}

fn disjoint<A: Address>(mut ranges: Vec<(A::Bits, A::Bits)>) -> Vec<[A; 2]> {
    ranges.sort_unstable();
    let mut merged: Vec<(A::Bits, A::Bits)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if first <= previous.1 => previous.1 = previous.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged.into_iter().map(|(first, last)| [first, last].map(A::new)).collect()
}

/// Whether `ranges` cover all of `others`. Adjacent ranges are not merged, so it may take several
/// to cover one.
fn covers<A: Address>(ranges: &[[A; 2]], others: &[[A; 2]]) -> bool {
    others.iter().all(|other| {
        let [first, last] = other.map(A::bits);
        let mut next = first;
        let start = ranges.partition_point(|[_, end]| end.bits() < first);
        for range in &ranges[start..] {
            let [begin, end] = range.map(A::bits);
            if begin > next {
                return false;
            }
            if end >= last {
                return true;
            }
            // `end` is less than `last`, so it has a successor.
            next = A::successor(end);
        }
        false
    })
}

fn within<A: Address>(ranges: &[[A; 2]], at: A::Bits) -> bool {
    let after = ranges.partition_point(|[first, _]| first.bits() <= at);
    after.checked_sub(1).and_then(|range| ranges.get(range)).is_some_and(|[_, last]| at <= last.bits())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn encoded(networks: impl Iterator<Item = IpNet>) -> Vec<u8> {
        let mut encoded = Vec::new();
        encode(networks, &mut encoded);
        encoded
    }

    /// The encoded set is leaked.
    fn set(networks: &[&str]) -> IpSet<'static> {
        IpSet::new(encoded(networks.iter().map(|text| text.parse().expect("a network"))).leak())
    }

    fn v6(text: &str) -> Ipv6Addr {
        match text.parse().expect("an address") {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        }
    }

    #[test]
    fn both_ends_of_a_network_are_included() {
        let set = set(&["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]);
        for inside in ["10.0.0.0", "10.255.255.255", "192.0.2.7", "2001:db8::", "2001:db8:ffff::1"] {
            assert!(set.contains(v6(inside)), "{inside}");
        }
        for outside in ["9.255.255.255", "11.0.0.0", "192.0.2.6", "192.0.2.8", "2001:db7::", "2001:db9::"] {
            assert!(!set.contains(v6(outside)), "{outside}");
        }
    }

    #[test]
    fn whole_address_family_does_not_include_the_other() {
        assert!(!set(&["::/0"]).contains(v6("10.0.0.1")));
        assert!(!set(&["0.0.0.0/0"]).contains(v6("2001:db8::1")));
        assert!(set(&["::ffff:10.0.0.0/104"]).contains(v6("10.1.2.3")));
    }

    #[test]
    fn empty_set_contains_no_address() {
        for address in ["0.0.0.0", "10.0.0.1", "::", "2001:db8::1"] {
            assert!(!set(&[]).contains(v6(address)), "{address}");
        }
    }

    proptest! {
        #[test]
        fn set_covers_another_if_and_only_if_it_contains_all_its_addresses(
            ours in prop::collection::vec((0_u32..64, 26_u8..=32), 0..12),
            theirs in prop::collection::vec((0_u32..64, 26_u8..=32), 0..6),
        ) {
            let networks = |list: &[(u32, u8)]| {
                let network = |&(bits, length): &(u32, u8)| {
                    ipnet::Ipv4Net::new(bits.into(), length).expect("a network").trunc().into()
                };
                encoded(list.iter().map(network))
            };
            let (ours, theirs) = (networks(&ours), networks(&theirs));
            let (ours, theirs) = (IpSet::new(&ours), IpSet::new(&theirs));
            let has = |set: IpSet<'_>, bits: u32| set.contains(std::net::Ipv4Addr::from(bits).to_ipv6_mapped());
            let expected = (0..128).all(|bits| !has(theirs, bits) || has(ours, bits));
            prop_assert_eq!(ours.covers(theirs), expected);
        }

        #[test]
        fn binary_search_agrees_with_a_linear_scan(
            networks in prop::collection::vec((any::<u32>(), 8u8..=32), 0..60),
            probes in prop::collection::vec(any::<u32>(), 1..60),
        ) {
            let networks: Vec<IpNet> = networks
                .into_iter()
                .map(|(bits, length)| {
                    ipnet::Ipv4Net::new(bits.into(), length).expect("a network").trunc().into()
                })
                .collect();
            let encoded = encoded(networks.iter().copied());
            let set = IpSet::new(&encoded);
            let edges = networks.iter().filter_map(|network| match network {
                IpNet::V4(v4) => Some(v4.broadcast().to_bits()),
                IpNet::V6(_) => None,
            });
            let near = edges.flat_map(|edge| [edge, edge.wrapping_add(1)]).collect::<Vec<_>>();
            for bits in probes.into_iter().chain(near) {
                let ip = std::net::Ipv4Addr::from(bits);
                let linear = networks.iter().any(|network| network.contains(&IpAddr::V4(ip)));
                prop_assert_eq!(set.contains(ip.to_ipv6_mapped()), linear, "{}", ip);
            }
        }
    }
}
