//! Incomplete lists at startup.

use super::*;
use keyward_state::disk::trace::{Call, Trace};
use keyward_state::{Acceptance, accept};

fn try_open(directory: &TempDir) -> Result<LoadedList, LoadError> {
    super::super::load(StateDir::open(directory.path(), true).expect("opens").map(Arc::new))
}

fn refusal(directory: &TempDir) -> String {
    let error = try_open(directory).err().expect("refused");
    assert!(error.is_about_content(), "{error}");
    let text = error.to_string();
    assert!(text.contains("keyward state accept lost-revocations"), "{text}");
    text
}

/// A directory in which k0 and then k1 were revoked, with other state of a daemon.
fn used() -> TempDir {
    let directory = directory();
    let (revocations, _publisher) = open(&directory);
    revocations.revoke(key(0), 0).expect("revoked");
    fs::copy(directory.path().join(list_file::NAME), directory.path().join("older")).expect("copies");
    revocations.revoke(key(1), 0).expect("revoked");
    fs::write(directory.path().join("balances"), "x").expect("writes");
    directory
}

type Spoil = fn(&std::path::Path);

fn list(directory: &std::path::Path) -> std::path::PathBuf {
    directory.join(list_file::NAME)
}

fn text(directory: &std::path::Path) -> String {
    fs::read_to_string(list(directory)).expect("a list")
}

fn without_line(directory: &std::path::Path, line: usize) {
    let text = text(directory);
    let kept = text.split_inclusive('\n').enumerate().filter(|(number, _)| *number != line);
    let kept: String = kept.map(|(_, line)| line).collect();
    fs::write(list(directory), kept).expect("writes");
}

/// A line without a number.
const UNNUMBERED: &str = r#"{"action":"revoke","key_id":"k0","when":"2026-11-21T10:00:00Z","by_uid":0}"#;

/// For each case: the damage, a part of the message, and the revocations that remain if it is
/// accepted.
const LOSSES: &[(Spoil, &str, usize)] = &[
    (|dir| fs::remove_file(list(dir)).expect("removes"), "it is missing, and 2 changes", 0),
    (|dir| fs::write(list(dir), "").expect("empties"), "it is empty, and 2 changes", 0),
    (
        |dir| {
            fs::remove_file(list(dir)).expect("removes");
            fs::remove_file(dir.join(watermark::NAME)).expect("removes");
        },
        "balances is there",
        0,
    ),
    (|dir| fs::remove_file(dir.join(watermark::NAME)).expect("removes"), "revocations.seq is missing", 2),
    (|dir| fs::write(dir.join(watermark::NAME), "").expect("empties"), "revocations.seq is damaged", 2),
    (|dir| _ = fs::copy(dir.join("older"), list(dir)).expect("copies"), "it ends with change 1 of 2", 1),
    (|dir| without_line(dir, 2), "it ends with change 1 of 2", 1),
    (|dir| without_line(dir, 1), "line 2 is change 2, and change 1 was expected", 1),
    (|dir| without_line(dir, 0), ":1: not a revocation: the list's header is missing", 2),
    (
        |dir| fs::write(list(dir), text(dir).trim_end().rsplit_once('"').expect("JSON").0).expect("tears"),
        "it ends with change 1 of 2",
        1,
    ),
    (|dir| fs::write(list(dir), text(dir).replace("k1", "")).expect("writes"), ":3: not a revocation", 1),
    (
        |dir| {
            let other = text(dir).replacen("\"list\":\"", "\"list\":\"0", 1);
            fs::write(list(dir), other).expect("writes");
        },
        "not the list that this state directory had",
        2,
    ),
    (
        |dir| fs::write(list(dir), text(dir).replacen(":1,", ":2,", 1)).expect("writes"),
        "format 2; this keyward reads format 1",
        2,
    ),
    (
        |dir| {
            fs::write(list(dir), format!("{UNNUMBERED}\n")).expect("writes");
        },
        ":1: not a revocation: the list's header is missing",
        1,
    ),
    (|dir| fs::write(list(dir), "\0").expect("writes"), "it has no header", 0),
    (
        |dir| {
            fs::write(list(dir), "").expect("empties");
            fs::remove_file(dir.join(watermark::NAME)).expect("removes");
        },
        "it has no header, and revocations.seq is missing",
        0,
    ),
    (
        |dir| {
            fs::write(list(dir), format!("{UNNUMBERED}\n")).expect("writes");
            fs::remove_file(dir.join(watermark::NAME)).expect("removes");
        },
        ":1: not a revocation: the list's header is missing",
        1,
    ),
];

