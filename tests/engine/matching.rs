//! `protocol/vectors/matching.json`: how keys are hashed and how networks, origins and scopes match,
//! from the text of an export to the verdict.

use std::net::{IpAddr, Ipv6Addr};

use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::key_format::{self, KeyFormat, Prefix};
use keyward_engine::limiter::{Limiter, SlotAllocator};
use keyward_engine::now::Now;
use keyward_engine::pepper::Pepper;
use keyward_engine::record::KeyRecord;
use keyward_engine::snapshot::{Builder, Snapshot, SnapshotMeta, View};
use keyward_engine::verify::Verifier;
use keyward_protocol::{Credential, ScopeMode, Scopes, Verdict, Verify};
use keyward_source::{ColumnMapping, Diagnostics, Format, read};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::notation::parse_bytes;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vectors {
    hashes: Vec<HashVector>,
    peppers: Vec<PepperVector>,
    minted_keys: Vec<MintedKey>,
    networks: Vec<NetworkVector>,
    origins: Vec<OriginVector>,
    scopes: Vec<ScopeVector>,
    not_in_exports: Vec<RefusedItems>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HashVector {
    name: String,
    #[serde(rename = "note")]
    _note: Option<String>,
    key: Bytes,
    sha256: Bytes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PepperVector {
    name: String,
    #[serde(rename = "note")]
    _note: Option<String>,
    file: Bytes,
    key: Bytes,
    hmac: Option<Bytes>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MintedKey {
    name: String,
    #[serde(rename = "note")]
    _note: Option<String>,
    prefixes: Vec<String>,
    key: String,
    format: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkVector {
    name: String,
    #[serde(rename = "note")]
    _note: Option<String>,
    networks: Vec<String>,
    contained: Vec<IpAddr>,
    not_contained: Vec<IpAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OriginVector {
    name: String,
    #[serde(rename = "note")]
    _note: Option<String>,
    origins: Vec<String>,
    matched: Vec<String>,
    not_matched: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScopeVector {
    name: String,
    #[serde(rename = "note")]
    _note: Option<String>,
    scopes: Vec<String>,
    has: Vec<String>,
    lacks: Vec<String>,
}

/// Items that a list of an export must not contain.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RefusedItems {
    name: String,
    field: String,
    items: Vec<String>,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Bytes(Vec<u8>);

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse_bytes(&text).map(Self)
    }
}

fn vectors() -> Vectors {
    let file = include_str!("../../protocol/vectors/matching.json");
    serde_json::from_str(file).expect("matching.json has the format that its README.md describes")
}

/// Reads an export with one row per list. The key and the `key_id` of a row are its number.
fn snapshot(limiter: &Limiter, field: &str, lists: &[&[String]]) -> (Option<Snapshot>, Diagnostics) {
    let mut export = String::new();
    for (number, list) in lists.iter().enumerate() {
        let hash = const_hex::encode(key_format::hash(number.to_string().as_bytes()));
        let mut row = json!({ "key_hash": hash, "key_id": number.to_string() });
        row[field] = json!(list);
        export += &format!("{row}\n");
    }
    let mut builder = Builder::new(7, lists.len());
    let mut diagnostics = Diagnostics::new("keys.jsonl");
    let mut sink = |line: u64, record: &KeyRecord<'_>| Ok(builder.add(line, record)?);
    let mapping = ColumnMapping::default();
    read(export.as_bytes(), Format::JsonLines, &mapping, &mut sink, &mut diagnostics).expect("a slice");
    if !diagnostics.is_empty() {
        return (None, diagnostics);
    }
    let mut allocator = SlotAllocator::new();
    let mut allocation = allocator.begin(limiter);
    let snapshot = builder.finish().into_snapshot(&mut allocation, None, SnapshotMeta::default());
    // There is no earlier snapshot whose slots could be reclaimed.
    let _ = allocation.commit();
    (Some(snapshot.expect("no limits")), diagnostics)
}

/// The snapshot of lists that are all accepted.
fn accepted(limiter: &Limiter, field: &str, lists: &[&[String]]) -> Snapshot {
    let (snapshot, diagnostics) = snapshot(limiter, field, lists);
    snapshot.unwrap_or_else(|| panic!("{diagnostics}"))
}

/// The verdict on a request with the key of row `number`.
fn verdict(snapshot: &Snapshot, number: usize, request: Verify<'_>) -> Verdict {
    let (limiter, global_policy) = (Limiter::new(), GlobalPolicy::default());
    let now = Now { nanoseconds: 1 << 40, unix: 1_700_000_000, millisecond: 0 };
    let view = Some(View::of(snapshot));
    let verifier = Verifier { view, limiter: &limiter, global_policy: &global_policy, now };
    let digest = key_format::hash(number.to_string().as_bytes());
    let request = Verify { credential: Credential::Digest(digest), ..request };
    let mut verdict = None;
    verifier.verify(&[request], |decision| verdict = Some(decision.verdict()));
    verdict.expect("a decision")
}

/// A request without any optional field. [`verdict`] sets the key.
fn plain() -> Verify<'static> {
    Verify::new(1, Credential::Digest([0; 32]))
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[test]
fn keys_have_the_hashes_of_the_vectors() {
    for HashVector { name, key, sha256, .. } in vectors().hashes {
        assert_eq!(key_format::hash(&key.0)[..], sha256.0, "{name}");
    }
}

#[test]
fn peppers_have_the_hashes_of_the_vectors() {
    for PepperVector { name, file, key, hmac, .. } in vectors().peppers {
        let hash = Pepper::new(&file.0).ok().map(|pepper| pepper.hash(&key.0).to_vec());
        assert_eq!(hash, hmac.map(|hmac| hmac.0), "{name}");
    }
}

#[test]
fn minted_keys_have_the_format_of_the_vectors() {
    for MintedKey { name, prefixes, key, format, .. } in vectors().minted_keys {
        let prefixes: Vec<Prefix> = prefixes.iter().map(|text| text.parse().expect("a prefix")).collect();
        let expected = match format.as_str() {
            "valid" => KeyFormat::Valid,
            "malformed" => KeyFormat::Malformed,
            "foreign" => KeyFormat::Foreign,
            other => panic!("{name}: {other}"),
        };
        assert_eq!(key_format::classify(key.as_bytes(), &prefixes), expected, "{name}");
    }
}

#[test]
fn networks_contain_the_addresses_of_the_vectors() {
    let (limiter, vectors) = (Limiter::new(), vectors().networks);
    let lists: Vec<_> = vectors.iter().map(|vector| vector.networks.as_slice()).collect();
    let snapshot = accepted(&limiter, "allowed_ips", &lists);
    for (number, vector) in vectors.iter().enumerate() {
        let inside = vector.contained.iter().map(|ip| (*ip, Verdict::Allowed));
        let outside = vector.not_contained.iter().map(|ip| (*ip, Verdict::IpNotAllowed));
        for (ip, expected) in inside.chain(outside) {
            let request = Verify { ip: Some(mapped(ip)), ..plain() };
            assert_eq!(verdict(&snapshot, number, request), expected, "{}: {ip}", vector.name);
        }
        assert_eq!(verdict(&snapshot, number, plain()), Verdict::IpNotAllowed, "{}", vector.name);
    }
}

#[test]
fn origins_match_those_of_the_vectors() {
    let (limiter, vectors) = (Limiter::new(), vectors().origins);
    let lists: Vec<_> = vectors.iter().map(|vector| vector.origins.as_slice()).collect();
    let snapshot = accepted(&limiter, "allowed_origins", &lists);
    for (number, vector) in vectors.iter().enumerate() {
        let matched = vector.matched.iter().map(|origin| (origin, Verdict::Allowed));
        let others = vector.not_matched.iter().map(|origin| (origin, Verdict::OriginNotAllowed));
        for (origin, expected) in matched.chain(others) {
            let request = Verify { origin: Some(origin), ..plain() };
            assert_eq!(verdict(&snapshot, number, request), expected, "{}: {origin:?}", vector.name);
        }
        assert_eq!(verdict(&snapshot, number, plain()), Verdict::OriginNotAllowed, "{}", vector.name);
    }
}

#[test]
fn keys_have_the_scopes_of_the_vectors() {
    let (limiter, vectors) = (Limiter::new(), vectors().scopes);
    let lists: Vec<_> = vectors.iter().map(|vector| vector.scopes.as_slice()).collect();
    let snapshot = accepted(&limiter, "scopes", &lists);
    for (number, vector) in vectors.iter().enumerate() {
        let has = vector.has.iter().map(|scope| (scope, Verdict::Allowed));
        let lacks = vector.lacks.iter().map(|scope| (scope, Verdict::MissingScope));
        for (names, expected) in has.chain(lacks) {
            for mode in [ScopeMode::All, ScopeMode::Any] {
                let request = Verify { scopes: Some(Scopes { names, mode }), ..plain() };
                assert_eq!(verdict(&snapshot, number, request), expected, "{}: {names:?}", vector.name);
            }
        }
    }
}

#[test]
fn items_that_exports_must_not_contain_are_refused() {
    for RefusedItems { name, field, items } in vectors().not_in_exports {
        for item in items {
            let (_, diagnostics) = snapshot(&Limiter::new(), &field, &[std::slice::from_ref(&item)]);
            assert_eq!(diagnostics.total(), 1, "{name}: {item:?}");
        }
    }
}

/// Every section has a vector, and no two of a section have the same name.
#[test]
fn names_of_vectors_are_unique() {
    let file: Value =
        serde_json::from_str(include_str!("../../protocol/vectors/matching.json")).expect("JSON");
    for (section, vectors) in file.as_object().expect("an object") {
        let names: Vec<_> =
            vectors.as_array().expect("a list").iter().map(|vector| vector["name"].to_string()).collect();
        let unique: std::collections::BTreeSet<_> = names.iter().collect();
        assert!(!names.is_empty() && unique.len() == names.len(), "{section}");
    }
}
