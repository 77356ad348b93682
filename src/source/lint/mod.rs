//! What is suspicious about the rows of an export, although a daemon would serve them.
//!
//! A lint looks at one row at a time, while the export is read, and never refuses one. What has to be remembered from row
//! to row is bounded: key ids and owners ([`ids`]), sixteen bytes each and a fixed number at most, and the texts of the first
//! few warnings of each kind.
//!
//! Rows that are revoked are out of harm's way: only their key ids and owners are looked at. Rows that are past their end are told
//! about that, and not about what they would be allowed to do.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use keyward_engine::record::{KeyRecord, Quoted, Status, is_invisible, rfc3339};

mod hash;
mod ids;
mod look;
mod report;

pub use report::{FEW, MAX_WARNINGS, Report, Warning};

use hash::Hashes;
use ids::{Ids, Seen};

/// A kind of suspicion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lint {
    /// The digest of something that can be guessed, or no digest at all.
    WeakHash,
    /// The key is never valid: it ends before it begins.
    NeverValid,
    /// A list of networks or origins that is empty: no request is allowed.
    EmptyList,
    /// The scope `*`.
    WildcardScope,
    /// Addresses that are as good as anywhere.
    WideNetwork,
    /// Neither the row nor its plan limits the key.
    NoLimit,
    /// The key never ends.
    NoExpiry,
    /// Several rows of one key are in force, and none of them ends.
    EndlessRotation,
    /// A key id or an owner that looks like another.
    NearDuplicate,
    /// A key id or an owner with blanks at its ends, or with characters that are not shown.
    HiddenCharacters,
    /// The key is active, and past its end.
    Expired,
    /// A scope that ends in `*`. Only a note: it may well be meant.
    WildcardEnding,
}

impl Lint {
    /// Every kind, the worst first.
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

    /// What it is called, in messages and in JSON.
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

    /// Whether it is not even a warning.
    pub fn is_note(self) -> bool {
        self == Self::WildcardEnding
    }
}

/// Networks whose addresses are nobody else's: to allow all of one is no mistake, however many that are.
const PRIVATE: [IpNet; 8] = [
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v6(0xfc00, 7),
    v6(0xfe80, 10),
];

/// The shortest prefixes that are not wide: as much as the largest of providers has.
const NARROW_V4: u8 = 8;
const NARROW_V6: u8 = 16;

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(first: u16, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), length))
}

/// Looks at the rows of one export. See the [module](self).
pub struct Lints<'h> {
    now: u32,
    is_limited: &'h dyn Fn(&KeyRecord<'_>) -> bool,
    hashes: Hashes,
    ids: Ids,
    owners: Ids,
    /// The owner of the row before, which is often the next one's too.
    last_owner: String,
    /// The list that was looked at last, and what was found: lists are shared by many rows, and may be long.
    networks: Option<(Arc<[IpNet]>, Option<IpNet>)>,
    report: Report,
}