#[test]
fn incomplete_list_is_refused_until_the_loss_is_accepted() {
    for (spoil, problem, left) in LOSSES {
        let directory = used();
        spoil(directory.path());
        let before = fs::read(list(directory.path())).ok();
        for _ in 0..2 {
            let refused = refusal(&directory);
            assert!(refused.contains(problem), "{problem:?} is not in {refused:?}");
        }
        assert_eq!(fs::read(list(directory.path())).ok(), before, "{problem}: the refused list is unchanged");
        accept(directory.path(), Acceptance::LostRevocations).expect("accepted");
        let loaded = try_open(&directory).unwrap_or_else(|error| panic!("{problem}: {error}"));
        assert_eq!(loaded.accepted_loss().map(|(_, left)| left), Some(*left), "{problem}");
        drop(loaded);
        // Now the list is complete, and the acceptance has been used.
        let loaded = try_open(&directory).unwrap_or_else(|error| panic!("{problem}: {error}"));
        assert_eq!((loaded.accepted_loss(), loaded.list.len()), (None, *left), "{problem}");
        drop(loaded);
        fs::write(list(directory.path()), "").expect("empties");
        assert_eq!(try_open(&directory).is_err(), *left > 0, "{problem}: the next loss is refused again");
    }
}

/// The names, contents and times of all files.
fn files(directory: &TempDir) -> Vec<(std::ffi::OsString, Vec<u8>, std::time::SystemTime)> {
    let entries = fs::read_dir(directory.path()).expect("lists").map(|entry| entry.expect("an entry"));
    let mut files: Vec<_> = entries
        .map(|entry| {
            let changed = entry.metadata().and_then(|metadata| metadata.modified()).expect("a time");
            (entry.file_name(), fs::read(entry.path()).expect("reads"), changed)
        })
        .collect();
    files.sort();
    files
}

#[test]
fn preview_says_what_a_start_does_and_changes_nothing() {
    let complete = used();
    let before = files(&complete);
    let ListPreview { list, accepted_loss } = preview(complete.path()).expect("complete");
    assert_eq!((list.len(), accepted_loss.is_none(), files(&complete)), (2, true, before));
    for (spoil, problem, left) in LOSSES {
        let directory = used();
        spoil(directory.path());
        let before = files(&directory);
        let predicted = preview(directory.path()).err().expect("refused").to_string();
        assert_eq!(files(&directory), before, "{problem}");
        assert_eq!(predicted, refusal(&directory));
        accept(directory.path(), Acceptance::LostRevocations).expect("accepted");
        let before = files(&directory);
        let ListPreview { list, accepted_loss } = preview(directory.path()).expect("accepted");
        assert_eq!((list.len(), files(&directory)), (*left, before), "{problem}");
        assert_eq!(accepted_loss.map(|loss| loss.to_string()), Some(predicted));
        let loaded = try_open(&directory).expect("the acceptance is still there");
        assert_eq!(loaded.accepted_loss().map(|(_, left)| left), Some(*left), "{problem}");
    }
    let missing = complete.path().join("missing");
    assert!(preview(&missing).expect("a first start").list.is_empty());
    assert!(!missing.exists());
}

/// A running daemon appends to the list, then writes the mark.
#[test]
fn preview_beside_a_running_daemon_sees_no_loss() {
    let directory = directory();
    let (revocations, _publisher) = open(&directory);
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..200 {
                revocations.revoke(key(number), 0).expect("revoked");
            }
            is_done.store(true, Ordering::Relaxed);
        });
        let mut seen = 0;
        while !is_done.load(Ordering::Relaxed) {
            let found = preview(directory.path()).unwrap_or_else(|error| panic!("{error}")).list.len();
            assert!(found >= seen, "{found} after {seen}");
            seen = found;
        }
    });
    assert_eq!(preview(directory.path()).expect("complete").list.len(), 200);
}

/// A daemon that is killed at any moment leaves a list that the next start accepts.
#[test]
fn crash_between_the_list_and_its_mark_is_no_loss() {
    let directory = directory();
    let mark = directory.path().join(watermark::NAME);
    let (revocations, publisher) = open(&directory);
    let mut marks = vec![fs::read(&mark).expect("a mark")];
    for number in 0..3 {
        revocations.revoke(key(number), 0).expect("revoked");
        marks.push(fs::read(&mark).expect("a mark"));
    }
    drop((revocations, publisher));
    for behind in marks {
        fs::write(&mark, behind).expect("a mark of before");
        assert_eq!(open(&directory).0.entries().len(), 3);
    }
    // A new list gets its mark first.
    let first = self::directory();
    drop(open(&first));
    fs::remove_file(list(first.path())).expect("not written yet");
    fs::write(first.path().join("audit.jsonl"), "x").expect("other state");
    assert_eq!(open(&first).0.entries(), []);
}

