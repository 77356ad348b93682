//! Reading the list at the start, and finding out whether all of it is there.
//!
//! A revocation that is lost is a key that comes alive, so the daemon does not start with a list that is known or suspected
//! to be incomplete, until an operator accepts that: one that is missing where the directory has other state of a daemon,
//! empty, older than its [high-water mark](super::watermark), of another daemon, or damaged. What a crash leaves behind is
//! none of these: the mark is written after the list, and a torn last line is one that no command has returned for.

use std::path::{Path, PathBuf};

use super::file;
use super::line::{FORMAT, Header, Line};
use super::list::List;
use super::watermark::{self, Found, Mark};
use keyward_state::{self as state, Acceptance, AcceptanceRecord, FileError, StateDir};

/// Why the daemon does not start with the list of revocations.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be opened, read or mended.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line says nothing that can be understood.
    #[error(
        "{}:{line}: not a revocation: {problem}. The daemon does not start, because a revoked key could come alive: mend the line; \
         {HOW_TO_ACCEPT}",
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
    /// Revocations are missing.
    #[error(
        "{}: {problem}. The daemon does not start, because a revoked key could come alive: restore the file with \
         revocations.seq beside it; {HOW_TO_ACCEPT}",
        path.display()
    )]
    Lost {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
}

/// Largest number of a line. No list comes near it, and sums with numbers up to it do not overflow.
const MAX_SEQ: u64 = u64::MAX / 2;

/// Completes an [`LoadError`].
const HOW_TO_ACCEPT: &str = "or, to go on with the revocations that are left, run once: keyward state accept \
                             lost-revocations (with the daemon's --config or --state-dir), and start again";

impl LoadError {
    /// Whether it is about what the files say, rather than about the system: starting again does not help.
    pub fn is_about_content(&self) -> bool {
        !matches!(self, Self::File(_))
    }
}

/// The list, as it was found.
pub(super) struct Replayed {
    pub(super) list: List,
    /// The list's id; `None`: it has to get one, and be written anew.
    pub(super) id: Option<String>,
    /// The number of the last line.
    pub(super) seq: u64,
    /// Lines after the header.
    pub(super) lines: usize,
    /// The file ends in something that counts for nothing, or lacks a newline.
    pub(super) is_unended: bool,
    pub(super) mark: Option<Mark>,
    /// A loss that an operator has accepted.
    pub(super) accepted: Option<(AcceptanceRecord, LoadError)>,
}

/// Reads the list in `directory`. An acceptance is taken, needed or not.
///
/// # Errors
/// See [`LoadError`].
pub(super) fn replay(directory: &StateDir) -> Result<Replayed, LoadError> {
    let path = directory.path(file::NAME);
    let content = state::read(&path)?;
    let found = watermark::read(&directory.path(watermark::NAME))?;
    let read = Read::new(&path, content.as_deref());
    let problem = read.damage.or_else(|| {
        let problem = loss(directory, content.as_deref(), read.header.as_ref(), read.seq, &found);
        let problem = problem.or(read.gap);
        problem.map(|problem| LoadError::Lost { path, problem })
    });
    let acceptance = directory.take_acceptance(Acceptance::LostRevocations)?;
    let accepted = match (problem, acceptance) {
        (None, None) => None,
        (None, Some(AcceptanceRecord { by_uid, at })) => {
            tracing::info!(by_uid, %at, "the list of revocations is complete: nothing was lost that had to be accepted");
            None
        }
        (Some(problem), None) => return Err(problem),
        (Some(problem), Some(accepted)) => Some((accepted, problem)),
    };
    let mark = if let Found::Mark(mark) = found { Some(mark) } else { None };
    // A list that has lost something gets another id: what has been lost must not come back in the place of what follows.
    let id = read.header.map(|header| header.list).filter(|_| accepted.is_none());
    let (list, seq, lines, is_unended) = (read.list, read.seq, read.lines, read.is_unended);
    Ok(Replayed { list, id, seq, lines, is_unended, mark, accepted })
}

