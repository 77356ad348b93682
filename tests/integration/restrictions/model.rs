//! A second implementation of SPEC.md section 7, as plain as possible, on the fields of an export.
//! It shares no code with the daemon.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::support::{self, Export};

/// A limit of a plan: its name, its burst, whether the keys of an owner share it, and whether it is
/// in shadow mode.
type PlanLimit = (&'static str, u32, bool, bool);

pub(crate) const PLANS: [(&str, &[PlanLimit]); 6] = [
    ("single", &[("requests", 2, false, false)]),
    ("double", &[("large", 3, false, false), ("small", 2, false, false)]),
    ("team", &[("all", 3, true, false)]),
    ("both", &[("all", 3, true, false), ("each", 2, false, false)]),
    ("trial", &[("soft", 1, false, true)]),
    ("watched", &[("hard", 3, false, false), ("soft", 1, false, true)]),
];

/// So long that nothing is refilled during a test.
pub(crate) const PERIOD_DAYS: u32 = 30;

/// A row of the export. Times are relative to the current time. An empty text is an empty field.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// The raw key, and its `key_id`.
    pub(crate) key: String,
    pub(crate) owner: String,
    pub(crate) environment: &'static str,
    pub(crate) plan: &'static str,
    pub(crate) status: &'static str,
    pub(crate) not_before: Option<i64>,
    pub(crate) expires_at: Option<i64>,
    pub(crate) scopes: &'static [&'static str],
    pub(crate) ips: &'static [&'static str],
    pub(crate) origins: &'static [&'static str],
    pub(crate) limits: &'static [(&'static str, u32)],
    pub(crate) metadata: &'static str,
    /// Revoked by a command, not by the export.
    pub(crate) revoked_by_operator: bool,
}

/// The fields of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct RequestCase {
    pub(crate) cost: u32,
    pub(crate) environment: Option<&'static str>,
    /// Names, and whether any one of them suffices.
    pub(crate) scopes: Option<(&'static [&'static str], bool)>,
    pub(crate) ip: Option<&'static str>,
    pub(crate) origin: Option<&'static str>,
    pub(crate) metadata: bool,
}

/// The relevant fields of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) verdict: String,
    pub(crate) key_id: String,
    pub(crate) limit: Option<(String, u32)>,
    pub(crate) shadow: Option<String>,
    pub(crate) metadata: Option<String>,
}

/// The expected outcome. If several limits decide alike, the answer may name any of them.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    verdict: &'static str,
    key_id: String,
    limits: Vec<(&'static str, u32)>,
    shadow: Option<&'static str>,
    metadata: Option<&'static str>,
}

impl Expected {
    #[track_caller]
    pub(crate) fn assert(&self, outcome: &Outcome, context: impl FnOnce() -> String) {
        let limit = outcome.limit.as_ref().map(|(name, remaining)| (name.as_str(), *remaining));
        let names_limit = match limit {
            Some(limit) => self.limits.contains(&limit),
            None => self.limits.is_empty(),
        };
        let is_as_expected = self.verdict == outcome.verdict
            && self.key_id == outcome.key_id
            && names_limit
            && self.shadow == outcome.shadow.as_deref()
            && self.metadata == outcome.metadata.as_deref();
        assert!(is_as_expected, "{outcome:?} instead of {self:?}: {}", context());
    }
}

/// The rows, and the remaining units of their limits.
pub(crate) struct Model {
    pub(crate) rows: Vec<Row>,
    remaining: BTreeMap<(String, &'static str), u32>,
}

/// A limit of a key.
struct Limit {
    bucket: (String, &'static str),
    burst: u32,
    shadow: bool,
}

impl Model {
    pub(crate) fn new(rows: Vec<Row>) -> Self {
        Self { rows, remaining: BTreeMap::new() }
    }

    fn limits(&self, row: &Row) -> Vec<Limit> {
        let of_plan = PLANS.iter().find(|(name, _)| *name == row.plan).map_or(&[][..], |(_, limits)| *limits);
        let is_replaced = |name: &str| row.limits.iter().any(|(own, _)| *own == name);
        let of_plan =
            of_plan.iter().filter(|(name, ..)| !is_replaced(name)).map(|(name, burst, shared, shadow)| {
                let holder = if *shared && !row.owner.is_empty() {
                    format!("owner {}", row.owner)
                } else {
                    format!("key {}", row.key)
                };
                Limit { bucket: (holder, *name), burst: *burst, shadow: *shadow }
            });
        let own = row.limits.iter().map(|(name, burst)| Limit {
            bucket: (format!("key {}", row.key), *name),
            burst: *burst,
            shadow: false,
        });
        of_plan.chain(own).collect()
    }

