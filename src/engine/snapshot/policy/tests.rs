//! Policies answer like the lists that their rows state, and take little memory.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::record::{KeyRecord, Limit, Origin, Plans, parse_limits};
use crate::snapshot::Builder;
use crate::snapshot::test_record::{SEED, described_policy, limits, networks, numbered, origins};

const NETWORKS: [&str; 9] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.255.255.255/32",
    "11.0.0.0/32",
    "0.0.0.0/0",
    "::/0",
    "2001:db8::/32",
    "2001:db9::1/128",
    "::ffff:192.0.2.0/120",
];

const ADDRESSES: [&str; 12] = [
    "9.255.255.255",
    "10.0.0.0",
    "10.1.2.3",
    "10.255.255.255",
    "11.0.0.0",
    "11.0.0.1",
    "192.0.2.7",
    "192.0.3.0",
    "::",
    "2001:db8::1",
    "2001:db9::",
    "2001:db9::1",
];

const ORIGINS: [&str; 4] =
    ["https://a.example", "https://*.example", "http://a.example:8080", "https://*.b.example"];

const REQUEST_ORIGINS: [&str; 7] = [
    "https://a.example",
    "https://A.EXAMPLE",
    "https://c.example",
    "https://example",
    "https://c.b.example",
    "http://a.example:8080",
    "https://a.example.test",
];

const LIMITS: [&str; 5] = ["1/s", "2/s burst 7", "all=1/s", "daily=9/d; 1/s", "all=3/s; daily=9/d"];

fn plans() -> Plans {
    let plan = |name: &str, text: &str| (name.into(), parse_limits(text).expect("limits"));
    Plans::new([plan("pro", "all=100/s; daily=7/d"), plan("free", "5/s")], Some("free".into()))
        .expect("plans")
}

fn address(text: &str) -> Ipv6Addr {
    match text.parse().expect("an address") {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// Whether a network contains an address; a network of mapped addresses counts as IPv4.
fn is_in(network: &IpNet, ip: Ipv6Addr) -> bool {
    let is_mapped = ip.to_ipv4_mapped().is_some();
    match network {
        IpNet::V4(network) => ip.to_ipv4_mapped().is_some_and(|ip| network.contains(&ip)),
        IpNet::V6(network) => {
            network.contains(&ip) && is_mapped == network.network().to_ipv4_mapped().is_some()
        }
    }
}

fn is_covered(scopes: &[Box<str>], scope: &str) -> bool {
    scopes.iter().any(|own| match own.strip_suffix('*') {
        Some(prefix) => scope.starts_with(prefix),
        None => **own == *scope,
    })
}

fn allows_ip(record: &KeyRecord<'_>, ip: Option<Ipv6Addr>) -> bool {
    let list = record.allowed_ips.as_ref();
    list.is_none_or(|list| ip.is_some_and(|ip| list.iter().any(|network| is_in(network, ip))))
}

fn allows_origin(record: &KeyRecord<'_>, origin: Option<&str>) -> bool {
    let list = record.allowed_origins.as_ref();
    list.is_none_or(|list| origin.is_some_and(|origin| list.iter().any(|own| own.matches(origin))))
}

fn all_limits(record: &KeyRecord<'_>, plans: &Plans) -> Vec<Limit> {
    let (_, of_plan) = plans.resolve(record.plan).expect("a plan");
    let mut all = of_plan.to_vec();
    for own in record.limits.iter() {
        match all.iter_mut().find(|limit| limit.name == own.name) {
            Some(replaced) => *replaced = own.clone(),
            None => all.push(own.clone()),
        }
    }
    all
}

fn any_record() -> impl Strategy<Value = KeyRecord<'static>> {
    let some = |all: &'static [&'static str]| prop::collection::vec(prop::sample::select(all), 0..4);
    let texts = (prop::sample::select(&["", "live", "test"][..]), prop::sample::select(&["", "pro"][..]));
    (
        texts,
        prop::collection::vec("[ab]{1,3}|[ab]{0,2}\\*", 0..6),
        prop::option::of(some(&NETWORKS)),
        prop::option::of(some(&ORIGINS)),
        prop::option::of(prop::sample::select(&LIMITS[..])),
    )
        .prop_map(|((environment, plan), scopes, ips, allowed, own)| KeyRecord {
            environment,
            plan,
            scopes: scopes.into_iter().map(Box::from).collect(),
            allowed_ips: ips.as_deref().map(networks),
            allowed_origins: allowed.as_deref().map(origins),
            limits: own.map(limits).unwrap_or_default(),
            ..numbered(0)
        })
}

