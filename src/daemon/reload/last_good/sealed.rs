//! Small files of the state directory with a checksum, which are used as a whole or not at all.
//!
//! ```text
//! {"format":1,"crc32":3735928559,"content":{…}}
//! ```
//!
//! The checksum covers the text of `content`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use keyward_state::{self as state, FileError};

/// Maximum length of a content, and of the file: longer contents are not written. Takeaways from
/// the maximum number of keys have 15 MB, and those of earlier snapshots may be in the same file.
const MAX_BYTES: usize = 256 << 20;
/// The rest of the file.
const MAX_FRAME: usize = 64;

/// Incremented with every change of a content's fields.
const FORMAT: u32 = 1;

/// Why a sealed file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its content does not match its checksum.
    #[error("{}: it is damaged", path.display())]
    Damaged {
        /// The path of the sealed file.
        path: PathBuf,
    },
    /// Another version of keyward wrote it.
    #[error("{}: it is of format {format}, and this keyward reads format {FORMAT}", path.display())]
    Format {
        /// The path of the sealed file.
        path: PathBuf,
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

/// The content of the file at `path`, if there is one.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, SealedError> {
    let Some(bytes) = state::read(path, MAX_BYTES as u64)? else { return Ok(None) };
    if let Ok(Format { format }) = serde_json::from_slice(&bytes)
        && format != FORMAT
    {
        return Err(SealedError::Format { path: path.to_path_buf(), format });
    }
    let content = serde_json::from_slice::<Sealed<'_>>(&bytes)
        .ok()
        .filter(|sealed| sealed.crc32 == crc32fast::hash(sealed.content.get().as_bytes()))
        .and_then(|sealed| serde_json::from_str(sealed.content.get()).ok());
    content.map(Some).ok_or_else(|| SealedError::Damaged { path: path.to_path_buf() })
}

/// Replaces the file at `path`, durably. If that fails, the previous file is still there.
pub(super) fn write<T: Serialize>(path: &Path, content: &T) -> Result<(), FileError> {
    state::replace(path, |file| {
        let content = serde_json::value::to_raw_value(content)?;
        if content.get().len() > MAX_BYTES - MAX_FRAME {
            return Err(io::Error::other(format!("it would be larger than {MAX_BYTES} bytes")));
        }
        let crc32 = crc32fast::hash(content.get().as_bytes());
        serde_json::to_writer(&mut *file, &Sealed { format: FORMAT, crc32, content: &content })?;
        file.write_all(b"\n")
    })
}
