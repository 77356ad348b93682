//! What the state directory has as last good keys: a small file that names the compiled one, and says where its keys came
//! from and by which configuration they were read.
//!
//! Each block of the compiled file has a checksum of its own; the manifest repeats that of the file's head, which has a random
//! seed, so that neither is taken with another's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::reload::last_good::sealed::{self, SealedError};
use crate::reload::{FileState, SourceFile};
use keyward_engine::rules::{GlobalPolicy, RetainedHashes};
use keyward_state::FileError;

/// The name of the manifest.
pub(super) const MANIFEST: &str = "last_good.json";

/// What compiled files are called, with the generation between the two.
pub(super) const PREFIX: &str = "last_good-";
pub(super) const SUFFIX: &str = ".kwc";

/// Bytes at the beginning of a compiled file that no other has: its header.
const HEAD: usize = 128;

/// Bytes of a digest of the configuration: it is compared with nothing that an attacker chooses.
const FINGERPRINT: usize = 8;

/// The last good keys, as they were accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// The snapshot that they were.
    pub(super) generation: u64,
    /// The compiled file's name, in the same directory.
    pub(super) file: String,
    /// Its length.
    pub(super) bytes: u64,
    /// CRC-32 of its head.
    pub(super) head_crc32: u32,
    /// Keys in it.
    pub(super) keys: usize,
    /// Where they came from.
    pub(super) source: String,
    /// What the source was like.
    pub(super) state: FileState,
    /// Unix second at which the source was written.
    pub(super) written_at: u32,
    /// Unix second at which the keys came into force.
    pub(super) accepted_at: u32,
    /// Digest of how the source was read.
    pub(super) reading: String,
    /// Fingerprints of the peppers that were in force: the current one, then the previous one.
    pub(super) peppers: Vec<String>,
}

impl Manifest {
    /// The manifest in `directory`, if there is one.
    ///
    /// # Errors
    /// When it cannot be read or used.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, SealedError> {
        let path = directory.join(MANIFEST);
        match sealed::read::<Self>(&path)? {
            Some(manifest) if !manifest.names_own_file() => {
                Err(SealedError::Damaged(path.display().to_string()))
            }
            manifest => Ok(manifest),
        }
    }

    /// Replaces the manifest in `directory`, durably.
    ///
    /// # Errors
    /// When it cannot be written; then the one before is there.
    pub(super) fn write(&self, directory: &Path) -> Result<(), FileError> {
        sealed::write(&directory.join(MANIFEST), self)
    }

    /// Nothing leads out of the directory.
    fn names_own_file(&self) -> bool {
        is_own(&self.file) && self.file.ends_with(SUFFIX)
    }

    /// Whether `file` is the one that it names, as far as its length and head tell.
    pub(super) fn names(&self, file: &File) -> io::Result<bool> {
        Ok(file.metadata()?.len() == self.bytes && head_crc32(file)? == self.head_crc32)
    }

    /// Whether a source in the state `state` has these keys if it is read as `reading` says: it need not be compared with them.
    pub(super) fn is_of(&self, state: &FileState, reading: &str) -> bool {
        self.state == *state && self.reading == reading
    }

    /// Which of its hashes are found under the peppers in force.
    pub(super) fn usable_hashes(&self, global_policy: &GlobalPolicy) -> RetainedHashes {
        usable_hashes(&self.peppers, global_policy)
    }
}

/// Which hashes are found under the peppers in force, of those that were made under the peppers with these fingerprints.
pub(super) fn usable_hashes(peppers_then: &[String], global_policy: &GlobalPolicy) -> RetainedHashes {
    let now = peppers(global_policy);
    match peppers_then {
        [] => RetainedHashes { current: now.is_empty(), previous: now.is_empty() },
        [current, previous @ ..] => RetainedHashes {
            current: now.contains(current),
            previous: !now.is_empty() && previous.iter().all(|previous| now.contains(previous)),
        },
    }
}

/// Whether `name` is one of the files that are written here, the unfinished ones included.
pub(super) fn is_own(name: &str) -> bool {
    let number = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.'));
    number.is_some_and(|(number, rest)| {
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) && matches!(rest, "kwc" | "kwc.new")
    })
}

