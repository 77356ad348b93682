//! A set of IP networks with binary search: a look-up among thousands costs little more than one
//! among ten.

use std::net::Ipv6Addr;

use ipnet::IpNet;

/// Sorted, disjoint ranges of addresses. IPv4 and IPv6 are separate, so `::/0` does not silently
/// admit IPv4.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct IpSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl IpSet {
    /// The union of `networks`. A network of IPv4-mapped addresses (`::ffff:10.0.0.0/104`) counts
    /// as the IPv4 network.
    pub(crate) fn new(networks: &[IpNet]) -> Self {
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
        Self { v4: disjoint(v4), v6: disjoint(v6) }
    }

    /// Whether every address of `other` is in the set.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        covers(&self.v4, &other.v4) && covers(&self.v6, &other.v6)
    }

    /// Whether `ip` is in the set. An IPv4 address is passed in its mapped form.
    pub(crate) fn contains(&self, ip: Ipv6Addr) -> bool {
        match ip.to_ipv4_mapped() {
            Some(v4) => within(&self.v4, v4.to_bits()),
            None => within(&self.v6, ip.to_bits()),
        }
    }
}

fn disjoint<T: Copy + Ord>(mut ranges: Vec<(T, T)>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if first <= previous.1 => previous.1 = previous.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged.into()
}

/// Whether `ranges` cover all of `others`. Adjacent ranges are not merged, so it may take several
/// to cover one.
fn covers<T: Copy + Ord + Successor>(ranges: &[(T, T)], others: &[(T, T)]) -> bool {
    others.iter().all(|&(first, last)| {
        let mut next = first;
        let start = ranges.partition_point(|&(_, end)| end < first);
        for &(begin, end) in &ranges[start..] {
            if begin > next {
                return false;
            }
            if end >= last {
                return true;
            }
            // `end` is less than `last`, so it has a successor.
            next = end.successor();
        }
        false
    })
}

trait Successor {
    fn successor(self) -> Self;
}

impl Successor for u32 {
    fn successor(self) -> Self {
        self.saturating_add(1)
    }
}

impl Successor for u128 {
    fn successor(self) -> Self {
        self.saturating_add(1)
    }
}

fn within<T: Copy + Ord>(ranges: &[(T, T)], at: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= at);
    after.checked_sub(1).and_then(|range| ranges.get(range)).is_some_and(|(_, last)| at <= *last)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn set(networks: &[&str]) -> IpSet {
        IpSet::new(&networks.iter().map(|text| text.parse().expect("a network")).collect::<Vec<_>>())
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
                IpSet::new(&list.iter().map(network).collect::<Vec<IpNet>>())
            };
            let (ours, theirs) = (networks(&ours), networks(&theirs));
            let has = |set: &IpSet, bits: u32| set.contains(std::net::Ipv4Addr::from(bits).to_ipv6_mapped());
            let expected = (0..128).all(|bits| !has(&theirs, bits) || has(&ours, bits));
            prop_assert_eq!(ours.covers(&theirs), expected);
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
            let set = IpSet::new(&networks);
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
