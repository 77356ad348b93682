//! The keys of a seed, and exports of them.

use std::fmt::Write;
use std::rc::Rc;

use sha2::{Digest, Sha256};

use crate::random::Random;

/// Ticks in a nanosecond: a multiple of 7, so that 7 requests a second are exact. And in a second.
pub const TICKS: i128 = 7;
const SECOND: i128 = 1_000_000_000 * TICKS;

/// The key that every export has, except those that are to be refused. Its owner names the export.
pub const ANCHOR: usize = 0;

/// The texts of limits, and what they mean: name, ticks for one unit, burst.
type Spec = (&'static str, &'static [(&'static str, i128, u32)]);

/// A limit that no key has.
pub const UNKNOWN_LIMIT: &str = "tokens";

const SPECS: [Spec; 6] = [
    ("", &[]),
    ("10/s burst 5", &[("default", SECOND / 10, 5)]),
    ("3/h", &[("default", 3600 * SECOND / 3, 3)]),
    ("fast=7/s burst 4; slow=20/m burst 6", &[("fast", SECOND / 7, 4), ("slow", 60 * SECOND / 20, 6)]),
    ("a=2/d; b=2/d burst 3", &[("a", 86_400 * SECOND / 2, 2), ("b", 86_400 * SECOND / 2, 3)]),
    ("1000/s burst 200", &[("default", SECOND / 1000, 200)]),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Active,
    Disabled,
    Revoked,
    /// The row is bad, and is set aside. It states neither an owner nor limits.
    SetAside,
}

/// One key with its digest. Several may share a key id.
#[derive(Clone, Debug)]
pub struct Key {
    pub raw: Vec<u8>,
    pub digest: [u8; 32],
    pub id: String,
    pub owner: String,
    spec: usize,
}

impl Key {
    pub fn limits(&self) -> &'static [(&'static str, i128, u32)] {
        SPECS[self.spec].1
    }
}

/// A row of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub key: usize,
    pub status: Status,
    pub not_before: Option<u32>,
    pub expires_at: Option<u32>,
}

/// The rows of an export that is not damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The owner of the anchor.
    pub marker: String,
    pub rows: Vec<Row>,
    /// Whether the rows have their limits.
    pub has_limits: bool,
}

impl Rows {
    pub fn of(&self, key: usize) -> Option<&Row> {
        self.rows.iter().find(|row| row.key == key)
    }
}

/// What a source contains.
#[derive(Clone, Debug)]
pub enum Content {
    Missing,
    /// A file that is always refused.
    Bad,
    Rows(Rc<Rows>),
}

/// A state of the source. No two have the same number.
#[derive(Clone, Debug)]
pub struct Source {
    pub version: u64,
    pub content: Content,
}

/// All keys that a seed uses.
pub struct Universe {
    pub keys: Vec<Key>,
    pub owners: Vec<String>,
}

impl Universe {
    pub fn new(random: &mut Random) -> Self {
        let ids = 3 + random.index(8);
        let owners: Vec<String> = (0..3).map(|number| format!("owner{number}")).collect();
        let mut keys: Vec<Key> = (0..ids)
            .map(|number| {
                let spec = if number == ANCHOR { 1 } else { random.index(SPECS.len()) };
                key(number, format!("id{number}"), random.of(&owners).clone(), spec)
            })
            .collect();
        // Keys in rotation: they have another key's id, owner and limits.
        for number in 0..random.index(3) {
            let Key { id, owner, spec, .. } = keys[1 + random.index(ids - 1)].clone();
            keys.push(key(ids + number, id, owner, spec));
        }
        Self { keys, owners }
    }

    pub fn owner<'u>(&'u self, rows: &'u Rows, key: usize) -> &'u str {
        match key {
            ANCHOR => &rows.marker,
            _ if self.is_stated(rows, key) => &self.keys[key].owner,
            _ => "",
        }
    }

    /// The limits of a row.
    pub fn limits(&self, rows: &Rows, row: &Row) -> &'static [(&'static str, i128, u32)] {
        if rows.has_limits && self.is_stated(rows, row.key) { self.keys[row.key].limits() } else { &[] }
    }

    /// Whether a key has a limit of this name.
    pub fn has_limit(&self, rows: &Rows, name: &str) -> bool {
        rows.rows.iter().flat_map(|row| self.limits(rows, row)).any(|(other, ..)| *other == name)
    }

    /// Whether a row states the owner and the limits of a key. A row that is set aside has those of
    /// the other rows with its id.
    pub fn is_stated(&self, rows: &Rows, key: usize) -> bool {
        let states = |row: &Row| row.status != Status::SetAside && self.keys[row.key].id == self.keys[key].id;
        rows.rows.iter().any(states)
    }

    /// Random rows, mostly those of `before`. `has_bad` says whether some may be bad.
    pub fn rows(
        &self,
        random: &mut Random,
        before: Option<&Rows>,
        version: u64,
        now: u32,
        has_bad: bool,
    ) -> Rows {
        let is_mild = random.below(4) > 0;
        let mut rows = Vec::new();
        for key in 0..self.keys.len() {
            let known = before.and_then(|before| before.of(key));
            if key == ANCHOR {
                let expires_at = Some(now + 100_000_000);
                rows.push(Row { key, status: Status::Active, not_before: Some(100_000_000), expires_at });
                continue;
            }
            if before.is_some() && is_mild && !random.one_in(6) {
                rows.extend(known.cloned());
                continue;
            }
            if random.one_in(5) {
                continue;
            }
            let status = match random.below(8) {
                _ if has_bad && random.one_in(3) => Status::SetAside,
                0 => Status::Disabled,
                1 => Status::Revoked,
                _ => Status::Active,
            };
            let near =
                |random: &mut Random| now.saturating_add_signed(random.below(8000) as i32 - 4000).max(1);
            let not_before = random.one_in(6).then(|| near(random));
            let expires_at = random.one_in(5).then(|| near(random));
            // A validity that ends before it begins is refused.
            let expires_at = expires_at.filter(|expires| not_before.is_none_or(|begins| begins < *expires));
            rows.push(Row { key, status, not_before, expires_at });
        }
        if random.one_in(3) {
            rows.reverse();
        }
        Rows { marker: format!("v{version}"), rows, has_limits: true }
    }

    pub fn csv(&self, rows: &Rows) -> String {
        let mut text = "key_hash,key_id,owner,status,not_before,expires_at,limits\n".to_owned();
        for Row { key, status, not_before, expires_at } in &rows.rows {
            let Key { digest, id, owner, spec, .. } = &self.keys[*key];
            let time = |time: &Option<u32>| time.map(|time| time.to_string()).unwrap_or_default();
            let status = match status {
                Status::Active => "active",
                Status::Disabled => "disabled",
                Status::Revoked => "revoked",
                Status::SetAside => "bad",
            };
            let owner = if *key == ANCHOR { &rows.marker } else { owner };
            let hash = const_hex::encode(digest);
            let limits = if rows.has_limits { SPECS[*spec].0 } else { "" };
            let (not_before, expires_at) = (time(not_before), time(expires_at));
            let _ = writeln!(text, "{hash},{id},{owner},{status},{not_before},{expires_at},{limits}");
        }
        text
    }
}

fn key(number: usize, id: String, owner: String, spec: usize) -> Key {
    let raw = format!("key-{number}-0123456789").into_bytes();
    let digest = Sha256::digest(&raw).into();
    Key { raw, digest, id, owner, spec }
}
