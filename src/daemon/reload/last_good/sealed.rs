//! Small files of the state directory that are believed as a whole or not at all.
//!
//! ```text
//! {"format":1,"crc32":3735928559,"content":{…}}
//! ```
//!
//! The checksum is of the text of `content`.

use std::io::Write;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use keyward_state::{self as state, FileError};

/// Increased by every change of a content's fields.
const FORMAT: u32 = 1;

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealedError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not what was written.
    #[error("{0}: it is damaged")]
    Damaged(String),
    /// Another version of keyward wrote it.
    #[error("{path}: it is of format {format}, and this keyward reads format {FORMAT}")]
    Format {
        /// The file.
        path: String,
        /// Its format.
        format: u32,
    },
}

#[derive(Serialize, Deserialize)]
struct Sealed<'t> {
    format: u32,
    crc32: u32,
    #[serde(borrow)]
    content: &'t RawValue,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// What the file at `path` holds, if there is one.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, SealedError> {
    let Some(bytes) = state::read(path)? else { return Ok(None) };
    let shown = || path.display().to_string();
    match serde_json::from_slice::<Format>(&bytes) {
        Ok(Format { format }) if format != FORMAT => {
            return Err(SealedError::Format { path: shown(), format });
        }
        _ => {}
    }
    let whole = serde_json::from_slice::<Sealed<'_>>(&bytes)
        .ok()
        .filter(|sealed| sealed.crc32 == crc32fast::hash(sealed.content.get().as_bytes()))
        .and_then(|sealed| serde_json::from_str(sealed.content.get()).ok());
    whole.map(Some).ok_or_else(|| SealedError::Damaged(shown()))
}

/// Replaces the file at `path`, durably. If it cannot be written, the one before is there.
pub(super) fn write<T: Serialize>(path: &Path, content: &T) -> Result<(), FileError> {
    state::replace(path, |file| {
        let content = serde_json::value::to_raw_value(content)?;
        let crc32 = crc32fast::hash(content.get().as_bytes());
        serde_json::to_writer(&mut *file, &Sealed { format: FORMAT, crc32, content: &content })?;
        file.write_all(b"\n")
    })
}
