//! The list on disk: a line for each command, synced before the command returns, and written anew when most of the
//! lines have nothing to say any more.
//!
//! A daemon that was killed while it wrote leaves a torn last line behind; its command never returned, and the line is
//! dropped. Anything else that cannot be read keeps the daemon from starting: what it said may have been that a key is
//! revoked, and such a key must not come alive because of a damaged disk or an editor.
//!
//! The file is this daemon's alone. Should somebody else have changed it nevertheless, or a write have failed, it is
//! written anew from memory before the next line is added.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::revocation::list::{Action, Line, List};
use crate::state::{self, FileError, Journal, Rotation};

/// Its name in the state directory.
pub(super) const NAME: &str = "revocations.jsonl";

/// Never: an old file would be one that is not read.
const NO_ROTATION: Rotation = Rotation { max_file_size: u64::MAX, keep: 0 };

/// Lines that say nothing any more, beyond twice those that do, before the file is written anew: seldom enough that a
/// command waits for it once in hundreds of times.
const DEAD_LINES: usize = 1_000;

/// The file.
pub(super) struct File {
    path: PathBuf,
    journal: Journal,
    lines: usize,
    /// How it was left; `None`: what is in it is not known for sure.
    left: Option<Identity>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    dev: u64,
    inode: u64,
    length: u64,
}

/// Why the list cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened, read or mended.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line says nothing that can be understood.
    #[error(
        "{}:{line}: not a revocation: {problem}. The daemon does not start, because a revoked key could come alive: mend the line, \
         or delete it if the key that it names is revoked in the source or may be used",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

impl File {
    /// Opens the file, and reads the list.
    ///
    /// # Errors
    /// When it cannot be read, to the last whole line.
    pub(super) fn open(path: PathBuf) -> Result<(Self, List), OpenError> {
        let content = state::read(&path)?.unwrap_or_default();
        let (list, lines) = replay(&path, &content)?;
        let journal = Journal::open(path.clone(), NO_ROTATION)?.journal;
        let mut file = Self { left: identity(&path), path, journal, lines };
        // Opening a journal cuts an unended line off, which may have counted.
        let is_unended = content.last().is_some_and(|last| *last != b'\n');
        if is_unended || file.is_worn(&list) {
            file.rewrite(&list)?;
        }
        Ok((file, list))
    }

    /// Adds a line, and makes it durable. `list` is the list without it.
    ///
    /// # Errors
    /// When it cannot be written, or not made durable. Then it is not in the file, or, where not even that can be
    /// written, it is taken out before the next line.
    pub(super) fn add(&mut self, line: &Line, list: &List) -> Result<(), FileError> {
        if self.left.is_none() || self.left != identity(&self.path) {
            if self.left.is_some() {
                warn!(file = %self.path.display(), "somebody has changed or moved the file; it is written anew");
            }
            self.rewrite(list)?;
        }
        self.left = None;
        let mut bytes = Vec::new();
        encode(line, &mut bytes).map_err(|error| self.failed("encode a line for", error))?;
        match self.journal.append(&bytes).and_then(|()| self.journal.sync()) {
            Ok(()) => {
                self.left = identity(&self.path);
                self.lines += 1;
                Ok(())
            }
            Err(error) => {
                // It may be there all the same, and must not be: its command has failed.
                let _tried_again_before_the_next_line = self.rewrite(list);
                Err(error)
            }
        }
    }

    /// Whether most of what is in the file says nothing any more.
    pub(super) fn is_worn(&self, list: &List) -> bool {
        self.lines > 2 * list.len() + DEAD_LINES
    }

    /// Writes the list, and nothing else.
    ///
    /// # Errors
    /// When that fails; then the file is as it was.
    pub(super) fn rewrite(&mut self, list: &List) -> Result<(), FileError> {
        state::replace(&self.path, |writer| {
            for (target, record) in list.entries() {
                encode(&Line::new(Action::Revoke, &target, record), writer)?;
            }
            Ok(())
        })?;
        self.left = identity(&self.path);
        self.lines = list.len();
        Ok(())
    }

    fn failed(&self, what: &'static str, error: std::io::Error) -> FileError {
        FileError { path: self.path.clone(), what, error }
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let there = std::fs::symlink_metadata(path).ok()?;
    Some(Identity { dev: there.dev(), inode: there.ino(), length: there.len() })
}

fn encode(line: &Line, writer: &mut impl Write) -> std::io::Result<()> {
    serde_json::to_writer(&mut *writer, line)?;
    writer.write_all(b"\n")
}

/// The list that the lines lead to, and how many there are.
fn replay(path: &Path, content: &[u8]) -> Result<(List, usize), OpenError> {
    let mut lines: Vec<&[u8]> = content.split_inclusive(|byte| *byte == b'\n').collect();
    // The last line may be torn: its command never returned. One that is whole but for its newline counts all the same, because an
    // editor or a copy may have lost that; revoking too much is the safer mistake. A loss of power can leave the end of a
    // write behind without its beginning, which is zeros then.
    let is_torn = |last: &[u8]| {
        last.contains(&0) || (!last.ends_with(b"\n") && serde_json::from_slice::<Line>(last).is_err())
    };
    if lines.last().is_some_and(|last| is_torn(last)) {
        lines.pop();
    }
    let mut list = List::default();
    for (line, number) in lines.iter().zip(1..) {
        let parsed = serde_json::from_slice::<Line>(line).map_err(|error| error.to_string());
        parsed.and_then(|line| line.apply(&mut list)).map_err(|problem| OpenError::Damaged {
            path: path.to_path_buf(),
            line: number,
            problem,
        })?;
    }
    Ok((list, lines.len()))
}
