//! What is noticed, and what is not: against real directories, without a poll that could help.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::*;

/// How long an event may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

struct Fixture {
    directory: tempfile::TempDir,
    watch: Watch,
    changes: Receiver<()>,
}

impl Fixture {
    /// Watches `path` in a directory that `prepare` fills.
    fn new(path: &str, prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        prepare(directory.path());
        let (send, changes) = channel();
        let watch = Watch::new(&directory.path().join(path), move || _ = send.send(()));
        let fixture = Self { directory, watch, changes };
        fixture.wait("the first renewal", |state| state.done > 0);
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs `change` and waits until it was noticed, and whatever it was noticed by has been read.
    fn notices(&self, what: &str, change: impl FnOnce(&Path)) {
        self.quiesce();
        change(self.directory.path());
        assert!(self.changes.recv_timeout(PATIENCE).is_ok(), "not noticed: {what}");
    }

    /// Whether anything of what has happened so far is reported.
    fn has_noticed(&self) -> bool {
        self.settle();
        self.changes.try_recv().is_ok()
    }

    /// Has the watch weighed everything that has happened so far, and renewed itself after it.
    fn settle(&self) {
        let barrier = tempfile::NamedTempFile::new_in(self.directory.path()).expect("a file");
        self.wait("the barrier", |state| state.weighed.contains(barrier.path()));
        self.wait("the renewal", |state| state.asked == state.done);
    }

    /// The same, and forgets what it has reported.
    fn quiesce(&self) {
        self.settle();
        self.changes.try_iter().for_each(drop);
    }

    fn wait(&self, what: &str, is_met: impl Fn(&State) -> bool) {
        let running = self.watch.running.as_ref().expect("watches");
        let is_due = |state: &mut State| !is_met(state);
        let waited = running.updated.wait_timeout_while(running.lock(), PATIENCE, is_due);
        assert!(!waited.expect("waits").1.timed_out(), "in vain: {what}");
    }

    fn watches(&self) -> usize {
        self.watch.running.as_ref().expect("watches").lock().names.len()
    }
}

/// Whether the kernel has a watch of the file or directory at `path`, by any name. No other test
/// knows of it.
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

/// Replaces a link by another, in one step.
fn turn(link: &Path, to: &str) {
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
fn link_on_the_path_that_is_turned_is_noticed_and_followed() {
    let fixture = Fixture::new("app/current/keys.csv", |root| {
        write(&root.join("app/releases/1/keys.csv"), "1");
        write(&root.join("app/releases/2/keys.csv"), "2");
        turn(&root.join("app/current"), "releases/1");
    });
    fixture.notices("the first release", |root| replace(&root.join("app/releases/1/keys.csv")));
    let watches = fixture.watches();
    fixture.notices("the link is turned", |root| turn(&root.join("app/current"), "releases/2"));
    fixture.notices("a rename in the second release", |root| replace(&root.join("app/releases/2/keys.csv")));
    fixture
        .notices("a write in the second release", |root| write(&root.join("app/releases/2/keys.csv"), "3"));
    fixture.quiesce();
    assert_eq!(fixture.watches(), watches, "what was left is not watched any more");
    for left in ["app/releases/1", "app/releases/1/keys.csv"] {
        assert!(!is_watched(&fixture.path(left)), "{left} is watched still");
    }
    for place in ["app", "app/releases", "app/releases/2", "app/releases/2/keys.csv"] {
        assert!(is_watched(&fixture.path(place)), "{place} is not watched");
    }
    fs::write(fixture.path("app/releases/1/keys.csv"), "4").expect("writes");
    assert!(!fixture.has_noticed(), "the first release is left");
}

#[test]
fn directory_that_is_removed_and_created_again_is_watched_again() {
    let fixture = Fixture::new("a/b/c/keys.csv", |root| write(&root.join("a/b/c/keys.csv"), "1"));
    for level in ["a", "a/b", "a/b/c"] {
        fixture.notices("removed", |root| fs::remove_dir_all(root.join(level)).expect("removes"));
        fixture.notices("created", |root| write(&root.join("a/b/c/keys.csv"), "2"));
        fixture.notices("replaced", |root| replace(&root.join("a/b/c/keys.csv")));
    }
}

#[test]
fn parent_that_is_replaced_at_any_level_is_followed() {
    let fixture = Fixture::new("a/b/c/keys.csv", |root| write(&root.join("a/b/c/keys.csv"), "1"));
    for (level, inside) in [("a", "b/c/keys.csv"), ("a/b", "c/keys.csv"), ("a/b/c", "keys.csv")] {
        fixture.notices(level, |root| {
            write(&root.join("new").join(inside), "2");
            fs::rename(root.join(level), root.join(level).with_extension("old")).expect("renames");
            fs::rename(root.join("new"), root.join(level)).expect("renames");
        });
        fixture.notices("replaced in the new one", |root| replace(&root.join("a/b/c/keys.csv")));
        fixture.quiesce();
        let old = fixture.path(level).with_extension("old");
        assert!(!is_watched(&old), "{level}: the replaced directory is watched still");
        write(&old.join(inside), "3");
        assert!(!fixture.has_noticed(), "{level}: the replaced directory is left");
    }
}

/// After a write to mapped memory only the closing shows, and a writer may never close its file.
#[test]
fn file_that_is_written_and_not_closed_is_noticed() {
    let fixture = Fixture::new("keys.csv", |root| write(&root.join("keys.csv"), "1"));
    let mut file = fs::File::options().append(true).open(fixture.path("keys.csv")).expect("opens");
    for _ in 0..3 {
        fixture.notices("a write", |_| file.write_all(b"2").expect("writes"));
    }
    fixture.notices("the closing", |_| drop(file));
}

/// Events of what was deleted may be read when its path has been watched again, and inode numbers
/// are used again.
#[test]
fn directories_that_are_created_again_and_again_are_watched_in_the_end() {
    let fixture = Fixture::new("a/b/keys.csv", |root| write(&root.join("a/b/keys.csv"), "1"));
    for round in 0..100 {
        for level in ["a", "a/b"] {
            fs::remove_dir_all(fixture.path(level)).expect("removes");
            write(&fixture.path("a/b/keys.csv"), "2");
        }
        if round % 5 == 0 {
            fixture.notices("replaced", |root| replace(&root.join("a/b/keys.csv")));
            fixture.notices("written", |root| write(&root.join("a/b/keys.csv"), "3"));
        }
    }
}

/// The same inode under another path, and another under the same.
#[test]
fn directories_that_change_places_are_followed() {
    let fixture = Fixture::new("current/keys.csv", |root| {
        write(&root.join("one/keys.csv"), "1");
        write(&root.join("two/keys.csv"), "2");
        turn(&root.join("current"), "one");
    });
    for _ in 0..10 {
        fixture.notices("moved, and the link turned after it", |root| {
            fs::rename(root.join("one"), root.join("three")).expect("renames");
            turn(&root.join("current"), "three");
        });
        fixture.notices("replaced where it is now", |root| replace(&root.join("three/keys.csv")));
        fixture.notices("exchanged", |root| {
            fs::rename(root.join("two"), root.join("one")).expect("renames");
            fs::rename(root.join("three"), root.join("two")).expect("renames");
            fs::rename(root.join("one"), root.join("three")).expect("renames");
        });
        fixture.notices("replaced in the other", |root| replace(&root.join("three/keys.csv")));
        fixture.notices("back", |root| {
            fs::rename(root.join("three"), root.join("one")).expect("renames");
            turn(&root.join("current"), "one");
        });
        fixture.notices("replaced there", |root| replace(&root.join("one/keys.csv")));
        fixture.quiesce();
        write(&fixture.path("two/keys.csv"), "3");
        assert!(!fixture.has_noticed(), "what was left is not watched any more");
    }
}

#[test]
fn another_path_is_followed_from_when_it_is_asked_for() {
    let mut fixture = Fixture::new("one/keys.csv", |root| {
        write(&root.join("one/keys.csv"), "1");
        write(&root.join("two/keys.csv"), "2");
    });
    fixture.quiesce();
    let path = fixture.path("two/keys.csv");
    fixture.watch.follow(&path);
    assert!(fixture.has_noticed(), "it may have changed before it was watched");
    fixture.notices("the other", |root| replace(&root.join("two/keys.csv")));
    fixture.quiesce();
    replace(&fixture.path("one/keys.csv"));
    assert!(!fixture.has_noticed(), "the first is left");
    fixture.watch.follow(&path);
    assert!(!fixture.has_noticed(), "all of it was watched");
}

#[test]
fn overflow_of_the_queue_is_a_change() {
    let fixture = Fixture::new("keys.csv", |root| write(&root.join("keys.csv"), "1"));
    fixture.quiesce();
    let running = fixture.watch.running.as_ref().expect("watches");
    let overflow = Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
    running.handle(Ok(overflow), &*fixture.watch.changed);
    fixture.wait("its renewal", |state| state.asked == state.done);
    assert_eq!(fixture.changes.try_iter().count(), 2, "at once, and when the watches have been renewed");
}

#[test]
fn directory_that_is_not_there_at_first_is_watched_when_it_is() {
    let fixture = Fixture::new("later/still/keys.csv", |_| ());
    fixture.notices("the directories", |root| fs::create_dir_all(root.join("later/still")).expect("creates"));
    fixture.notices("the file", |root| write(&root.join("later/still/keys.csv"), "1"));
    fixture.notices("its replacement", |root| replace(&root.join("later/still/keys.csv")));
}

/// As Kubernetes does it: `keys.csv` leads to `..data/keys.csv`, and `..data` to a directory that is replaced.
#[test]
fn links_to_links_are_followed() {
    let fixture = Fixture::new("volume/keys.csv", |root| {
        write(&root.join("volume/..1/keys.csv"), "1");
        symlink("..1", root.join("volume/..data")).expect("a link");
        symlink("..data/keys.csv", root.join("volume/keys.csv")).expect("a link");
    });
    for number in 2..5 {
        fixture.notices("an update", |root| {
            write(&root.join(format!("volume/..{number}/keys.csv")), "2");
            turn(&root.join("volume/..data"), &format!("..{number}"));
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
    assert!(!fixture.has_noticed(), "other names are no change");
    let _ = fs::read(fixture.path("busy/keys/keys.csv")).expect("reads");
    let _ = fs::read_dir(fixture.path("busy/keys")).expect("reads").count();
    assert!(!fixture.has_noticed(), "reading is no change");
}

#[test]
fn walk_ends_in_a_ring_of_links_and_goes_back_up() {
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
    let deadline = Instant::now() + PATIENCE;
    while running.strong_count() > 0 {
        assert!(Instant::now() < deadline, "the thread goes on");
        thread::yield_now();
    }
}
