//! Reads the list at the start, and verifies that it is complete.
//!
//! A lost revocation would make a revoked key work again. So the daemon does not start with a list
//! that may be incomplete, unless an operator accepts it: a list that is missing although the
//! directory has other state of a daemon, is empty, is older than its [high-water
//! mark](super::watermark), belongs to another daemon, or is damaged. A crash causes none of these:
//! the mark is written after the list, and a command whose line is torn has not returned.

use std::io;
use std::path::{Path, PathBuf};

use super::line::{FORMAT, Header, Line};
use super::list::List;
use super::list_file;
use super::watermark::{self, StoredRecord, WatermarkRecord};
use keyward_state::{self as state, Acceptance, AcceptanceRecord, FileError, StateDir};

/// Why the daemon does not start with the list of revocations.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be opened, read or repaired.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line cannot be decoded.
    #[error(
        "{}:{line}: not a revocation: {problem}. The daemon does not start, because a revoked key could work again: correct the line; \
         {HOW_TO_ACCEPT}",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line number, from 1.
        line: usize,
        /// What is wrong with the line.
        problem: String,
    },
    /// Revocations are missing.
    #[error(
        "{}: {problem}. The daemon does not start, because a revoked key could work again: restore the file with \
         revocations.seq beside it; {HOW_TO_ACCEPT}",
        path.display()
    )]
    Lost {
        /// The file.
        path: PathBuf,
        /// What shows that.
        problem: String,
    },
}

/// Attempts of [`preview`] to read both files while a daemon replaces them.
const ATTEMPTS: u32 = 3;

/// The largest number of a line. No list comes near it, and sums with it do not overflow.
const MAX_SEQ: u64 = u64::MAX / 2;

/// The end of the messages of [`LoadError`].
const HOW_TO_ACCEPT: &str = "or, to go on with the revocations that are left, run once: keyward state accept \
                             lost-revocations (with the daemon's --config or --state-dir), and start again";

impl LoadError {
    /// Whether it is about the content of the files, so another start does not help.
    pub fn is_about_content(&self) -> bool {
        !matches!(self, Self::File(_))
    }

