//! The list of revocations and its high-water mark, as a start reads them.
//!
//! * A list that is refused is refused again, and its file is not changed.
//! * A list that is accepted has the same entries at the next start, even if the first one rewrote
//!   it.
//! * A list from which lines are removed, moved or repeated is refused, or nothing is missing from
//!   it. A revoked key never works again because of damage.
//!
//! The first line of the input is the high-water mark, and is empty if there is none. The rest is
//! the list. Between them is a line with a number, which chooses the damage.

use keyward_daemon::fuzzing::load_revocations;
use keyward_daemon::revocation::{RevocationRecord, Target};

use super::Outcome;
use super::scratch::Scratch;

/// The names of the files in the state directory.
const LIST: &str = "revocations.jsonl";
const MARK: &str = "revocations.seq";

thread_local! {
    static SCRATCH: Scratch = Scratch::new();
}

type Entries = Vec<(Target, RevocationRecord)>;

pub(crate) fn run(data: &[u8]) -> Outcome {
    SCRATCH.with(|scratch| check(scratch, data))
}

fn check(scratch: &Scratch, data: &[u8]) -> Outcome {
    let mut parts = data.splitn(3, |byte| *byte == b'\n');
    let mark = parts.next().filter(|mark| !mark.is_empty());
    let choice = parts.next().unwrap_or_default().iter().fold(0, |sum: usize, digit| {
        sum.wrapping_mul(10).wrapping_add(usize::from(digit.wrapping_sub(b'0')))
    });
    let list = parts.next();
    scratch.put(MARK, mark);
    scratch.put(LIST, list);
    let Ok(entries) = load_revocations(scratch.state.clone()) else {
        assert_eq!(scratch.get(LIST).as_deref(), list, "a refused list was changed");
        assert!(load_revocations(scratch.state.clone()).is_err(), "a refused list is accepted");
        return Outcome::Refused;
    };
    // The list as this start has left it, with a mark that knows its last line.
    let (list, mark) = (scratch.get(LIST).expect("a list"), scratch.get(MARK).expect("a mark"));
    let again = load_revocations(scratch.state.clone()).expect("it was accepted");
    assert_eq!(again, entries, "another start has other revocations");
    for damaged in damaged(&list, choice) {
        scratch.put(MARK, Some(&mark));
        scratch.put(LIST, Some(&damaged));
        if let Ok(left) = load_revocations(scratch.state.clone()) {
            assert!(has_all(&left, &entries), "damage lifts a revocation: {}", damaged.escape_ascii());
        }
    }
    Outcome::accepted_if(!entries.is_empty())
}

fn has_all(left: &Entries, entries: &Entries) -> bool {
    entries.iter().all(|(target, _)| left.iter().any(|(other, _)| other == target))
}

/// The list with a part missing, and with lines removed, moved and repeated.
fn damaged(list: &[u8], choice: usize) -> Vec<Vec<u8>> {
    let lines: Vec<&[u8]> = list.split_inclusive(|byte| *byte == b'\n').collect();
    let mut damaged = vec![list[..choice % list.len().max(1)].to_vec()];
    if let Some(at) = choice.checked_rem(lines.len()) {
        let without = |removed: usize| {
            let left = lines.iter().enumerate().filter(|(number, _)| *number != removed);
            left.flat_map(|(_, line)| line.iter().copied()).collect()
        };
        damaged.push(without(at));
        let mut moved = lines.clone();
        moved.swap(at, lines.len() - 1);
        damaged.push(moved.concat());
        let mut repeated = lines.clone();
        repeated.push(lines[at]);
        damaged.push(repeated.concat());
        let mut zeroed = list.to_vec();
        let end = zeroed.len();
        zeroed[end - lines[lines.len() - 1].len()..].fill(0);
        damaged.push(zeroed);
    }
    damaged
}
