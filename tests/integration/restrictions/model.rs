//! What a key allows: SPEC.md section 7 implemented a second time, as plainly as possible and on
//! the fields as an export has them. It shares no code with the daemon.

use std::collections::BTreeMap;
use std::net::IpAddr;

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

/// So slow that nothing comes back within a test.
pub(crate) const PERIOD_DAYS: u32 = 30;

/// A row of the export. Times are relative to now; an empty text is a field that the row does not
/// have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// The key, and its id.
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
    /// What the export does not say.
    pub(crate) revoked_by_operator: bool,
}

/// What is asked about a key.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Ask {
    pub(crate) cost: u32,
    pub(crate) environment: Option<&'static str>,
    /// Names, and whether one of them is enough.
    pub(crate) scopes: Option<(&'static [&'static str], bool)>,
    pub(crate) ip: Option<&'static str>,
    pub(crate) origin: Option<&'static str>,
    pub(crate) metadata: bool,
}

/// What came back, or has to come back.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) verdict: String,
    pub(crate) key_id: String,
    pub(crate) limit: Option<(String, u32)>,
    pub(crate) shadow: Option<String>,
    pub(crate) metadata: Option<String>,
}

/// What has to come back: where several limits decide alike, any of them may be named.
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
    pub(crate) fn assert(&self, seen: &Seen, case: impl FnOnce() -> String) {
        let limit = seen.limit.as_ref().map(|(name, remaining)| (name.as_str(), *remaining));
        let names_limit = match limit {
            Some(limit) => self.limits.contains(&limit),
            None => self.limits.is_empty(),
        };
        let is_as_expected = self.verdict == seen.verdict
            && self.key_id == seen.key_id
            && names_limit
            && self.shadow == seen.shadow.as_deref()
            && self.metadata == seen.metadata.as_deref();
        assert!(is_as_expected, "{seen:?} instead of {self:?}: {}", case());
    }
}

