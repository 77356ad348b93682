//! Reports rows of an export that are valid but suspicious.
//!
//! A [`Linter`] checks one row at a time while the export is read, and never refuses one. Its
//! memory is bounded: it keeps sixteen bytes for each of a bounded number of key ids and owners
//! ([`names`]), and the messages of the first warnings of each kind.
//!
//! A revoked row grants nothing, so only its key id and its owner are checked. An expired row is
//! reported as such, and its permissions are not checked.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use keyward_engine::record::{KeyRecord, Quoted, Status, is_invisible, rfc3339};

mod names;
mod report;
mod skeleton;
mod weak_hash;

pub use report::{LintReport, MAX_SHOWN_PER_LINT, MAX_WARNINGS, Warning};

use names::NameTable;
use weak_hash::WeakHashes;

/// A kind of warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lint {
    /// `key_hash` is the digest of a guessable text, or not a digest at all.
    WeakHash,
    /// The key is never valid: it expires before it becomes valid.
    NeverValid,
    /// A list of networks or origins is empty, so no request is allowed.
    EmptyList,
    /// The key has the scope `*`.
    WildcardScope,
    /// A network is so large that it restricts little.
    WideNetwork,
    /// Neither the row nor its plan has a limit.
    NoLimit,
    /// The key never expires.
    NoExpiry,
    /// Several rows of one key are in force, and none of them expires.
    EndlessRotation,
    /// A key id or an owner looks like another one.
    NearDuplicate,
    /// A key id or an owner begins or ends with a space, or has invisible characters.
    HiddenCharacters,
    /// The key is active but expired.
    Expired,
    /// A scope ends in `*`. This is only a note, because it is often intended.
    WildcardEnding,
}

impl Lint {
    /// Every kind, the most severe first.
    pub const ALL: [Self; 12] = [
        Self::WeakHash,
        Self::NeverValid,
        Self::EmptyList,
        Self::WildcardScope,
        Self::WideNetwork,
        Self::NoLimit,
        Self::NoExpiry,
        Self::EndlessRotation,
        Self::NearDuplicate,
        Self::HiddenCharacters,
        Self::Expired,
        Self::WildcardEnding,
    ];

    /// The name in messages and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::WeakHash => "weak_hash",
            Self::NeverValid => "never_valid",
            Self::EmptyList => "empty_list",
            Self::WildcardScope => "wildcard_scope",
            Self::WideNetwork => "wide_network",
            Self::NoLimit => "no_limit",
            Self::NoExpiry => "no_expiry",
            Self::EndlessRotation => "endless_rotation",
            Self::NearDuplicate => "near_duplicate",
            Self::HiddenCharacters => "hidden_characters",
            Self::Expired => "expired",
            Self::WildcardEnding => "wildcard_ending",
        }
    }

    /// Whether it is a note, which is less than a warning.
    pub fn is_note(self) -> bool {
        self == Self::WildcardEnding
    }
}

/// Private networks. Allowing all of one is not a mistake, regardless of its size.
const PRIVATE_NETWORKS: [IpNet; 8] = [
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v6(0xfc00, 7),
    v6(0xfe80, 10),
];

/// The shortest prefixes that do not count as wide: the size of the largest allocations to
/// providers.
const MIN_PREFIX_V4: u8 = 8;
const MIN_PREFIX_V6: u8 = 16;

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(first: u16, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), length))
}

/// Checks the rows of one export. See the [module](self).
pub struct Linter<'h> {
    now: u32,
    is_limited: &'h dyn Fn(&KeyRecord<'_>) -> bool,
    weak_hashes: WeakHashes,
    key_ids: NameTable,
    owners: NameTable,
    /// The owner of the previous row, which is often that of the next row, too.
    last_owner: String,
    /// The last list of networks checked, and the first wide network in it. Many rows share a list,
    /// which may be long.
    last_networks: Option<(Arc<[IpNet]>, Option<IpNet>)>,
    report: LintReport,
}