/// What shows that revocations are missing.
fn loss(
    directory: &StateDir,
    content: Option<&[u8]>,
    header: Option<&Header>,
    seq: u64,
    found: &Found,
) -> Option<String> {
    match (content, header, found) {
        (_, _, Found::Damaged(problem)) => Some(format!(
            "whether it is complete cannot be told, because {} is damaged: {problem}",
            watermark::NAME
        )),
        (_, Some(header), Found::Mark(mark)) if header.list != mark.list => {
            Some("it is not the list that this state directory had before".to_owned())
        }
        (_, Some(_), Found::Mark(mark)) if seq < mark.seq => Some(format!(
            "it ends with change {seq} of {}: it was truncated, or replaced by an older copy",
            mark.seq
        )),
        (_, Some(_), Found::Nothing) => {
            Some(format!("whether it is complete cannot be told, because {} is missing", watermark::NAME))
        }
        (_, Some(_), Found::Mark(_)) => None,
        // The mark comes first where a list is begun; until the list is there, nothing can be on it.
        (_, None, Found::Mark(Mark { seq: 0, .. })) => None,
        (Some([]), None, Found::Mark(mark)) => {
            Some(format!("it is empty, and {} changes had been written to it", mark.seq))
        }
        (None, None, Found::Mark(mark)) => {
            Some(format!("it is missing, and {} changes had been written to it", mark.seq))
        }
        (Some(_), None, Found::Mark(_)) => {
            Some("it has no header: an older copy, or a part of the list, has taken its place".to_owned())
        }
        // A list of an earlier version, which had neither header nor mark.
        (Some(_), None, Found::Nothing) => None,
        (None, None, Found::Nothing) => directory
            .first_state_file()
            .map(|other| format!("it is missing, and the state directory is not new: {other} is there")),
    }
}

/// What the lines come to.
struct Read {
    header: Option<Header>,
    list: List,
    seq: u64,
    lines: usize,
    is_unended: bool,
    /// The first line that cannot be understood. Where it is accepted, lines that cannot be parsed count for nothing.
    damage: Option<LoadError>,
    /// A line whose number does not follow.
    gap: Option<String>,
}

impl Read {
    fn new(path: &Path, content: Option<&[u8]>) -> Self {
        let content = content.unwrap_or_default();
        let mut lines: Vec<&[u8]> = content.split_inclusive(|byte| *byte == b'\n').collect();
        let torn = lines.pop_if(|last| is_torn(last));
        let header = lines.first().and_then(|line| serde_json::from_slice::<Header>(line).ok());
        let mut read = Self {
            seq: header.as_ref().map_or(0, |header| header.seq),
            list: List::default(),
            lines: lines.len() - usize::from(header.is_some()),
            is_unended: torn.is_some() || content.last().is_some_and(|last| *last != b'\n'),
            damage: None,
            gap: None,
            header,
        };
        if let Some(problem) = read.header.as_ref().and_then(header_problem) {
            read.damage = Some(LoadError::Damaged { path: path.to_path_buf(), line: 1, problem });
            read.seq = 0;
        }
        let first = usize::from(read.header.is_some());
        for (line, number) in lines.iter().zip(1..).skip(first) {
            if let Err(problem) = read.take(line, number) {
                let damaged = || LoadError::Damaged { path: path.to_path_buf(), line: number, problem };
                read.damage.get_or_insert_with(damaged);
            }
        }
        read
    }

    fn take(&mut self, line: &[u8], number: usize) -> Result<(), String> {
        let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        // What it says counts, where its number is accepted as damage: it is what is left of the list.
        line.apply(&mut self.list)?;
        let seq = match (&self.header, line.seq) {
            (None, None) => return Ok(()),
            (None, Some(_)) => return Err("it is numbered, and the list's header is missing".to_owned()),
            (Some(_), None) => return Err("seq is missing".to_owned()),
            (Some(_), Some(seq)) if seq > MAX_SEQ => return Err(too_large(seq)),
            (Some(_), Some(seq)) => seq,
        };
        if seq != self.seq + 1 {
            let expected = self.seq + 1;
            self.gap.get_or_insert_with(|| {
                format!("line {number} is change {seq}, and change {expected} was expected: lines were removed or moved")
            });
        }
        self.seq = seq;
        Ok(())
    }
}

/// What is wrong with a header.
fn header_problem(Header { revocations, seq, .. }: &Header) -> Option<String> {
    if *revocations != FORMAT {
        return Some(format!("format {revocations}; this keyward reads format {FORMAT}"));
    }
    (*seq > MAX_SEQ).then(|| too_large(*seq))
}

fn too_large(seq: u64) -> String {
    format!("seq is {seq}, and the largest number of a line is {MAX_SEQ}")
}

/// Whether the last line is one that was not written to its end: its command never returned. One that is whole but for its
/// newline counts all the same, because an editor or a copy may have lost that; revoking too much is the safer mistake. A loss
/// of power can leave the end of a write behind without its beginning, which is zeros then.
fn is_torn(last: &[u8]) -> bool {
    let is_whole =
        || serde_json::from_slice::<Line>(last).is_ok() || serde_json::from_slice::<Header>(last).is_ok();
    last.contains(&0) || (!last.ends_with(b"\n") && !is_whole())
}
