//! Changes that are noticed, and those that are not, in real directories and without a poll.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::path::{MAX_LINKS, walk};
use super::*;

/// How long an event may take on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(20);

struct Fixture {
    directory: tempfile::TempDir,
    watch: SourceWatch,
    changes: Receiver<()>,
}

impl Fixture {
    /// Watches `path` in a directory that `prepare` fills.
    fn new(path: &str, prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        prepare(directory.path());
        let (send, changes) = channel();
        let watch = SourceWatch::new(&directory.path().join(path), move || _ = send.send(()));
        let fixture = Self { directory, watch, changes };
        fixture.wait("the first renewal", |state| state.completed > 0);
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs `change` and waits until it is noticed.
    fn assert_notices(&self, what: &str, change: impl FnOnce(&Path)) {
        self.quiesce();
        change(self.directory.path());
        assert!(self.changes.recv_timeout(TIMEOUT).is_ok(), "not noticed: {what}");
    }

    /// Whether any change so far has been reported.
    fn has_noticed(&self) -> bool {
        self.settle();
        self.changes.try_recv().is_ok()
    }

    /// Waits until all events so far have been handled, and the renewals after them.
    fn settle(&self) {
        let barrier = tempfile::NamedTempFile::new_in(self.directory.path()).expect("a file");
        self.wait("the barrier", |state| state.handled.contains(barrier.path()));
        self.wait("the renewal", |state| state.requested == state.completed);
    }

    /// The same, and discards the reports.
    fn quiesce(&self) {
        self.settle();
        self.changes.try_iter().for_each(drop);
    }

    fn wait(&self, what: &str, is_met: impl Fn(&State) -> bool) {
        let running = self.watch.running.as_ref().expect("watches");
        let is_due = |state: &mut State| !is_met(state);
        let waited = running.updated.wait_timeout_while(running.lock(), TIMEOUT, is_due);
        assert!(!waited.expect("waits").1.timed_out(), "timeout: {what}");
    }

    fn watches(&self) -> usize {
        self.watch.running.as_ref().expect("watches").lock().names.len()
    }
}

/// Whether the kernel has a watch of the inode at `path`. No other test uses it.
fn is_watched(path: &Path) -> bool {
    let inode = format!(" ino:{:x} ", fs::metadata(path).expect("a file").ino());
    let descriptors = fs::read_dir("/proc/self/fdinfo").expect("a list").flatten();
    let texts = descriptors.filter_map(|descriptor| fs::read_to_string(descriptor.path()).ok());
    texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .any(|line| line.starts_with("inotify ") && line.contains(&inode))
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    fs::write(path, text).expect("a file");
}

/// Replaces a symbolic link atomically.
fn replace_link(link: &Path, to: &str) {
    let new = link.with_file_name("new-link");
    symlink(to, &new).expect("a link");
    fs::rename(&new, link).expect("renames");
}

fn replace(path: &Path) {
    let new = path.with_extension("new");
    write(&new, "other");
    fs::rename(&new, path).expect("renames");
}

#[test]
fn replaced_link_on_the_path_is_noticed_and_followed() {
    let fixture = Fixture::new("app/current/keys.csv", |root| {
        write(&root.join("app/releases/1/keys.csv"), "1");
        write(&root.join("app/releases/2/keys.csv"), "2");
        replace_link(&root.join("app/current"), "releases/1");
    });
    fixture.assert_notices("the first release", |root| replace(&root.join("app/releases/1/keys.csv")));
    let watches = fixture.watches();
    fixture.assert_notices("the replaced link", |root| replace_link(&root.join("app/current"), "releases/2"));
    fixture.assert_notices("a rename in the second release", |root| {
        replace(&root.join("app/releases/2/keys.csv"))
    });
    fixture.assert_notices("a write in the second release", |root| {
        write(&root.join("app/releases/2/keys.csv"), "3")
    });
    fixture.quiesce();
    assert_eq!(fixture.watches(), watches, "the old places are unwatched");
    for left in ["app/releases/1", "app/releases/1/keys.csv"] {
        assert!(!is_watched(&fixture.path(left)), "{left} is still watched");
    }
    for place in ["app", "app/releases", "app/releases/2", "app/releases/2/keys.csv"] {
        assert!(is_watched(&fixture.path(place)), "{place} is not watched");
    }
    fs::write(fixture.path("app/releases/1/keys.csv"), "4").expect("writes");
    assert!(!fixture.has_noticed(), "the first release is unwatched");
}

#[test]
fn recreated_directory_is_watched_again() {
    let fixture = Fixture::new("a/b/c/keys.csv", |root| write(&root.join("a/b/c/keys.csv"), "1"));
    for level in ["a", "a/b", "a/b/c"] {
        fixture.assert_notices("removed", |root| fs::remove_dir_all(root.join(level)).expect("removes"));
        fixture.assert_notices("created", |root| write(&root.join("a/b/c/keys.csv"), "2"));
        fixture.assert_notices("replaced", |root| replace(&root.join("a/b/c/keys.csv")));
    }
}

#[test]
fn replaced_parent_at_any_level_is_followed() {
    let fixture = Fixture::new("a/b/c/keys.csv", |root| write(&root.join("a/b/c/keys.csv"), "1"));
    for (level, inside) in [("a", "b/c/keys.csv"), ("a/b", "c/keys.csv"), ("a/b/c", "keys.csv")] {
        fixture.assert_notices(level, |root| {
            write(&root.join("new").join(inside), "2");
            fs::rename(root.join(level), root.join(level).with_extension("old")).expect("renames");
            fs::rename(root.join("new"), root.join(level)).expect("renames");
        });
        fixture.assert_notices("replaced in the new one", |root| replace(&root.join("a/b/c/keys.csv")));
        fixture.quiesce();
        let old = fixture.path(level).with_extension("old");
        assert!(!is_watched(&old), "{level}: the replaced directory is still watched");
        write(&old.join(inside), "3");
        assert!(!fixture.has_noticed(), "{level}: the replaced directory is unwatched");
    }
}

/// After a write to mapped memory only the closing is an event, and a writer may never close its
/// file.
#[test]
fn write_without_close_is_noticed() {
    let fixture = Fixture::new("keys.csv", |root| write(&root.join("keys.csv"), "1"));
    let mut file = fs::File::options().append(true).open(fixture.path("keys.csv")).expect("opens");
    for _ in 0..3 {
        fixture.assert_notices("a write", |_| file.write_all(b"2").expect("writes"));
    }
    fixture.assert_notices("the closing", |_| drop(file));
}

/// Events of a deletion may be read after its path has been watched again, and inode numbers are
/// reused.
#[test]
fn repeatedly_recreated_directories_are_watched_in_the_end() {
    let fixture = Fixture::new("a/b/keys.csv", |root| write(&root.join("a/b/keys.csv"), "1"));
    for round in 0..100 {
        for level in ["a", "a/b"] {
            fs::remove_dir_all(fixture.path(level)).expect("removes");
            write(&fixture.path("a/b/keys.csv"), "2");
        }
        if round % 5 == 0 {
            fixture.assert_notices("replaced", |root| replace(&root.join("a/b/keys.csv")));
            fixture.assert_notices("written", |root| write(&root.join("a/b/keys.csv"), "3"));
        }
    }
}

/// An inode moves to another path, and another inode takes its path.
#[test]
fn exchanged_directories_are_followed() {
    let fixture = Fixture::new("current/keys.csv", |root| {
        write(&root.join("one/keys.csv"), "1");
        write(&root.join("two/keys.csv"), "2");
        replace_link(&root.join("current"), "one");
    });
    for _ in 0..10 {
        fixture.assert_notices("moved, and the link replaced", |root| {
            fs::rename(root.join("one"), root.join("three")).expect("renames");
            replace_link(&root.join("current"), "three");
        });
        fixture.assert_notices("replaced where it is now", |root| replace(&root.join("three/keys.csv")));
        fixture.assert_notices("exchanged", |root| {
            fs::rename(root.join("two"), root.join("one")).expect("renames");
            fs::rename(root.join("three"), root.join("two")).expect("renames");
            fs::rename(root.join("one"), root.join("three")).expect("renames");
        });
        fixture.assert_notices("replaced in the other", |root| replace(&root.join("three/keys.csv")));
        fixture.assert_notices("back", |root| {
            fs::rename(root.join("three"), root.join("one")).expect("renames");
            replace_link(&root.join("current"), "one");
        });
        fixture.assert_notices("replaced there", |root| replace(&root.join("one/keys.csv")));
        fixture.quiesce();
        write(&fixture.path("two/keys.csv"), "3");
        assert!(!fixture.has_noticed(), "the old places are unwatched");
    }
}

#[test]
fn another_path_is_followed_on_request() {
    let mut fixture = Fixture::new("one/keys.csv", |root| {
        write(&root.join("one/keys.csv"), "1");
        write(&root.join("two/keys.csv"), "2");
    });
    fixture.quiesce();
    let path = fixture.path("two/keys.csv");
    fixture.watch.follow(&path);
    assert!(fixture.has_noticed(), "changes before the watch are reported");
    fixture.assert_notices("the other", |root| replace(&root.join("two/keys.csv")));
    fixture.quiesce();
    replace(&fixture.path("one/keys.csv"));
    assert!(!fixture.has_noticed(), "the first path is unwatched");
    fixture.watch.follow(&path);
    assert!(!fixture.has_noticed(), "nothing is newly watched");
}

#[test]
fn queue_overflow_is_reported_as_a_change() {
    let fixture = Fixture::new("keys.csv", |root| write(&root.join("keys.csv"), "1"));
    fixture.quiesce();
    let running = fixture.watch.running.as_ref().expect("watches");
    let overflow = Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
    running.handle(Ok(overflow), &*fixture.watch.changed);
    fixture.wait("its renewal", |state| state.requested == state.completed);
    assert_eq!(fixture.changes.try_iter().count(), 2, "at once, and after the renewal");
}

#[test]
fn missing_directory_is_watched_once_it_is_created() {
    let fixture = Fixture::new("later/still/keys.csv", |_| ());
    fixture.assert_notices("the directories", |root| {
        fs::create_dir_all(root.join("later/still")).expect("creates")
    });
    fixture.assert_notices("the file", |root| write(&root.join("later/still/keys.csv"), "1"));
    fixture.assert_notices("its replacement", |root| replace(&root.join("later/still/keys.csv")));
}

/// The layout of Kubernetes: `keys.csv` leads to `..data/keys.csv`, and `..data` to a directory
/// that is replaced.
#[test]
fn links_to_links_are_followed() {
    let fixture = Fixture::new("volume/keys.csv", |root| {
        write(&root.join("volume/..1/keys.csv"), "1");
        symlink("..1", root.join("volume/..data")).expect("a link");
        symlink("..data/keys.csv", root.join("volume/keys.csv")).expect("a link");
    });
    for number in 2..5 {
        fixture.assert_notices("an update", |root| {
            write(&root.join(format!("volume/..{number}/keys.csv")), "2");
            replace_link(&root.join("volume/..data"), &format!("..{number}"));
            fs::remove_dir_all(root.join(format!("volume/..{}", number - 1))).expect("removes");
        });
    }
}

#[test]
fn other_names_in_the_directories_are_not_noticed() {
    let fixture = Fixture::new("busy/keys/keys.csv", |root| write(&root.join("busy/keys/keys.csv"), "1"));
    fixture.quiesce();
    for number in 0..200 {
        write(&fixture.path(&format!("{number}")), "x");
        write(&fixture.path(&format!("busy/{number}")), "x");
        replace(&fixture.path(&format!("busy/keys/{number}")));
    }
    assert!(!fixture.has_noticed(), "other names do not matter");
    let _ = fs::read(fixture.path("busy/keys/keys.csv")).expect("reads");
    let _ = fs::read_dir(fixture.path("busy/keys")).expect("reads").count();
    assert!(!fixture.has_noticed(), "reading is not a change");
}

#[test]
fn walk_detects_link_cycles_and_resolves_parent_components() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().canonicalize().expect("a path");
    symlink("ring", root.join("ring")).expect("a link");
    let mut visits = 0;
    assert_eq!(walk(&root.join("ring/keys.csv"), |_, _| visits += 1), None);
    assert!(visits > MAX_LINKS && visits < 2 * MAX_LINKS + 100, "{visits}");
    write(&root.join("a/keys.csv"), "1");
    symlink("../a", root.join("a/up")).expect("a link");
    let mut names = Vec::new();
    let found = walk(&root.join("a/up/../a/./keys.csv"), |directory, name| names.push(directory.join(name)));
    assert_eq!(found, Some(root.join("a/keys.csv")));
    for path in ["a", "a/up", "a/keys.csv"] {
        assert!(names.contains(&root.join(path)), "{path}: {names:?}");
    }
}

#[test]
fn thread_ends_with_its_watch() {
    let fixture = Fixture::new("keys.csv", |_| ());
    let running = Arc::downgrade(fixture.watch.running.as_ref().expect("watches"));
    assert_eq!(running.strong_count(), 3, "the watch and two threads");
    drop(fixture);
    let deadline = Instant::now() + TIMEOUT;
    while running.strong_count() > 0 {
        assert!(Instant::now() < deadline, "the thread still runs");
        thread::yield_now();
    }
}
