//! Compiled snapshots through a daemon: served, reloaded, and refused where they are not whole.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Daemon, RawClient, Received, Setup, keyward, sha256_hex};
use keyward_client::Request;
use keyward_protocol::{Credential, Refund, Verify};
use sha2::{Digest, Sha256};

fn export(keys: &[&str]) -> String {
    let rows: String = keys.iter().map(|key| format!("{},id-{key},acme,pro\n", sha256_hex(key))).collect();
    format!("key_hash,key_id,owner,plan\n{rows}")
}

/// Compiles `export` into `file`.
fn compile(export: &str, directory: &Path, file: &Path) {
    let source = directory.join("export.csv");
    fs::write(&source, export).expect("writes");
    let mut command: Command = keyward();
    let output = command.arg("compile").arg(&source).arg("--output").arg(file).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_compiled_snapshot_is_served_and_reloaded_and_a_damaged_one_changes_nothing() {
    let setup = Setup::without_export();
    let (source, directory) = (setup.path("keys.kwc"), setup.dir.path().to_owned());
    let path = format!("source.path = '{}'", source.display());
    let setup = setup.config(&path).config("[plans.pro]\ndaily = \"7/d\"");
    compile(&export(&["a", "b", "c"]), &directory, &source);
    let daemon = setup.start();
    assert_eq!(
        ["a", "b", "c", "d"].map(|key| daemon.verdict(key)),
        ["ALLOWED", "ALLOWED", "ALLOWED", "UNKNOWN_KEY"]
    );

    // Not by the watch: the reload that is asked for is the one that is looked at.
    compile(&export(&["a", "b", "d"]), &directory, &source);
    let reload = daemon.reload();
    assert!(reload.accepted, "{:?}", reload.error);
    assert_eq!(
        ["a", "b", "c", "d"].map(|key| daemon.verdict(key)),
        ["ALLOWED", "ALLOWED", "UNKNOWN_KEY", "ALLOWED"]
    );
    let decision = daemon.client().verify(&Request::new("a")).expect("an answer");
    let limit = decision.limit().map(|limit| (limit.name, limit.limit, limit.remaining));
    assert_eq!(limit, Some(("daily", 7, 4)), "the daemon's own plan, and one bucket through the reload");

    let mut bytes = fs::read(&source).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&source, bytes).expect("writes");
    let refused = daemon.reload();
    let error = refused.error.expect("a reason");
    assert!(!refused.accepted && error.contains("the checksum is wrong"), "{error}");
    assert_eq!(["a", "c", "d"].map(|key| daemon.verdict(key)), ["ALLOWED", "UNKNOWN_KEY", "ALLOWED"]);
}

/// Where a compiled file has the seed of its table's hashes.
const SEED: std::ops::Range<usize> = 16..24;

/// Other digests with the same 64-bit hash under `seed`. A hash is made of two products, whose
/// factors can be exchanged. The tests of `src/engine/snapshot` assert that these digests collide.
fn forgeries(digest: [u8; 32], seed: u64) -> [[u8; 32]; 3] {
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

fn hear(peer: &mut RawClient) -> &'static str {
    match peer.receive() {
        Received::Answer { verdict, .. } => verdict,
        other => panic!("{other:?} instead of an answer"),
    }
}

/// Asks for each credential in an ordinary VERIFY, in one that also asks for metadata, and in a
/// REFUND: each frame alone, and all of them in one write.
fn verdicts(daemon: &Daemon, credentials: &[Credential<'_>]) -> Vec<&'static str> {
    let mut peer = daemon.connect();
    let mut frames = Vec::new();
    for credential in credentials {
        let plain = Verify::new(1, *credential);
        let mut forms = [Vec::new(), Vec::new(), Vec::new()];
        plain.encode(&mut forms[0]).expect("within all limits");
        Verify { want_metadata: true, ..plain }.encode(&mut forms[1]).expect("within all limits");
        let refund = Refund { request_id: 1, cost: 1, credential: *credential, limit: None };
        refund.encode(&mut forms[2]).expect("within all limits");
        frames.extend(forms);
    }
    let mut alone = Vec::new();
    for frame in &frames {
        peer.send(frame);
        alone.push(hear(&mut peer));
    }
    peer.send(&frames.concat());
    let together: Vec<_> = frames.iter().map(|_| hear(&mut peer)).collect();
    assert_eq!(alone, together);
    let of_credential = alone.chunks_exact(3).map(|forms| {
        assert!(forms.iter().all(|verdict| *verdict == forms[0]), "{forms:?}");
        forms[0]
    });
    of_credential.collect()
}

/// The file holds the seed, so a reader of the file can make digests that collide with its keys'.
#[test]
fn digest_that_collides_with_a_listed_one_under_the_seed_of_the_file_is_unknown() {
    let setup = Setup::without_export();
    let (source, directory) = (setup.path("keys.kwc"), setup.dir.path().to_owned());
    let setup = setup.config(&format!("source.path = '{}'", source.display()));
    let keys: Vec<String> = (0..20).map(|number| format!("key-{number}")).collect();
    let listed: Vec<[u8; 32]> = keys.iter().map(|key| Sha256::digest(key).into()).collect();
    compile(&export(&keys.iter().map(String::as_str).collect::<Vec<_>>()), &directory, &source);
    let seed_of = |file: &Path| {
        let file = fs::read(file).expect("reads");
        u64::from_le_bytes(file[SEED].try_into().expect("eight bytes"))
    };
    let seed = seed_of(&source);
    let daemon = setup.config("[plans.pro]\ndaily = \"7000/d\"").start();
    for (digest, key) in listed.iter().zip(&keys) {
        let asked = [&[*digest][..], &forgeries(*digest, seed)].concat();
        let asked: Vec<_> = asked.into_iter().map(Credential::Digest).collect();
        let expected = ["ALLOWED", "UNKNOWN_KEY", "UNKNOWN_KEY", "UNKNOWN_KEY"];
        assert_eq!(verdicts(&daemon, &asked), expected);
        assert_eq!(verdicts(&daemon, &[Credential::RawKey(key.as_bytes())]), ["ALLOWED"]);
    }
}
