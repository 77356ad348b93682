//! The manifest of the last good keys: a small file that names the compiled file, the source of its
//! keys, and the configuration that they were read by.
//!
//! Each block of the compiled file has its own checksum. The header has a random seed, so its
//! checksum shows whether a compiled file belongs to this manifest.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::reload::FileState;
use crate::reload::last_good::sealed::{self, SealedError};
use keyward_engine::global_policy::{GlobalPolicy, RetainedHashes};
use keyward_state::FileError;

/// The name of the manifest.
pub(super) const MANIFEST: &str = "last_good.json";

/// The names of compiled files are the prefix, the generation, and the suffix.
pub(super) const PREFIX: &str = "last_good-";
pub(super) const SUFFIX: &str = ".kwc";

/// Bytes of a compiled file's header, which identifies the file.
const HEADER_BYTES: usize = 128;

/// Describes the compiled file of the last good keys, and what they were read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// The generation of the snapshot with these keys.
    pub(super) generation: u64,
    /// The name of the compiled file, in the same directory.
    pub(super) file: String,
    /// Its length.
    pub(super) bytes: u64,
    /// CRC-32 of its header.
    pub(super) head_crc32: u32,
    /// The number of keys in it.
    pub(super) keys: usize,
    /// The path of the source.
    pub(super) source: String,
    /// The state of the source.
    pub(super) state: FileState,
    /// Unix second at which the source was written.
    pub(super) written_at: u32,
    /// Unix second at which the keys came into force.
    pub(super) accepted_at: u32,
    /// The [digest of the settings](super::parse_settings) that the source was parsed with.
    pub(super) parse_settings: String,
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
            Some(manifest) if !manifest.has_valid_file_name() => Err(SealedError::Damaged { path }),
            manifest => Ok(manifest),
        }
    }

    /// Replaces the manifest in `directory`, durably.
    ///
    /// # Errors
    /// When it cannot be written; then the previous manifest is still there.
    pub(super) fn write(&self, directory: &Path) -> Result<(), FileError> {
        sealed::write(&directory.join(MANIFEST), self)
    }

    /// A manifest must not lead out of the directory.
    fn has_valid_file_name(&self) -> bool {
        is_compiled_file_name(&self.file) && self.file.ends_with(SUFFIX)
    }

    /// Whether the length and header of `file` are those of the compiled file.
    pub(super) fn describes(&self, file: &File) -> io::Result<bool> {
        Ok(file.metadata()?.len() == self.bytes && header_crc32(file)? == self.head_crc32)
    }

    /// Whether a file in this state, parsed with these settings, has these keys, and so need not be
    /// compared with them.
    pub(super) fn is_of(&self, state: &FileState, parse_settings: &str) -> bool {
        self.state == *state && self.parse_settings == parse_settings
    }

    /// Which of its hashes are still found.
    pub(super) fn retained_hashes(&self, global_policy: &GlobalPolicy) -> RetainedHashes {
        retained_hashes(&self.peppers, global_policy)
    }
}

/// Which hashes that were made under the peppers with the fingerprints `peppers_then` are still
/// found.
pub(super) fn retained_hashes(peppers_then: &[String], global_policy: &GlobalPolicy) -> RetainedHashes {
    let now = pepper_fingerprints(global_policy);
    match peppers_then {
        [] => RetainedHashes { current: now.is_empty(), previous: now.is_empty() },
        [current, previous @ ..] => RetainedHashes {
            current: now.contains(current),
            previous: !now.is_empty() && previous.iter().all(|previous| now.contains(previous)),
        },
    }
}

/// Whether `name` is the name of a compiled file of this directory, finished or not.
pub(super) fn is_compiled_file_name(name: &str) -> bool {
    let number = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.'));
    number.is_some_and(|(number, rest)| {
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) && matches!(rest, "kwc" | "kwc.new")
    })
}

/// CRC-32 of the header of a compiled file.
pub(super) fn header_crc32(file: &File) -> io::Result<u32> {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    Ok(crc32fast::hash(&header))
}

/// Fingerprints of the peppers in force.
pub(super) fn pepper_fingerprints(global_policy: &GlobalPolicy) -> Vec<String> {
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
            parse_settings: "0011".to_owned(),
            peppers: Vec::new(),
        }
    }

    #[test]
    fn damaged_manifest_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        assert!(matches!(Manifest::read(directory), Ok(None)));
        let manifest = manifest(directory);
        manifest.write(directory).expect("writes");
        assert_eq!(Manifest::read(directory).expect("whole"), Some(manifest.clone()));
        let path = directory.join(MANIFEST);
        let whole = std::fs::read(&path).expect("a file");
        // The newline at the end is not part of the content.
        for at in 0..whole.len() - 1 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).expect("writes");
            assert!(Manifest::read(directory).is_err(), "{}", String::from_utf8_lossy(&damaged));
            std::fs::write(&path, &whole[..at]).expect("writes");
            assert!(Manifest::read(directory).is_err(), "cut at {at}");
        }
        std::fs::write(&path, "{\"format\":2,\"what\":[]}").expect("writes");
        let error = Manifest::read(directory).expect_err("a later format").to_string();
        assert!(error.ends_with("it is of format 2, and this keyward reads format 1"), "{error}");
        for file in ["../keys.kwc", "/etc/passwd", "keys.kwc", "last_good-.kwc", "last_good-7.kwc.new"] {
            Manifest { file: file.to_owned(), ..manifest.clone() }.write(directory).expect("writes");
            assert!(Manifest::read(directory).is_err(), "{file}");
        }
    }

    #[test]
    fn hashes_are_retained_while_their_pepper_is_in_force() {
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
                let manifest = Manifest { peppers: pepper_fingerprints(&then), ..manifest(directory.path()) };
                assert_eq!(
                    manifest.retained_hashes(&now),
                    now.retained_hashes(&then),
                    "{:?}",
                    manifest.peppers
                );
            }
        }
    }

    #[test]
    fn only_compiled_files_of_the_directory_are_own() {
        for own in ["last_good-1.kwc", "last_good-18446744073709551615.kwc", "last_good-12.kwc.new"] {
            assert!(is_compiled_file_name(own), "{own}");
        }
        for other in
            ["last_good-.kwc", "last_good-x.kwc", "last_good-1.kwc.old", "keys.kwc", "last_good.json"]
        {
            assert!(!is_compiled_file_name(other), "{other}");
        }
    }
}
