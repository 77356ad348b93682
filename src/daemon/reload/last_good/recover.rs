//! Reads the last good keys from a state directory.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::StoredKeys;
use super::accepted::{ACCEPTED_FILE, AcceptedSource};
use super::manifest::Manifest;
use super::sealed::SealedError;
use crate::reload::memory_limits::MemoryLimits;
use crate::reload::read::SourceReader;
use crate::reload::{BadRowPolicy, FileState, ReloadError, SourceFile};
use keyward_engine::global_policy::{GlobalPolicy, RetainedHashes};
use keyward_engine::record::Plans;
use keyward_engine::snapshot::{CompareOptions, Diff, KeyTable, compiled};
use keyward_source::{ColumnMapping, Format};
use keyward_state as state;

/// Attempts to open the file that the manifest names.
const ATTEMPTS: u32 = 5;

/// The last good keys, ready to be served.
pub struct Recovered {
    /// The keys, with the plans of the current configuration.
    pub keys: KeyTable,
    /// What is stored about them.
    pub stored: StoredKeys,
    /// Set if these keys are compared with a source, but not served in its place: a source that was
    /// accepted later took access away, or it is not known whether one did.
    pub superseded: Option<Superseded>,
    pub(super) manifest: Manifest,
}

/// Keys that are compared with a source, but not served in its place.
pub struct Superseded {
    /// Why they are not served.
    pub error: Arc<RecoverError>,
    /// The source that was accepted later, if its record can be read.
    accepted: Option<AcceptedSource>,
}

impl Recovered {
    /// Refuses the source at `path` in the state `state`, which differs from these keys by `diff`, if
    /// it is an earlier one than the source that was accepted last, and that one took access away.
    ///
    /// # Errors
    /// [`ReloadError::EarlierSource`], if so.
    pub fn guard_earlier_source(
        &self,
        path: &Path,
        diff: &Diff,
        state: &FileState,
    ) -> Result<(), ReloadError> {
        let Some(Superseded { accepted, .. }) = &self.superseded else { return Ok(()) };
        let is_older = accepted.as_ref().is_some_and(|accepted| accepted.is_newer_than(state));
        if diff.is_unchanged() || is_older {
            return Err(ReloadError::EarlierSource { path: path.to_path_buf() });
        }
        Ok(())
    }
}

/// Why last good keys cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] SealedError),
    /// The compiled file cannot be opened.
    #[error("{}: {error}", path.display())]
    Io {
        /// The path of the compiled file.
        path: PathBuf,
        /// The system's error.
        #[source]
        error: io::Error,
    },
    /// The compiled file is not the one that the manifest describes.
    #[error("{}: {problem}; it is damaged", path.display())]
    Mismatch {
        /// The path of the compiled file.
        path: PathBuf,
        /// How it differs.
        problem: &'static str,
    },
    /// The compiled file cannot be read.
    #[error(transparent)]
    Load(ReloadError),
    /// The pepper that was current when they were accepted is no longer in force, or there was none
    /// and there is one now.
    #[error(
        "no request would find them: they were hashed with a pepper other than the one in keys.pepper_file, or without a \
         pepper. If they had a pepper, name its file in keys.previous_pepper_file; otherwise correct the source"
    )]
    OtherPepper,
    /// What refused sources have taken away from them is not known.
    #[error(
        "refused sources may have disabled some of the last good keys, and the list of those cannot be read: {0}. To serve \
         all of them, remove that file; keys that were taken away work again then"
    )]
    Takeaways(#[source] SealedError),
    /// They were stored, and are gone.
    #[error("they were stored, and are gone: {} says so", record.display())]
    Missing {
        /// The path of the record of the accepted source.
        record: PathBuf,
    },
    /// A source that was accepted later took access away, and its keys were not stored in time.
    #[error(
        "they are older than the source that was accepted last, which took access away from some of them: the daemon ended \
         before it had stored the keys of that source. Correct the source; to serve the older keys instead, remove {}: \
         what was taken away works again then", record.display()
    )]
    Superseded {
        /// The path of the record of that source.
        record: PathBuf,
    },
    /// Whether such a source was accepted is not known.
    #[error(
        "a source that was accepted after them may have taken access away from some of them, and its record cannot be \
         read: {0}. Correct the source; to serve the older keys instead, remove that file"
    )]
    AcceptedSource(#[source] SealedError),
    /// The keys cannot be put into force.
    #[error(transparent)]
    Swap(ReloadError),
}