/// The policy number of each record, and the table.
fn table(records: &[KeyRecord<'_>], plans: Plans) -> (Vec<u32>, PolicyTable) {
    let mut builder = Builder::new(SEED, 0).with_plans(plans.into());
    for (number, record) in records.iter().enumerate() {
        let KeyRecord { hash, key_id, .. } = numbered(number);
        builder.add(number as u64 + 1, &KeyRecord { hash, key_id, ..record.clone() }).expect("a row");
    }
    let keys = builder.finish();
    (keys.entries.iter().map(|entry| entry.policy).collect(), keys.policies)
}

proptest! {
    #[test]
    fn policy_answers_like_the_lists_of_its_row(
        records in prop::collection::vec(any_record(), 1..12),
        scopes in prop::collection::vec("[ab]{0,4}", 0..20),
    ) {
        let plans = plans();
        let (numbers, table) = table(&records, plans.clone());
        let ips = || ADDRESSES.into_iter().map(|ip| Some(address(ip))).chain([None]);
        let request_origins = || REQUEST_ORIGINS.into_iter().map(Some).chain([None]);
        for (record, number) in records.iter().zip(&numbers) {
            let policy = table.at(*number);
            let plan = if record.plan.is_empty() { "free" } else { record.plan };
            prop_assert_eq!((policy.environment(), policy.plan()), (record.environment, plan));
            let limits: Vec<_> = policy.limits().map(LimitRef::to_limit).collect();
            prop_assert_eq!(limits, all_limits(record, &plans));
            let without_limit = ("", policy.texts_without_limit());
            let of_limits = policy.limits().zip(policy.policy_limits()).map(|(own, limit)| (own.name, limit.texts));
            for (limit_name, texts) in std::iter::once(without_limit).chain(of_limits) {
                let mut encoded = String::new();
                AnswerTexts { environment: record.environment, plan, limit_name }.encode(&mut encoded);
                prop_assert_eq!(policy.encoded_texts(texts), encoded.as_bytes());
            }
            prop_assert_eq!(policy.has_scopes(), !record.scopes.is_empty());
            prop_assert_eq!(policy.is_limited_to_networks(), record.allowed_ips.is_some());
            prop_assert_eq!(policy.is_limited_to_origins(), record.allowed_origins.is_some());
            let any_context = record.allowed_ips.is_none() && record.allowed_origins.is_none();
            prop_assert_eq!(policy.accepts_any_request_context(), any_context);
            for scope in &scopes {
                prop_assert_eq!(policy.has_scope(scope), is_covered(&record.scopes, scope), "{}", scope);
            }
            for ip in ips() {
                prop_assert_eq!(policy.allows_ip(ip), allows_ip(record, ip), "{:?}", ip);
            }
            for origin in request_origins() {
                prop_assert_eq!(policy.allows_origin(origin), allows_origin(record, origin), "{:?}", origin);
            }
        }
        for (before, number_before) in records.iter().zip(&numbers) {
            for (after, number_after) in records.iter().zip(&numbers) {
                let [old, new] = [number_before, number_after].map(|number| table.at(*number));
                prop_assert_eq!(number_before == number_after, described_policy(before) == described_policy(after));
                let admitted = ips().any(|ip| allows_ip(after, ip) && !allows_ip(before, ip));
                prop_assert!(!admitted || new.admits_networks_beyond(old));
                let admitted = request_origins()
                    .any(|origin| allows_origin(after, origin) && !allows_origin(before, origin));
                prop_assert!(!admitted || new.admits_origins_beyond(old));
                let gained = scopes.iter()
                    .any(|scope| is_covered(&after.scopes, scope) && !is_covered(&before.scopes, scope));
                prop_assert!(!gained || new.has_scopes_beyond(old));
                if old == new {
                    prop_assert_eq!((before.environment, before.plan), (after.environment, after.plan));
                    prop_assert!(!new.admits_networks_beyond(old) && !new.admits_origins_beyond(old));
                    prop_assert!(!new.has_scopes_beyond(old));
                }
            }
        }
    }
}

#[test]
fn empty_list_admits_nothing_and_a_missing_one_everything() {
    let shut =
        KeyRecord { allowed_ips: Some(Arc::default()), allowed_origins: Some(Arc::default()), ..numbered(0) };
    let (numbers, table) = table(&[with_own_scope(1), shut, numbered(0)], Plans::default());
    let [scoped, shut, open] = [0, 1, 2].map(|at| table.at(numbers[at]));
    let (ip, origin) = (Some(address("10.0.0.1")), Some("https://a.example"));
    for open in [scoped, open] {
        assert!(open.accepts_any_request_context() && open.allows_ip(None) && open.allows_ip(ip));
        assert!(open.allows_origin(None) && open.allows_origin(origin));
    }
    assert!(!shut.accepts_any_request_context());
    assert!(!(shut.allows_ip(None) || shut.allows_ip(ip)));
    assert!(!(shut.allows_origin(None) || shut.allows_origin(origin)));
    assert!(shut != open && open.admits_networks_beyond(shut) && open.admits_origins_beyond(shut));
    assert!(!open.has_scope("") && !open.has_scopes());
}

fn with_own_scope(number: usize) -> KeyRecord<'static> {
    KeyRecord { scopes: [format!("tenant:{number}:*").into()].into(), ..numbered(0) }
}