/// A list without its header is refused even if the directory has no other state: a first start
/// writes the mark before the list.
#[test]
fn list_without_header_and_mark_is_refused_in_a_directory_without_other_state() {
    for content in [String::new(), format!("{UNNUMBERED}\n"), UNNUMBERED.to_owned()] {
        let directory = directory();
        fs::write(list(directory.path()), &content).expect("a list");
        refusal(&directory);
        assert_eq!(text(directory.path()), content, "the refused list is unchanged");
        assert!(!directory.path().join(watermark::NAME).exists(), "no mark makes it complete");
    }
}

/// A first start that is interrupted at any write leaves a directory in which the next one starts.
#[test]
fn interrupted_first_start_is_no_loss() {
    let complete = directory();
    let trace = Trace::of(complete.path());
    drop(open(&complete));
    let renamed = |call| if let Call::Rename(_, to) = call { Some(to) } else { None };
    let created: Vec<_> = trace.calls().into_iter().filter_map(renamed).collect();
    let names = [watermark::NAME, list_file::NAME].map(|name| complete.path().join(name));
    assert_eq!(created, names, "the mark comes first");
    for count in 0..=created.len() {
        let interrupted = directory();
        for path in &created[..count] {
            fs::copy(path, interrupted.path().join(path.file_name().expect("a name"))).expect("copies");
        }
        assert!(!super::super::preview(interrupted.path()).expect("reads").list.has_changed());
        assert!(!try_open(&interrupted).expect("opens").has_changed(), "{count} files");
        assert_eq!(open(&interrupted).0.entries(), [], "{count} files");
    }
}

/// It shows that a daemon has served from the directory, even if no entry is left.
#[test]
fn list_of_a_daemon_that_had_a_command_has_changed() {
    let has_changed = |directory: &TempDir| {
        let previewed = super::super::preview(directory.path()).expect("reads").list.has_changed();
        let opened = try_open(directory).expect("opens").has_changed();
        assert_eq!(previewed, opened);
        opened
    };
    let directory = used();
    assert!(has_changed(&directory));
    let (revocations, _publisher) = open(&directory);
    for number in 0..2 {
        revocations.unrevoke(key(number), 0).expect("lifted");
    }
    drop(revocations);
    assert!(try_open(&directory).expect("opens").is_empty() && has_changed(&directory));

    fs::remove_file(list(directory.path())).expect("removes");
    accept(directory.path(), Acceptance::LostRevocations).expect("accepted");
    assert!(has_changed(&directory), "the loss shows it");
}

/// Numbers at the end of their range neither overflow nor count as valid.
#[test]
fn line_number_out_of_range_is_damage() {
    for (line, number) in [(1, u64::MAX), (1, u64::MAX - 1), (2, u64::MAX)] {
        let directory = used();
        let content = text(directory.path());
        let with_number = |(index, text): (usize, &str)| {
            let mut value: serde_json::Value = serde_json::from_str(text).expect("JSON");
            if index + 1 == line {
                value["seq"] = number.into();
            }
            format!("{value}\n")
        };
        fs::write(list(directory.path()), content.lines().enumerate().map(with_number).collect::<String>())
            .expect("writes");
        let refused = refusal(&directory);
        assert!(refused.contains(&format!("jsonl:{line}: ")) && refused.contains("the largest"), "{refused}");
        accept(directory.path(), Acceptance::LostRevocations).expect("accepted");
        drop(try_open(&directory).expect("accepted"));
        let (revocations, _publisher) = open(&directory);
        let change = revocations.revoke(Target::Key("another".into()), 0).expect("revoked");
        assert_eq!(change.durability, Durability::Durable, "numbering continues");
    }
}

#[test]
fn new_directory_gets_a_list_with_a_mark() {
    let directory = directory();
    drop(open(&directory));
    assert_eq!(text(directory.path()).lines().count(), 1);
    assert!(directory.path().join(watermark::NAME).exists());
    // The list was empty, so nothing is lost.
    fs::write(list(directory.path()), "").expect("empties");
    assert_eq!(open(&directory).0.entries(), []);
}

#[test]
fn acceptance_without_a_loss_is_used_up() {
    let directory = used();
    accept(directory.path(), Acceptance::LostRevocations).expect("accepted");
    let loaded = try_open(&directory).expect("whole");
    assert!(loaded.accepted_loss().is_none() && loaded.list.len() == 2);
    drop(loaded);
    fs::write(list(directory.path()), "").expect("empties");
    refusal(&directory);
}