    /// Whether this user may not read the list.
    pub fn is_permission_denied(&self) -> bool {
        matches!(self, Self::File(file) if file.error.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// The list on disk.
pub(super) struct Replayed {
    pub(super) list: List,
    /// The list's id; `None`: it needs a new one, and has to be rewritten.
    pub(super) id: Option<String>,
    /// The number of the last line.
    pub(super) seq: u64,
    /// Lines after the header.
    pub(super) lines: usize,
    /// Whether the file ends in a torn line, or without a newline.
    pub(super) has_torn_end: bool,
    pub(super) watermark: Option<WatermarkRecord>,
    /// A loss that an operator has accepted.
    pub(super) accepted: Option<(AcceptanceRecord, LoadError)>,
}

/// Reads the list in `directory`. An acceptance is taken even if it is not needed.
///
/// # Errors
/// See [`LoadError`].
pub(super) fn replay(directory: &StateDir) -> Result<Replayed, LoadError> {
    let StoredList { mut parsed, watermark } = StoredList::read(&directory.path(""))?;
    let problem = parsed.problem.take();
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
    let watermark = if let StoredRecord::Valid(record) = watermark { Some(record) } else { None };
    // An incomplete list gets a new id, so that the lost copy cannot replace it later.
    let id = parsed.header.map(|header| header.list).filter(|_| accepted.is_none());
    let (list, seq, lines, has_torn_end) = (parsed.list, parsed.seq, parsed.lines, parsed.has_torn_end);
    Ok(Replayed { list, id, seq, lines, has_torn_end, watermark, accepted })
}

/// What a start would do with the list.
pub(super) struct ReplayPreview {
    /// The revocations that would be in force.
    pub(super) list: List,
    /// Whether there has ever been a line.
    pub(super) has_changed: bool,
    /// The loss that the start would accept, because an operator has accepted it.
    pub(super) accepted: Option<LoadError>,
}

/// As [`replay`], without a lock, and without a change of a file: an acceptance is not taken. A
/// daemon may be using `directory`.
///
/// # Errors
/// When a start would fail.
pub(super) fn preview(directory: &Path) -> Result<ReplayPreview, LoadError> {
    let mut attempt = 1;
    loop {
        let StoredList { parsed: ParsedList { list, seq, problem, .. }, .. } = StoredList::read(directory)?;
        match problem {
            None => return Ok(ReplayPreview { list, has_changed: seq > 0, accepted: None }),
            // A daemon that uses the directory may be replacing the files.
            Some(_) if attempt < ATTEMPTS => attempt += 1,
            Some(problem) if state::is_accepted(directory, Acceptance::LostRevocations) => {
                return Ok(ReplayPreview { list, has_changed: true, accepted: Some(problem) });
            }
            Some(problem) => return Err(problem),
        }
    }
}

/// The two files of the list.
struct StoredList {
    parsed: ParsedList,
    watermark: StoredRecord,
}

impl StoredList {
    /// Reads both files, and verifies that no revocation is missing.
    fn read(directory: &Path) -> Result<Self, FileError> {
        let path = directory.join(list_file::NAME);
        // First the mark: a daemon that writes meanwhile appends to the list before it writes the
        // mark.
        let watermark = watermark::read(&directory.join(watermark::NAME))?;
        let content = state::read(&path, list_file::MAX_BYTES)?;
        let mut parsed = ParsedList::new(&path, content.as_deref());
        let gap = parsed.gap.take();
        parsed.problem = parsed.problem.take().or_else(|| {
            let header = parsed.header.as_ref();
            let lost = detect_loss(directory, content.as_deref(), header, parsed.seq, &watermark);
            lost.or(gap).map(|problem| LoadError::Lost { path, problem })
        });
        Ok(Self { parsed, watermark })
    }
}

/// Returns a message if revocations are missing.
fn detect_loss(
    directory: &Path,
    content: Option<&[u8]>,
    header: Option<&Header>,
    seq: u64,
    watermark: &StoredRecord,
) -> Option<String> {
    match (content, header, watermark) {
        (_, _, StoredRecord::Damaged(problem)) => Some(format!(
            "whether it is complete cannot be told, because {} is damaged: {problem}",
            watermark::NAME
        )),
        (_, Some(header), StoredRecord::Valid(record)) if header.list != record.list => {
            Some("it is not the list that this state directory had before".to_owned())
        }
        (_, Some(_), StoredRecord::Valid(record)) if seq < record.seq => Some(format!(
            "it ends with change {seq} of {}: it was truncated, or replaced by an older copy",
            record.seq
        )),
        (_, Some(_), StoredRecord::Missing) => {
            Some(format!("whether it is complete cannot be told, because {} is missing", watermark::NAME))
        }
        (_, Some(_), StoredRecord::Valid(_)) => None,
        // A new list gets its high-water mark first. Without the list itself, nothing can be on it.
        (_, None, StoredRecord::Valid(WatermarkRecord { seq: 0, .. })) => None,
        (Some([]), None, StoredRecord::Valid(record)) => {
            Some(format!("it is empty, and {} changes had been written to it", record.seq))
        }
        (None, None, StoredRecord::Valid(record)) => {
            Some(format!("it is missing, and {} changes had been written to it", record.seq))
        }
        (Some(_), None, StoredRecord::Valid(_)) => {
            Some("it has no header: an older copy, or a part of the list, has taken its place".to_owned())
        }
        // The high-water mark is written first, so an interrupted first start does not leave a list
        // alone.
        (Some(_), None, StoredRecord::Missing) => {
            Some(format!("it has no header, and {} is missing", watermark::NAME))
        }
        (None, None, StoredRecord::Missing) => state::first_state_file(directory)
            .map(|other| format!("it is missing, and the state directory is not new: {other} is there")),
    }
}

/// The content of the file.
struct ParsedList {
    header: Option<Header>,
    list: List,
    seq: u64,
    lines: usize,
    has_torn_end: bool,
    /// The first line that cannot be decoded, or else what shows that revocations are missing. If an
    /// operator accepts it, lines that cannot be decoded are ignored.
    problem: Option<LoadError>,
    /// A message about the first line whose number does not follow the previous one.
    gap: Option<String>,
}

impl ParsedList {
    fn new(path: &Path, content: Option<&[u8]>) -> Self {
        let content = content.unwrap_or_default();
        let mut lines: Vec<&[u8]> = content.split_inclusive(|byte| *byte == b'\n').collect();
        let torn = lines.pop_if(|last| is_torn(last));
        let header = lines.first().and_then(|line| serde_json::from_slice::<Header>(line).ok());
        let mut parsed = Self {
            seq: header.as_ref().map_or(0, |header| header.seq),
            list: List::default(),
            lines: lines.len() - usize::from(header.is_some()),
            has_torn_end: torn.is_some() || content.last().is_some_and(|last| *last != b'\n'),
            problem: None,
            gap: None,
            header,
        };
        if let Some(problem) = parsed.header.as_ref().and_then(header_problem) {
            parsed.problem = Some(LoadError::Damaged { path: path.to_path_buf(), line: 1, problem });
            parsed.seq = 0;
        }
        let first = usize::from(parsed.header.is_some());
        for (line, number) in lines.iter().zip(1..).skip(first) {
            if let Err(problem) = parsed.add(line, number) {
                let damaged = || LoadError::Damaged { path: path.to_path_buf(), line: number, problem };
                parsed.problem.get_or_insert_with(damaged);
            }
        }
        parsed
    }

    fn add(&mut self, line: &[u8], number: usize) -> Result<(), String> {
        let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        // Applied even if its number is wrong: if the damage is accepted, this is what remains of
        // the list.
        line.apply(&mut self.list)?;
        let seq = match (&self.header, line.seq) {
            (None, _) => return Err("the list's header is missing".to_owned()),
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

/// Whether the last line was not written completely, so its command never returned. A line
/// that lacks only its newline counts as complete, because an editor may have removed that;
/// revoking too much is safer than too little. After a loss of power, the beginning of a write may
/// be zeros.
fn is_torn(last: &[u8]) -> bool {
    let is_whole =
        || serde_json::from_slice::<Line>(last).is_ok() || serde_json::from_slice::<Header>(last).is_ok();
    last.contains(&0) || (!last.ends_with(b"\n") && !is_whole())
}