/// CRC-32 of the head of a compiled file.
pub(super) fn head_crc32(file: &File) -> io::Result<u32> {
    let mut head = [0; HEAD];
    file.read_exact_at(&mut head, 0)?;
    Ok(crc32fast::hash(&head))
}

/// A digest of everything but the source's content that decides what rows are read from it. A text differs more often than it must
/// from one version of keyward to the next: then the keys are compared in vain.
pub(in crate::reload) fn reading(source: &SourceFile) -> String {
    let SourceFile { path, format, mapping, on_bad_row, plans: _ } = source;
    let text = format!("{} {path:?} {format:?} {mapping:?} {on_bad_row:?}", env!("CARGO_PKG_VERSION"));
    const_hex::encode(&Sha256::digest(text)[..FINGERPRINT])
}

/// Fingerprints of the peppers in force.
pub(super) fn peppers(global_policy: &GlobalPolicy) -> Vec<String> {
    global_policy.pepper_fingerprints().map(const_hex::encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyward_engine::pepper::{Pepper, Peppers};

    fn manifest(directory: &Path) -> Manifest {
        let file = directory.join("source.csv");
        std::fs::write(&file, "x").expect("writes");
        Manifest {
            generation: 7,
            file: "last_good-7.kwc".to_owned(),
            bytes: 1000,
            head_crc32: 1,
            keys: 3,
            source: "/keys.csv".to_owned(),
            state: FileState::of(&file).expect("a file"),
            written_at: 1_795_255_200,
            accepted_at: 1_795_255_201,
            reading: "0011".to_owned(),
            peppers: Vec::new(),
        }
    }

    #[test]
    fn every_damage_to_the_manifest_is_noticed() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        assert!(matches!(Manifest::read(directory), Ok(None)));
        let manifest = manifest(directory);
        manifest.write(directory).expect("writes");
        assert_eq!(Manifest::read(directory).expect("whole"), Some(manifest.clone()));
        let path = directory.join(MANIFEST);
        let whole = std::fs::read(&path).expect("a file");
        // The newline at the end says nothing.
        for at in 0..whole.len() - 1 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).expect("writes");
            assert!(Manifest::read(directory).is_err(), "{}", String::from_utf8_lossy(&damaged));
            std::fs::write(&path, &whole[..at]).expect("writes");
            assert!(Manifest::read(directory).is_err(), "cut at {at}");
        }
        std::fs::write(&path, "{\"format\":2,\"what\":[]}").expect("writes");
        let error = Manifest::read(directory).expect_err("of the future").to_string();
        assert!(error.ends_with("it is of format 2, and this keyward reads format 1"), "{error}");
        for file in ["../keys.kwc", "/etc/passwd", "keys.kwc", "last_good-.kwc", "last_good-7.kwc.new"] {
            Manifest { file: file.to_owned(), ..manifest.clone() }.write(directory).expect("writes");
            assert!(Manifest::read(directory).is_err(), "{file}");
        }
    }

    #[test]
    fn hashes_are_kept_as_long_as_their_pepper_is_in_force() {
        let global_policy = |peppers: &str| {
            let mut peppers = peppers
                .chars()
                .map(|letter| Pepper::new(letter.to_string().repeat(16).as_bytes()).expect("long enough"));
            let peppers = peppers.next().map(|current| Peppers { current, previous: peppers.next() });
            GlobalPolicy { peppers, ..GlobalPolicy::default() }
        };
        let directory = tempfile::tempdir().expect("a directory");
        for then in ["", "a", "ba"] {
            for now in ["", "a", "b", "ba", "ab", "cb", "ca", "c"] {
                let (then, now) = (global_policy(then), global_policy(now));
                let manifest = Manifest { peppers: peppers(&then), ..manifest(directory.path()) };
                assert_eq!(
                    manifest.usable_hashes(&now),
                    now.retained_hashes(&then),
                    "{:?}",
                    manifest.peppers
                );
            }
        }
    }

    #[test]
    fn only_own_files_are_own() {
        for own in ["last_good-1.kwc", "last_good-18446744073709551615.kwc", "last_good-12.kwc.new"] {
            assert!(is_own(own), "{own}");
        }
        for other in
            ["last_good-.kwc", "last_good-x.kwc", "last_good-1.kwc.old", "keys.kwc", "last_good.json"]
        {
            assert!(!is_own(other), "{other}");
        }
    }
}