impl RecoverError {
    /// A code for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Manifest(SealedError::File(_)) => "unreadable",
            Self::Manifest(SealedError::Damaged { .. }) => "damaged",
            Self::Manifest(SealedError::Format { .. }) => "format",
            Self::Load(ReloadError::Compiled { error: compiled::ReadError::Version(_), .. }) => "format",
            // A file that was valid when it was written contradicts the current plans.
            Self::Load(ReloadError::Compiled { error: compiled::ReadError::Row { .. }, .. }) => "plans",
            Self::Io { .. } | Self::Mismatch { .. } | Self::Load(_) => "damaged",
            Self::OtherPepper => "pepper",
            Self::Takeaways(_) => "takeaways",
            Self::Superseded { .. } | Self::AcceptedSource(_) => "superseded",
            Self::Missing { .. } => "missing",
            Self::Swap(error) => error.kind(),
        }
    }

    /// Whether a source that should be compared with them is refused. Another version of keyward and
    /// other plans are decisions of an operator; damage and a failing disk are not.
    pub fn prevents_comparison(&self) -> bool {
        !matches!(
            self,
            Self::Manifest(SealedError::Format { .. })
                | Self::Load(ReloadError::Compiled {
                    error: compiled::ReadError::Version(_) | compiled::ReadError::Row { .. },
                    ..
                })
        )
    }

    /// Whether this user may not read them.
    pub fn is_permission_denied(&self) -> bool {
        let error = match self {
            Self::Manifest(SealedError::File(error)) => &error.error,
            Self::Io { error, .. } | Self::Load(ReloadError::Io { error, .. }) => error,
            _ => return false,
        };
        error.kind() == io::ErrorKind::PermissionDenied
    }

    /// Whether the next attempt may succeed with the same files.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Manifest(error) | Self::Takeaways(error) | Self::AcceptedSource(error) => {
                matches!(error, SealedError::File(_))
            }
            Self::Io { error, .. } => error.kind() != io::ErrorKind::NotFound,
            Self::Load(error) | Self::Swap(error) => error.is_transient(),
            Self::Mismatch { .. } | Self::OtherPepper | Self::Missing { .. } | Self::Superseded { .. } => {
                false
            }
        }
    }
}

/// The last good keys in `directory`, with the plans of `source`; `None` if none have been stored.
/// Takes no lock, so it does not disturb a daemon that uses the directory.
///
/// # Errors
/// When there are last good keys that cannot be used, or they are gone.
pub fn recover(directory: &Path, source: &SourceFile) -> Result<Option<Recovered>, RecoverError> {
    let accepted = AcceptedSource::read(directory);
    let record = || directory.join(ACCEPTED_FILE);
    let Some((manifest, path, file)) = open(directory)? else {
        return match accepted {
            Ok(Some(accepted)) if accepted.has_stored => Err(RecoverError::Missing { record: record() }),
            Ok(_) => Ok(None),
            Err(error) => Err(RecoverError::AcceptedSource(error)),
        };
    };
    let keys = read(&path, &file, &manifest, Arc::clone(&source.plans))?;
    let superseded = match accepted {
        Ok(Some(accepted)) if accepted.takes_away_since(manifest.generation) => Some(Superseded {
            error: Arc::new(RecoverError::Superseded { record: record() }),
            accepted: Some(accepted),
        }),
        Ok(_) => None,
        Err(error) => {
            Some(Superseded { error: Arc::new(RecoverError::AcceptedSource(error)), accepted: None })
        }
    };
    Ok(Some(Recovered { keys, stored: StoredKeys::from(&manifest), superseded, manifest }))
}

/// Opens the file that the manifest names. A daemon that uses the directory may replace the
/// manifest and remove that file in between. Then the new manifest is read.
fn open(directory: &Path) -> Result<Option<(Manifest, PathBuf, File)>, RecoverError> {
    let mut attempt = 1;
    loop {
        let Some(manifest) = Manifest::read(directory)? else { return Ok(None) };
        let path = directory.join(&manifest.file);
        match state::open_to_read(&path) {
            Ok(file) => return Ok(Some((manifest, path, file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(RecoverError::Io { path, error }),
        }
    }
}

/// Reads the keys from `file`, if it is the one that `manifest` describes.
fn read(path: &Path, file: &File, manifest: &Manifest, plans: Arc<Plans>) -> Result<KeyTable, RecoverError> {
    let mismatch = |problem| RecoverError::Mismatch { path: path.to_path_buf(), problem };
    let is_named =
        manifest.describes(file).map_err(|error| RecoverError::Io { path: path.to_path_buf(), error })?;
    if !is_named {
        return Err(mismatch("it is not the file that was written"));
    }
    let origin = SourceFile {
        path: path.into(),
        format: Format::Compiled,
        mapping: ColumnMapping::default(),
        plans,
        on_bad_row: BadRowPolicy::Refuse,
    };
    let reader = SourceReader {
        origin: &origin,
        file,
        size: manifest.bytes,
        // A compiled file has its own seed.
        seed: 0,
        limits: MemoryLimits::new(),
    };
    let parsed = reader.read(None, &mut |_| {}).map_err(RecoverError::Load)?;
    if parsed.builder.len() != manifest.keys {
        return Err(mismatch("it does not have as many keys as were written"));
    }
    Ok(parsed.builder.finish())
}

impl Recovered {
    /// Which of the hashes are found under `global_policy`.
    pub fn retained_hashes(&self, global_policy: &GlobalPolicy) -> RetainedHashes {
        self.manifest.retained_hashes(global_policy)
    }

    /// Whether they were accepted with a pepper.
    pub(in crate::reload) fn had_pepper(&self) -> bool {
        !self.manifest.peppers.is_empty()
    }

    /// How a source that is read under `global_policy` is compared with these keys, at the Unix
    /// second `now`.
    pub fn compare_options(&self, global_policy: &GlobalPolicy, now: u32) -> CompareOptions {
        let retained = self.retained_hashes(global_policy);
        // The same as `GlobalPolicy::may_rehash`, for which the manifest has too little of the
        // earlier policy. If that policy had two peppers, then either both are in force now, or
        // not all hashes are retained.
        let may_rehash =
            global_policy.previous_pepper().is_some() || !(retained.current && retained.previous);
        CompareOptions { now, by_key_id: may_rehash }
    }
}
