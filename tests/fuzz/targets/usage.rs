//! `usage.jsonl`, as a start continues it.
//!
//! * The file is cut off behind the last line that is JSON and ends in a newline, and nowhere else.
//! * The numbers of new lines continue that of the last line, over a rotation and the next start. A
//!   number so large that the next ones could overflow is not continued.
//! * No line is lost by a rotation, except by the one that removes the oldest file.
//!
//! The first byte chooses the maximum size of a file, the second the number of new lines.

use keyward_daemon::fuzzing::continue_usage;
use keyward_state::Rotation;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Outcome;
use super::scratch::Scratch;
use crate::input::Input;

/// The names of the files in the state directory.
const FILE: &str = "usage.jsonl";
const ROTATED: [&str; 3] = ["usage.jsonl.1", "usage.jsonl.2", "usage.jsonl.3"];

/// The largest number that is continued: another one counts as none.
const MAX_SEQ: u64 = u64::MAX / 2;

/// Most lines that are added.
const MAX_LINES: usize = 4;

thread_local! {
    static SCRATCH: Scratch = Scratch::new();
}

pub(crate) fn run(data: &[u8]) -> Outcome {
    SCRATCH.with(|scratch| check(scratch, data))
}

fn check(scratch: &Scratch, data: &[u8]) -> Outcome {
    let mut input = Input::new(data);
    let files = Rotation { max_file_size: input.choose(&[u64::MAX, 1, 300]), keep: ROTATED.len() as u32 };
    let lines = input.below(MAX_LINES + 1);
    let content = input.rest();
    ROTATED.iter().for_each(|name| scratch.put(name, None));
    scratch.put(FILE, Some(content));

    let opened = continue_usage(&scratch.state, files, 0).expect("the disk is writable");
    let (end, seq) = last_line(content);
    assert_eq!(opened, seq);
    assert_eq!(scratch.get(FILE).as_deref(), Some(&content[..end]), "it is cut off elsewhere");

    assert_eq!(continue_usage(&scratch.state, files, lines).expect("the disk is writable"), seq);
    let mut whole = Vec::new();
    for name in ROTATED.iter().rev().chain([&FILE]) {
        whole.extend(scratch.get(name).unwrap_or_default());
    }
    let (_, last) = last_line(&whole);
    assert_eq!(last, seq + lines as u64);
    assert_eq!(continue_usage(&scratch.state, files, 0).expect("the disk is writable"), last);
    // Each new line may be in a file of its own. As many old files are kept.
    if lines <= ROTATED.len() || files.max_file_size == u64::MAX {
        assert!(whole.starts_with(&content[..end]), "a line is lost");
    }
    Outcome::accepted_if(end > 0)
}

/// The number in a line.
#[derive(Deserialize)]
struct Numbered {
    seq: u64,
}

/// The end of the last line that is JSON, and its number; 0 if it has none.
fn last_line(content: &[u8]) -> (usize, u64) {
    let (mut end, mut last, mut at) = (0, 0, 0);
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        at += line.len();
        let text = line.strip_suffix(b"\n");
        if let Some(text) = text.filter(|text| serde_json::from_slice::<IgnoredAny>(text).is_ok()) {
            end = at;
            last = serde_json::from_slice(text).map_or(0, |Numbered { seq }| seq);
        }
    }
    (end, if last <= MAX_SEQ { last } else { 0 })
}