impl<'h> Linter<'h> {
    /// `now` is a Unix second. `is_limited` returns whether a row or its plan has a limit.
    pub fn new(now: u32, is_limited: &'h dyn Fn(&KeyRecord<'_>) -> bool) -> Self {
        Self {
            now,
            is_limited,
            weak_hashes: WeakHashes::new(),
            key_ids: NameTable::new(),
            owners: NameTable::new(),
            last_owner: String::new(),
            last_networks: None,
            report: LintReport::default(),
        }
    }

    /// Checks the row that begins at `line`.
    pub fn check(&mut self, line: u64, record: &KeyRecord<'_>) {
        let is_active = record.status == Status::Active;
        let is_expired = record.expires_at <= self.now;
        if let Some(other) = self.key_ids.add_key_id(line, record, is_active && !is_expired) {
            let message = NearDuplicate { field: "key_id", text: record.key_id, line: other };
            self.report.add(line, Lint::NearDuplicate, message);
        }
        self.check_hidden_characters(line, "key_id", record.key_id);
        self.check_owner(line, record.owner);
        if record.status == Status::Revoked {
            return;
        }
        if let Some(weakness) = self.weak_hashes.weakness(record) {
            self.report.add(line, Lint::WeakHash, weakness);
        }
        let is_never_valid = record.not_before >= record.expires_at;
        if is_never_valid {
            let message = "not_before is not before expires_at: the key is never valid";
            self.report.add(line, Lint::NeverValid, message);
        } else if is_expired {
            if is_active {
                let end = rfc3339(record.expires_at);
                let message =
                    format_args!("active, but expired since {end}: leave it out, or mark it as revoked");
                self.report.add(line, Lint::Expired, message);
            }
        } else {
            self.check_permissions(line, record);
        }
    }

    fn check_owner(&mut self, line: u64, owner: &str) {
        if !owner.is_empty() && self.last_owner != owner {
            owner.clone_into(&mut self.last_owner);
            if let Some(other) = self.owners.add_owner(line, owner) {
                let message = NearDuplicate { field: "owner", text: owner, line: other };
                self.report.add(line, Lint::NearDuplicate, message);
            }
        }
        self.check_hidden_characters(line, "owner", owner);
    }

    /// Checks for characters that a reader of the text does not see.
    fn check_hidden_characters(&mut self, line: u64, field: &str, text: &str) {
        let has_outer_spaces = text.starts_with(' ') || text.ends_with(' ');
        if has_outer_spaces || (!text.is_ascii() && text.contains(is_invisible)) {
            let problem = if has_outer_spaces { "spaces at its ends" } else { "invisible characters" };
            let message = format_args!(
                "the {field} {} has {problem}: it differs from the same text without them",
                Quoted(text)
            );
            self.report.add(line, Lint::HiddenCharacters, message);
        }
    }

    /// Checks what the key permits, and for how long.
    fn check_permissions(&mut self, line: u64, record: &KeyRecord<'_>) {
        if record.expires_at == u32::MAX {
            let message = "the key never expires: without expires_at, a leaked key works for ever";
            self.report.add(line, Lint::NoExpiry, message);
        }
        if !(self.is_limited)(record) {
            let message = "the key has no limit, neither in its row nor in its plan";
            self.report.add(line, Lint::NoLimit, message);
        }
        if record.scopes.iter().any(|scope| **scope == *"*") {
            let message = "the scope * covers every scope, including future ones";
            self.report.add(line, Lint::WildcardScope, message);
        } else if let Some(scope) = record.scopes.iter().find(|scope| scope.ends_with('*')) {
            let message =
                format_args!("the scope {} also covers future scopes that begin like it", Quoted(scope));
            self.report.add(line, Lint::WildcardEnding, message);
        }
        if record.allowed_ips.as_ref().is_some_and(|networks| networks.is_empty()) {
            let message = "allowed_ips is an empty list, which admits no address: every request is refused. \
                           Leave the field empty (JSON: null) to admit any address";
            self.report.add(line, Lint::EmptyList, message);
        }
        if record.allowed_origins.as_ref().is_some_and(|origins| origins.is_empty()) {
            let message = "allowed_origins is an empty list, which admits no origin: every request is refused. \
                           Leave the field empty (JSON: null) to admit any origin";
            self.report.add(line, Lint::EmptyList, message);
        }
        if let Some(network) = record.allowed_ips.as_ref().and_then(|networks| self.wide_network(networks)) {
            let message = format_args!(
                "{network} restricts little: it is wider than /{}",
                if network.addr().is_ipv4() { MIN_PREFIX_V4 } else { MIN_PREFIX_V6 }
            );
            self.report.add(line, Lint::WideNetwork, message);
        }
    }

    fn wide_network(&mut self, networks: &Arc<[IpNet]>) -> Option<IpNet> {
        match &self.last_networks {
            Some((last, found)) if Arc::ptr_eq(last, networks) => *found,
            _ => {
                let found = networks.iter().find(|network| is_wide(network)).copied();
                self.last_networks = Some((Arc::clone(networks), found));
                found
            }
        }
    }

    /// Reports the warnings, after all rows are checked.
    pub fn finish(mut self) -> LintReport {
        let (rotations, lines) = self.key_ids.endless_rotations();
        let message = "several rows of this key_id are active and none expires: in a rotation, the old key should expire";
        self.report.add_all(rotations, &lines, Lint::EndlessRotation, message);
        self.report.ids_left_out = self.key_ids.left_out();
        self.report.owners_left_out = self.owners.left_out();
        self.report
    }
}

fn is_wide(network: &IpNet) -> bool {
    let min_prefix = match network.addr() {
        IpAddr::V4(_) => MIN_PREFIX_V4,
        IpAddr::V6(_) => MIN_PREFIX_V6,
    };
    network.prefix_len() < min_prefix && !PRIVATE_NETWORKS.iter().any(|private| private.contains(network))
}

struct NearDuplicate<'a> {
    field: &'a str,
    text: &'a str,
    /// The line of the other text.
    line: u64,
}

impl fmt::Display for NearDuplicate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, text, line } = self;
        write!(
            f,
            "the {field} {} is easily mistaken for that of line {line}: they differ only in case, in spaces, in - _ . or in \
             characters that are invisible or look alike",
            Quoted(text)
        )
    }
}

#[cfg(test)]
mod tests;