/// Equal parts of different policies are stored once.
#[test]
fn policies_that_differ_in_one_part_share_the_others() {
    let of_scopes: Vec<_> = (0..1000)
        .map(|number| KeyRecord { limits: limits(LIMITS[number % 3]), ..with_own_scope(number) })
        .collect();
    let (_, by_scope) = table(&of_scopes, Plans::default());
    let of_limits: Vec<_> = (0..1000)
        .map(|number| KeyRecord {
            limits: limits(&format!("{}/s", number + 1)),
            ..with_own_scope(number % 3)
        })
        .collect();
    let (_, by_limit) = table(&of_limits, Plans::default());
    assert_eq!((by_scope.len(), by_limit.len()), (1000, 1000));
    let distinct = |table: &PolicyTable, part: fn(&PolicyRecord) -> usize| {
        let records = (0..1000).filter_map(|number| table.record(number));
        records.map(part).collect::<std::collections::BTreeSet<_>>().len()
    };
    let of_each = |part| [&by_scope, &by_limit].map(|table| distinct(table, part));
    assert_eq!(of_each(|record| record.limits.range().start), [3, 1000]);
    assert_eq!(of_each(|record| record.restrictions_start()), [1000, 3]);
    // Two of the three lists of limits have the same names.
    assert_eq!(of_each(|record| record.texts.range().start), [2, 1]);
}

/// If every key has a policy of its own, it takes at most 100 bytes beside its texts.
#[test]
fn distinct_policy_is_small() {
    const KEYS: usize = 20_000;
    let plain = || KeyRecord { limits: limits("100/s"), ..numbered(0) };
    let bytes = |records: &[KeyRecord<'_>]| {
        let (_, table) = table(records, Plans::default());
        (table.len(), table.allocated().into_iter().sum::<usize>())
    };
    let (_, shared) = bytes(&[plain()]);
    type Row = fn(usize) -> (KeyRecord<'static>, usize);
    let kinds: [(&str, Row); 7] = [
        ("scopes", |number| {
            let record = KeyRecord { limits: limits("100/s"), ..with_own_scope(number) };
            let texts = record.scopes.iter().map(|scope| scope.len()).sum();
            (record, texts)
        }),
        ("IPv4 networks", |number| {
            let network = IpAddr::from((0x0a00_0000 + number as u32).to_be_bytes()).into();
            let record = KeyRecord { allowed_ips: Some([network].into()), ..numbered(0) };
            (KeyRecord { limits: limits("100/s"), ..record }, 0)
        }),
        ("IPv6 networks", |number| {
            let network = IpAddr::from((0x2001_0db8_u128 << 96 | number as u128).to_be_bytes()).into();
            let record = KeyRecord { allowed_ips: Some([network].into()), ..numbered(0) };
            (KeyRecord { limits: limits("100/s"), ..record }, 0)
        }),
        ("origins", |number| {
            let text = format!("https://*.customer-{number}.example");
            let origin = Origin::parse(&text).expect("an origin");
            let record = KeyRecord { allowed_origins: Some([origin].into()), ..numbered(0) };
            (KeyRecord { limits: limits("100/s"), ..record }, text.len())
        }),
        ("environments", |number| {
            let environment: &str = format!("environment-{number}").leak();
            let record = KeyRecord { limits: limits("100/s"), environment, ..numbered(0) };
            (record, environment.len())
        }),
        ("names of limits", |number| {
            let name = format!("limit-{number}");
            (KeyRecord { limits: limits(&format!("{name}=100/s")), ..numbered(0) }, name.len())
        }),
        ("limits", |number| (KeyRecord { limits: limits(&format!("{}/s", number + 1)), ..numbered(0) }, 0)),
    ];
    for (kind, row) in kinds {
        let (records, texts): (Vec<_>, Vec<_>) = (0..KEYS).map(row).unzip();
        let (policies, bytes) = bytes(&records);
        assert_eq!(policies, KEYS, "{kind}");
        let each = bytes.saturating_sub(shared + texts.iter().sum::<usize>()) / KEYS;
        assert!(each <= 100, "{kind}: {each} bytes");
    }
}