    fn remaining(&self, limit: &Limit) -> u32 {
        self.remaining.get(&limit.bucket).copied().unwrap_or(limit.burst)
    }

    pub(crate) fn verify(&mut self, row: usize, case: &RequestCase) -> Expected {
        let row = self.rows[row].clone();
        let mut expected = Expected {
            verdict: "ALLOWED",
            key_id: row.key.clone(),
            limits: Vec::new(),
            shadow: None,
            metadata: Some(row.metadata).filter(|text| case.metadata && !text.is_empty()),
        };
        if let Some(denial) = denial(&row, case) {
            expected.verdict = denial;
            return expected;
        }
        let limits = self.limits(&row);
        let enforced = || limits.iter().filter(|limit| !limit.shadow);
        let has_room = |limit: &Limit| case.cost <= self.remaining(limit);
        let is_admitted = enforced().all(has_room);
        if case.cost > 0 {
            expected.shadow =
                limits.iter().find(|limit| limit.shadow && !has_room(limit)).map(|limit| limit.bucket.1);
        }
        let of = |limit: &Limit, spent: u32| (limit.bucket.1, self.remaining(limit) - spent);
        if enforced().any(|limit| case.cost > limit.burst) {
            expected.verdict = "COST_EXCEEDS_BURST";
            expected.limits =
                enforced().filter(|limit| case.cost > limit.burst).map(|limit| of(limit, 0)).collect();
        } else if is_admitted {
            expected.limits = with_least_remaining(enforced().map(|limit| of(limit, case.cost)).collect());
            for limit in &limits {
                if let Some(remaining) = self.remaining(limit).checked_sub(case.cost) {
                    self.remaining.insert(limit.bucket.clone(), remaining);
                }
            }
        } else {
            expected.verdict = "RATE_LIMITED";
            expected.limits = enforced().filter(|limit| !has_room(limit)).map(|limit| of(limit, 0)).collect();
        }
        expected
    }