/// The rows, and what is left of their limits.
pub(crate) struct Model {
    pub(crate) rows: Vec<Row>,
    left: BTreeMap<(String, &'static str), u32>,
}

/// A limit of a key.
struct Limit {
    bucket: (String, &'static str),
    burst: u32,
    shadow: bool,
}

impl Model {
    pub(crate) fn new(rows: Vec<Row>) -> Self {
        Self { rows, left: BTreeMap::new() }
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

    fn left(&self, limit: &Limit) -> u32 {
        self.left.get(&limit.bucket).copied().unwrap_or(limit.burst)
    }

    pub(crate) fn verify(&mut self, row: usize, ask: &Ask) -> Expected {
        let row = self.rows[row].clone();
        let mut expected = Expected {
            verdict: "ALLOWED",
            key_id: row.key.clone(),
            limits: Vec::new(),
            shadow: None,
            metadata: Some(row.metadata).filter(|text| ask.metadata && !text.is_empty()),
        };
        if let Some(denial) = denial(&row, ask) {
            expected.verdict = denial;
            return expected;
        }
        let limits = self.limits(&row);
        let enforced = || limits.iter().filter(|limit| !limit.shadow);
        let has_room = |limit: &Limit| ask.cost <= self.left(limit);
        let is_admitted = enforced().all(has_room);
        if ask.cost > 0 {
            expected.shadow =
                limits.iter().find(|limit| limit.shadow && !has_room(limit)).map(|limit| limit.bucket.1);
        }
        let of = |limit: &Limit, spent: u32| (limit.bucket.1, self.left(limit) - spent);
        if enforced().any(|limit| ask.cost > limit.burst) {
            expected.verdict = "COST_EXCEEDS_BURST";
            expected.limits =
                enforced().filter(|limit| ask.cost > limit.burst).map(|limit| of(limit, 0)).collect();
        } else if is_admitted {
            expected.limits = least(enforced().map(|limit| of(limit, ask.cost)).collect());
            for limit in &limits {
                if let Some(left) = self.left(limit).checked_sub(ask.cost) {
                    self.left.insert(limit.bucket.clone(), left);
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
            let left = (self.left(limit) + cost).min(limit.burst);
            self.left.insert(limit.bucket.clone(), left);
        }
        let enforced = limits.iter().filter(|limit| !limit.shadow);
        let limits = least(enforced.map(|limit| (limit.bucket.1, self.left(limit))).collect());
        Expected { verdict: "ALLOWED", key_id: row.key, limits, shadow: None, metadata: None }
    }
}

fn least(limits: Vec<(&'static str, u32)>) -> Vec<(&'static str, u32)> {
    let least = limits.iter().map(|(_, left)| *left).min();
    limits.into_iter().filter(|(_, left)| Some(*left) == least).collect()
}

fn denial(row: &Row, ask: &Ask) -> Option<&'static str> {
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
    if ask.environment.is_some_and(|environment| environment.is_empty() || environment != row.environment) {
        return Some("WRONG_ENVIRONMENT");
    }
    let from_network = |network: &&str| ask.ip.is_some_and(|ip| is_in_network(ip, network));
    if !row.ips.is_empty() && !row.ips.iter().any(from_network) {
        return Some("IP_NOT_ALLOWED");
    }
    let from_origin = |allowed: &&str| ask.origin.is_some_and(|origin| is_origin(origin, allowed));
    if !row.origins.is_empty() && !row.origins.iter().any(from_origin) {
        return Some("ORIGIN_NOT_ALLOWED");
    }
    let has = |scope: &&str| {
        row.scopes
            .iter()
            .any(|own| own.strip_suffix('*').map_or(own == scope, |start| scope.starts_with(start)))
    };
    let has_scopes = match ask.scopes {
        None => true,
        Some((names, true)) => names.iter().any(has),
        Some((names, false)) => names.iter().all(has),
    };
    if has_scopes { None } else { Some("MISSING_SCOPE") }
}

/// Networks as text, addresses as their bits.
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

/// `*` stands for the first label.
fn is_origin(origin: &str, allowed: &str) -> bool {
    let Some((scheme, domain)) = allowed.split_once("*.") else {
        return origin == allowed;
    };
    let host = origin.strip_prefix(scheme).unwrap_or_default();
    host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == domain)
}

/// A restriction, or something else that a row can say.
type Restrict = fn(&mut Row);

/// Each of them, by name. Seconds of validity are counted in `unit`s in exports, so that a test
/// that takes a while sees no key expire.
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
pub(crate) fn singles() -> Vec<Row> {
    let rows = RESTRICTIONS.iter().map(|(name, restrict)| with(name.replace([' ', '\''], "-"), &[*restrict]));
    rows.collect()
}

/// Rows with two each.
pub(crate) fn pairs() -> Vec<Row> {
    let all = RESTRICTIONS.iter().enumerate();
    let pairs = all.flat_map(|(at, first)| RESTRICTIONS[at + 1..].iter().map(move |second| (first, second)));
    pairs
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

/// Every combination of the fields of a request, in no particular order; costs and metadata take
/// turns.
pub(crate) fn all_asks() -> Vec<Ask> {
    let mut asks = Vec::new();
    for environment in ENVIRONMENTS {
        for scopes in SCOPES {
            for ip in IPS {
                for origin in ORIGINS {
                    let number = asks.len();
                    let cost = [1, 1, 0, 2, 1, 4, 3][number % 7];
                    let metadata = (number / 3).is_multiple_of(2);
                    asks.push(Ask { cost, environment, scopes, ip, origin, metadata });
                }
            }
        }
    }
    scatter(asks)
}

/// The plain request, and each value of each field alone and beside values of the others that suit
/// every key.
pub(crate) fn some_asks() -> Vec<Ask> {
    let plain = Ask { cost: 1, ..Ask::default() };
    let welcome = Ask {
        environment: Some("live"),
        scopes: SCOPES[1],
        ip: Some("10.1.2.3"),
        origin: Some("https://a.test"),
        metadata: true,
        ..plain
    };
    let mut asks = vec![plain, Ask { metadata: true, ..plain }, Ask { cost: 0, ..plain }, welcome];
    for base in [plain, welcome] {
        asks.extend(ENVIRONMENTS.map(|environment| Ask { environment, ..base }));
        asks.extend(SCOPES.map(|scopes| Ask { scopes, ..base }));
        asks.extend(IPS.map(|ip| Ask { ip, ..base }));
        asks.extend(ORIGINS.map(|origin| Ask { origin, ..base }));
        asks.extend([0, 2, 3, 4].map(|cost| Ask { cost, ..base }));
    }
    asks
}

/// An order in which neighbours have little in common, the same in each run.
pub(crate) fn scatter<T: Clone>(all: Vec<T>) -> Vec<T> {
    let step = [787, 311, 97, 13, 1].into_iter().find(|step| !all.len().is_multiple_of(*step)).unwrap_or(1);
    (0..all.len()).map(|number| all[number * step % all.len()].clone()).collect()
}

/// The export of these rows: `hash` says what a key is listed as, and a second of validity has
/// `unit` seconds.
pub(crate) fn export(rows: &[Row], now: u32, unit: i64, hash: impl Fn(&str) -> String) -> String {
    let mut text = "key_hash,key_id,owner,environment,plan,status,not_before,expires_at,scopes,allowed_ips,allowed_origins,\
                    limits,metadata\n"
        .to_owned();
    for row in rows {
        let time = |offset: Option<i64>| {
            offset.map_or(String::new(), |offset| {
                keyward_engine::record::rfc3339(
                    u32::try_from(i64::from(now) + offset * unit).expect("in range"),
                )
            })
        };
        let limits: Vec<String> =
            row.limits.iter().map(|(name, burst)| format!("{name}={burst}/{PERIOD_DAYS}d")).collect();
        let fields = [
            hash(&row.key),
            row.key.clone(),
            row.owner.clone(),
            row.environment.into(),
            row.plan.into(),
            row.status.into(),
            time(row.not_before),
            time(row.expires_at),
            row.scopes.join(" "),
            row.ips.join(" "),
            row.origins.join(" "),
            limits.join("; "),
            row.metadata.into(),
        ];
        let quoted = fields.map(|field| format!("\"{}\"", field.replace('"', "\"\"")));
        text += &quoted.join(",");
        text.push('\n');
    }
    text
}