impl<'h> Lints<'h> {
    /// `now` is a Unix second; `is_limited` says whether anything limits a key: its row's own limits, or its plan's.
    pub fn new(now: u32, is_limited: &'h dyn Fn(&KeyRecord<'_>) -> bool) -> Self {
        Self {
            now,
            is_limited,
            hashes: Hashes::new(),
            ids: Ids::new(),
            owners: Ids::new(),
            last_owner: String::new(),
            networks: None,
            report: Report::default(),
        }
    }

    /// Looks at the row that begins at `line`.
    pub fn see(&mut self, line: u64, record: &KeyRecord<'_>) {
        let is_active = record.status == Status::Active;
        let is_over = record.expires_at <= self.now;
        if let Seen::Like(other) = self.ids.see(line, record, is_active && !is_over) {
            let message = NearDuplicate { what: "key_id", text: record.key_id, line: other };
            self.report.add(line, Lint::NearDuplicate, message);
        }
        self.see_hidden(line, "key_id", record.key_id);
        self.see_owner(line, record.owner);
        if record.status == Status::Revoked {
            return;
        }
        if let Some(weakness) = self.hashes.weakness(record) {
            self.report.add(line, Lint::WeakHash, weakness);
        }
        let is_never_valid = record.not_before >= record.expires_at;
        if is_never_valid {
            let message = "not_before is not before expires_at: the key is never valid";
            self.report.add(line, Lint::NeverValid, message);
        } else if is_over {
            if is_active {
                let end = rfc3339(record.expires_at);
                let message =
                    format_args!("active, but over since {end}: leave it out, or mark it as revoked");
                self.report.add(line, Lint::Expired, message);
            }
        } else {
            self.see_permissions(line, record);
        }
    }

    fn see_owner(&mut self, line: u64, owner: &str) {
        if !owner.is_empty() && self.last_owner != owner {
            owner.clone_into(&mut self.last_owner);
            if let Seen::Like(other) = self.owners.see_owner(line, owner) {
                let message = NearDuplicate { what: "owner", text: owner, line: other };
                self.report.add(line, Lint::NearDuplicate, message);
            }
        }
        self.see_hidden(line, "owner", owner);
    }

    /// What a reader of the text would not see.
    fn see_hidden(&mut self, line: u64, what: &str, text: &str) {
        let has_blank_ends = text.starts_with(' ') || text.ends_with(' ');
        if has_blank_ends || (!text.is_ascii() && text.contains(is_invisible)) {
            let which = if has_blank_ends { "blanks at its ends" } else { "characters that are not shown" };
            let message = format_args!(
                "the {what} {} has {which}: it is another than the same without them",
                Quoted(text)
            );
            self.report.add(line, Lint::HiddenCharacters, message);
        }
    }

    /// What the key may do, for how long.
    fn see_permissions(&mut self, line: u64, record: &KeyRecord<'_>) {
        if record.expires_at == u32::MAX {
            let message = "the key never expires: without an expires_at, a leak is for ever";
            self.report.add(line, Lint::NoExpiry, message);
        }
        if !(self.is_limited)(record) {
            let message = "nothing limits the key, neither its row nor its plan";
            self.report.add(line, Lint::NoLimit, message);
        }
        if record.scopes.iter().any(|scope| **scope == *"*") {
            let message = "the scope * is everything, and whatever will be added";
            self.report.add(line, Lint::WildcardScope, message);
        } else if let Some(scope) = record.scopes.iter().find(|scope| scope.ends_with('*')) {
            let message = format_args!("the scope {} grows with what is named so", Quoted(scope));
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
                "{network} is as good as anywhere: wider than /{}",
                if network.addr().is_ipv4() { NARROW_V4 } else { NARROW_V6 }
            );
            self.report.add(line, Lint::WideNetwork, message);
        }
    }

    fn wide_network(&mut self, networks: &Arc<[IpNet]>) -> Option<IpNet> {
        match &self.networks {
            Some((before, found)) if Arc::ptr_eq(before, networks) => *found,
            _ => {
                let found = networks.iter().find(|network| is_wide(network)).copied();
                self.networks = Some((Arc::clone(networks), found));
                found
            }
        }
    }

    /// What there is to say, now that all rows have been seen.
    pub fn finish(mut self) -> Report {
        let (rotations, lines) = self.ids.endless_rotations();
        let message =
            "several rows of this key_id are active and none expires: in a rotation, the old key ends";
        self.report.add_all(rotations, &lines, Lint::EndlessRotation, message);
        self.report.ids_left_out = self.ids.left_out();
        self.report.owners_left_out = self.owners.left_out();
        self.report
    }
}

fn is_wide(network: &IpNet) -> bool {
    let narrow = match network.addr() {
        IpAddr::V4(_) => NARROW_V4,
        IpAddr::V6(_) => NARROW_V6,
    };
    network.prefix_len() < narrow && !PRIVATE.iter().any(|private| private.contains(network))
}

struct NearDuplicate<'a> {
    /// The field.
    what: &'a str,
    text: &'a str,
    line: u64,
}

impl fmt::Display for NearDuplicate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, text, line } = self;
        write!(
            f,
            "the {what} {} is easily taken for that of line {line}: they differ only in case, in blanks, in - _ . or in \
             characters that are not shown or look alike",
            Quoted(text)
        )
    }
}

#[cfg(test)]
mod tests;