    pub(crate) fn refund(&mut self, row: usize, cost: u32) -> Expected {
        let row = self.rows[row].clone();
        let limits = self.limits(&row);
        for limit in &limits {
            let remaining = (self.remaining(limit) + cost).min(limit.burst);
            self.remaining.insert(limit.bucket.clone(), remaining);
        }
        let enforced = limits.iter().filter(|limit| !limit.shadow);
        let limits =
            with_least_remaining(enforced.map(|limit| (limit.bucket.1, self.remaining(limit))).collect());
        Expected { verdict: "ALLOWED", key_id: row.key, limits, shadow: None, metadata: None }
    }
}

fn with_least_remaining(limits: Vec<(&'static str, u32)>) -> Vec<(&'static str, u32)> {
    let least = limits.iter().map(|(_, remaining)| *remaining).min();
    limits.into_iter().filter(|(_, remaining)| Some(*remaining) == least).collect()
}

fn denial(row: &Row, case: &RequestCase) -> Option<&'static str> {
    if row.status == "revoked" || row.revoked_by_operator {
        return Some("REVOKED");
    }
    if row.status == "disabled" {
        return Some("DISABLED");
    }
    if row.not_before.is_some_and(|since| since > 0) {
        return Some("NOT_YET_VALID");
    }
    if row.expires_at.is_some_and(|until| until <= 0) {
        return Some("EXPIRED");
    }
    if case.environment.is_some_and(|environment| environment.is_empty() || environment != row.environment) {
        return Some("WRONG_ENVIRONMENT");
    }
    let from_network = |network: &&str| case.ip.is_some_and(|ip| is_in_network(ip, network));
    if !row.ips.is_empty() && !row.ips.iter().any(from_network) {
        return Some("IP_NOT_ALLOWED");
    }
    let from_origin = |allowed: &&str| case.origin.is_some_and(|origin| is_origin(origin, allowed));
    if !row.origins.is_empty() && !row.origins.iter().any(from_origin) {
        return Some("ORIGIN_NOT_ALLOWED");
    }
    let has = |scope: &&str| {
        row.scopes
            .iter()
            .any(|own| own.strip_suffix('*').map_or(own == scope, |start| scope.starts_with(start)))
    };
    let has_scopes = match case.scopes {
        None => true,
        Some((names, true)) => names.iter().any(has),
        Some((names, false)) => names.iter().all(has),
    };
    if has_scopes { None } else { Some("MISSING_SCOPE") }
}

/// Compares addresses as texts of bits.
fn is_in_network(ip: &str, network: &str) -> bool {
    let (start, length) = network.split_once('/').expect("a network");
    let length: usize = length.parse().expect("a number");
    let bits = |address: &str| match address.parse().expect("an address") {
        IpAddr::V4(v4) => v4.octets().iter().map(|byte| format!("{byte:08b}")).collect::<String>(),
        IpAddr::V6(v6) => v6.octets().iter().map(|byte| format!("{byte:08b}")).collect(),
    };
    let (ip, start) = (bits(ip), bits(start));
    ip.len() == start.len() && ip[..length] == start[..length]
}

/// `*` matches the first label.
fn is_origin(origin: &str, allowed: &str) -> bool {
    let Some((scheme, domain)) = allowed.split_once("*.") else {
        return origin == allowed;
    };
    let host = origin.strip_prefix(scheme).unwrap_or_default();
    host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == domain)
}

/// Changes a row, usually by a restriction.
type Restrict = fn(&mut Row);

/// All of them by name. Exports scale the seconds of validity by a `unit`, so that no key expires
/// during a slow test.
pub(crate) const RESTRICTIONS: [(&str, Restrict); 29] = [
    ("none", |_| ()),
    ("revoked", |row| row.status = "revoked"),
    ("disabled", |row| row.status = "disabled"),
    ("active", |row| row.status = "active"),
    ("revoked by an operator", |row| row.revoked_by_operator = true),
    ("valid later", |row| row.not_before = Some(1)),
    ("valid from now", |row| row.not_before = Some(0)),
    ("expired now", |row| row.expires_at = Some(0)),
    ("expired before", |row| row.expires_at = Some(-1)),
    ("expires later", |row| row.expires_at = Some(1)),
    ("environment", |row| row.environment = "live"),
    ("scopes", |row| row.scopes = &["orders:read", "users:*"]),
    ("all scopes", |row| row.scopes = &["*"]),
    ("IPv4 network", |row| row.ips = &["10.0.0.0/8"]),
    ("IPv6 network", |row| row.ips = &["2001:db8::/32"]),
    ("addresses of both families", |row| row.ips = &["192.0.2.7/32", "2001:db8::1/128"]),
    ("all IPv4 addresses", |row| row.ips = &["0.0.0.0/0"]),
    ("origin", |row| row.origins = &["https://a.test"]),
    ("wildcard origin", |row| row.origins = &["https://*.b.test"]),
    ("own limit", |row| row.limits = &[("own", 2)]),
    ("two own limits", |row| row.limits = &[("first", 3), ("second", 2)]),
    ("plan with a limit", |row| row.plan = "single"),
    ("plan with two limits", |row| row.plan = "double"),
    ("plan with a limit of the owner", |row| (row.plan, row.owner) = ("team", "acme".into())),
    ("the same owner's other key", |row| (row.plan, row.owner) = ("both", "acme".into())),
    ("limit of an owner, without one", |row| row.plan = "team"),
    ("limit in shadow mode", |row| row.plan = "trial"),
    ("limit beside one in shadow mode", |row| row.plan = "watched"),
    ("limit in the place of the plan's", |row| (row.plan, row.limits) = ("single", &[("requests", 1)])),
];

/// Rows with one restriction each.
pub(crate) fn rows_with_one_restriction() -> Vec<Row> {
    let rows = RESTRICTIONS.iter().map(|(name, restrict)| with(name.replace([' ', '\''], "-"), &[*restrict]));
    rows.collect()
}

/// Rows with two restrictions each.
pub(crate) fn rows_with_two_restrictions() -> Vec<Row> {
    let all = RESTRICTIONS.iter().enumerate();
    all.flat_map(|(at, first)| RESTRICTIONS[at + 1..].iter().map(move |second| (first, second)))
        .zip(0..)
        .map(|((first, second), number)| with(format!("pair-{number}"), &[first.1, second.1]))
        .collect()
}

fn with(key: String, restrictions: &[Restrict]) -> Row {
    let metadata = if key.len().is_multiple_of(2) { r#"{"seat":4}"# } else { "" };
    let mut row = Row { key, metadata, ..Row::default() };
    restrictions.iter().for_each(|restrict| restrict(&mut row));
    row
}

const ENVIRONMENTS: [Option<&str>; 4] = [None, Some("live"), Some("test"), Some("")];
const SCOPES: [Option<(&[&str], bool)>; 7] = [
    None,
    Some((&["orders:read"], false)),
    Some((&["users:list", "orders:read"], false)),
    Some((&["orders:read", "orders:write"], false)),
    Some((&["orders:write"], true)),
    Some((&["orders:write", "users:list"], true)),
    Some((&["orders"], false)),
];
const IPS: [Option<&str>; 6] =
    [None, Some("10.1.2.3"), Some("11.0.0.1"), Some("192.0.2.7"), Some("2001:db8::1"), Some("2001:db9::1")];
const ORIGINS: [Option<&str>; 5] = [
    None,
    Some("https://a.test"),
    Some("https://x.b.test"),
    Some("https://x.y.b.test"),
    Some("https://evil.test"),
];

/// Every combination of the fields of a request, shuffled. Cost and metadata alternate.
pub(crate) fn all_cases() -> Vec<RequestCase> {
    let mut cases = Vec::new();
    for environment in ENVIRONMENTS {
        for scopes in SCOPES {
            for ip in IPS {
                for origin in ORIGINS {
                    let number = cases.len();
                    let cost = [1, 1, 0, 2, 1, 4, 3][number % 7];
                    let metadata = (number / 3).is_multiple_of(2);
                    cases.push(RequestCase { cost, environment, scopes, ip, origin, metadata });
                }
            }
        }
    }
    shuffle(cases)
}

/// The plain request, and each value of each field alone and combined with valid values of the
/// others.
pub(crate) fn typical_cases() -> Vec<RequestCase> {
    let plain = RequestCase { cost: 1, ..RequestCase::default() };
    let permitted = RequestCase {
        environment: Some("live"),
        scopes: SCOPES[1],
        ip: Some("10.1.2.3"),
        origin: Some("https://a.test"),
        metadata: true,
        ..plain
    };
    let mut cases =
        vec![plain, RequestCase { metadata: true, ..plain }, RequestCase { cost: 0, ..plain }, permitted];
    for base in [plain, permitted] {
        cases.extend(ENVIRONMENTS.map(|environment| RequestCase { environment, ..base }));
        cases.extend(SCOPES.map(|scopes| RequestCase { scopes, ..base }));
        cases.extend(IPS.map(|ip| RequestCase { ip, ..base }));
        cases.extend(ORIGINS.map(|origin| RequestCase { origin, ..base }));
        cases.extend([0, 2, 3, 4].map(|cost| RequestCase { cost, ..base }));
    }
    cases
}

/// A deterministic order in which neighbours have little in common.
pub(crate) fn shuffle<T: Clone>(all: Vec<T>) -> Vec<T> {
    let step = [787, 311, 97, 13, 1].into_iter().find(|step| !all.len().is_multiple_of(*step)).unwrap_or(1);
    (0..all.len()).map(|number| all[number * step % all.len()].clone()).collect()
}

/// The export of these rows. `hash` returns the hash of a key, and a second of validity lasts
/// `unit` seconds.
pub(crate) fn export(rows: &[Row], now: u32, unit: i64, hash: impl Fn(&str) -> String) -> Export {
    let time = |offset: Option<i64>| {
        offset.map_or(String::new(), |offset| {
            keyward_engine::record::rfc3339(u32::try_from(i64::from(now) + offset * unit).expect("in range"))
        })
    };
    let listed = |row: &Row| {
        let limits: Vec<String> =
            row.limits.iter().map(|(name, burst)| format!("{name}={burst}/{PERIOD_DAYS}d")).collect();
        support::row(&*row.key)
            .hash(hash(&row.key))
            .owner(&*row.owner)
            .environment(row.environment)
            .plan(row.plan)
            .status(row.status)
            .set("not_before", time(row.not_before))
            .expires_at(time(row.expires_at))
            .set("scopes", row.scopes.join(" "))
            .allowed_ips(row.ips.join(" "))
            .set("allowed_origins", row.origins.join(" "))
            .limits(limits.join("; "))
            .metadata(row.metadata)
    };
    Export::new(rows.iter().map(listed))
}
