//! Compiled snapshots in a daemon: they are served and reloaded, and refused if they are damaged.

use std::collections::HashSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::support::{Daemon, Export, RawClient, Received, Setup, replace_export, row};
use keyward_client::Request;
use keyward_protocol::{Credential, Refund, Verify};
use sha2::{Digest, Sha256};

fn export(keys: impl IntoIterator<Item = impl Into<String>>) -> Export {
    Export::new(keys.into_iter().map(|key| row(key).owner("acme").plan("pro")))
}

#[test]
fn damaged_compiled_snapshot_is_refused_and_the_old_one_stays() {
    let setup = Setup::without_export();
    let source = setup.path("keys.kwc");
    let path = format!("source.path = '{}'", source.display());
    let setup = setup.config(&path).config("[plans.pro]\ndaily = \"7/d\"");
    replace_export(&source, export(["a", "b", "c"]));
    let daemon = setup.start();
    let all = ["a", "b", "c", "d"];
    assert_eq!(daemon.verdicts(all), ["ALLOWED", "ALLOWED", "ALLOWED", "UNKNOWN_KEY"]);

    replace_export(&source, export(["a", "b", "d"]));
    let reload = daemon.reload();
    assert!(reload.accepted, "{:?}", reload.error);
    assert_eq!(daemon.verdicts(all), ["ALLOWED", "ALLOWED", "UNKNOWN_KEY", "ALLOWED"]);
    let decision = daemon.client().verify(&Request::new("a")).expect("an answer");
    let limit = decision.limit().map(|limit| (limit.name, limit.limit, limit.remaining));
    assert_eq!(limit, Some(("daily", 7, 4)), "the daemon's own plan, with one bucket over the reload");

    let mut bytes = fs::read(&source).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&source, bytes).expect("writes");
    let refused = daemon.reload();
    let error = refused.error.expect("a reason");
    assert!(!refused.accepted && error.contains("the checksum is wrong"), "{error}");
    assert_eq!(daemon.verdicts(["a", "c", "d"]), ["ALLOWED", "UNKNOWN_KEY", "ALLOWED"]);
}

/// The bytes of a compiled file that contain the seed of its hash table.
const SEED: Range<usize> = 16..24;

/// Other digests with the same 64-bit hash under `seed`. A hash consists of two products, whose
/// factors can be exchanged. The tests of `src/engine/snapshot` assert that these digests collide.
fn colliding_digests(digest: [u8; 32], seed: u64) -> [[u8; 32]; 3] {
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    let exchanged = |digest: [u8; 32], first: usize, mask: u64| {
        let word = |at: usize| u64::from_le_bytes(digest[at..at + 8].try_into().expect("eight bytes"));
        let mut forged = digest;
        forged[first..first + 8].copy_from_slice(&(word(first + 8) ^ mask).to_le_bytes());
        forged[first + 8..first + 16].copy_from_slice(&(word(first) ^ mask).to_le_bytes());
        forged
    };
    let [low, high] = [seed ^ seed.rotate_left(17) ^ MIX, seed.rotate_left(31) ^ seed.rotate_left(47) ^ MIX];
    let first = exchanged(digest, 0, low);
    [first, exchanged(digest, 16, high), exchanged(first, 16, high)]
}

fn receive_verdict(peer: &mut RawClient) -> &'static str {
    match peer.receive() {
        Received::Answer { verdict, .. } => verdict,
        other => panic!("not an ANSWER: {other:?}"),
    }
}

/// The verdict on each credential. It must be the same in a VERIFY, in a VERIFY that requests
/// metadata, and in a REFUND, sent one by one and in a single write.
fn verdicts(daemon: &Daemon, credentials: &[Credential<'_>]) -> Vec<&'static str> {
    let mut peer = daemon.connect();
    let mut frames = Vec::new();
    for credential in credentials {
        let plain = Verify::new(1, *credential);
        let mut requests = [Vec::new(), Vec::new(), Vec::new()];
        plain.encode(&mut requests[0]).expect("within all limits");
        Verify { want_metadata: true, ..plain }.encode(&mut requests[1]).expect("within all limits");
        let refund = Refund::new(1, 1, *credential);
        refund.encode(&mut requests[2]).expect("within all limits");
        frames.extend(requests);
    }
    let mut alone = Vec::new();
    for frame in &frames {
        peer.send(frame);
        alone.push(receive_verdict(&mut peer));
    }
    peer.send(&frames.concat());
    let together: Vec<_> = frames.iter().map(|_| receive_verdict(&mut peer)).collect();
    assert_eq!(alone, together);
    let per_credential = alone.chunks_exact(3).map(|verdicts| {
        assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "{verdicts:?}");
        verdicts[0]
    });
    per_credential.collect()
}

/// The seed of a compiled file.
fn seed(path: &Path) -> u64 {
    u64::from_le_bytes(fs::read(path).expect("reads")[SEED].try_into().expect("eight bytes"))
}

/// A client that knows the seed of one table must not know that of the next one.
#[test]
fn every_load_and_every_compilation_has_its_own_seed() {
    let daemon = Daemon::serving_text(export(["a"]));
    let stored = || {
        daemon.wait_until_saved();
        let files = fs::read_dir(daemon.setup.dir.path()).expect("lists").flatten();
        let mut paths = files.map(|file| file.path());
        // The keys in force, as they were loaded. The other file with this beginning is a manifest.
        let is_table = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("last_good-")
        };
        seed(&paths.find(is_table).expect("the last good keys"))
    };
    let mut seeds = vec![stored()];
    for key in ["b", "c"] {
        assert!(daemon.publish(export(["a", key])).accepted);
        seeds.push(stored());
    }
    for name in ["one.kwc", "two.kwc"] {
        let path = daemon.setup.path(name);
        replace_export(&path, export(["a"]));
        seeds.push(seed(&path));
    }
    let distinct: HashSet<u64> = seeds.iter().copied().collect();
    assert_eq!(distinct.len(), seeds.len(), "{seeds:?}");
}

/// The file contains the seed, so a reader of the file can construct colliding digests.
#[test]
fn digest_that_collides_with_a_listed_one_is_unknown() {
    let setup = Setup::without_export();
    let source = setup.path("keys.kwc");
    let setup = setup.config(&format!("source.path = '{}'", source.display()));
    let keys: Vec<String> = (0..20).map(|number| format!("key-{number}")).collect();
    let listed: Vec<[u8; 32]> = keys.iter().map(|key| Sha256::digest(key).into()).collect();
    replace_export(&source, export(&keys));
    let seed = seed(&source);
    let daemon = setup.config("[plans.pro]\ndaily = \"7000/d\"").start();
    for (digest, key) in listed.iter().zip(&keys) {
        let digests = [&[*digest][..], &colliding_digests(*digest, seed)].concat();
        let credentials: Vec<_> = digests.into_iter().map(Credential::Digest).collect();
        let expected = ["ALLOWED", "UNKNOWN_KEY", "UNKNOWN_KEY", "UNKNOWN_KEY"];
        assert_eq!(verdicts(&daemon, &credentials), expected);
        assert_eq!(verdicts(&daemon, &[Credential::RawKey(key.as_bytes())]), ["ALLOWED"]);
    }
}
