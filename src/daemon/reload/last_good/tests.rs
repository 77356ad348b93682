//! Last good keys that are written and recovered without a daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::reload::BadRowPolicy;
use keyward_engine::limiter::{Limiter, SlotAllocator};
use keyward_engine::record::{KeyRecord, LimitRef, Plans, parse_limits};
use keyward_engine::snapshot::{Builder, SnapshotMeta};
use keyward_source::{ColumnMapping, Format};

/// How long a test waits for a condition.
const TIMEOUT: Duration = Duration::from_secs(20);

struct Fixture {
    directory: TempDir,
    last_good: LastGoodStore,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(directory.path(), true).expect("opens").expect("is there");
        let last_good = LastGoodStore::open(Some(&Arc::new(state)), true).expect("a thread").expect("kept");
        Self { directory, last_good }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn source(&self) -> SourceFile {
        let plans = [("pro".into(), parse_limits("7/d").expect("limits"))];
        SourceFile {
            path: self.path("keys.csv").into(),
            format: Format::Csv,
            mapping: ColumnMapping::default(),
            plans: Arc::new(Plans::new(plans, None).expect("plans")),
            on_bad_row: BadRowPolicy::Refuse,
        }
    }

    /// A job with `keys` keys. `content` is written to the source.
    fn job(&self, generation: u64, keys: u32, content: &str) -> Job {
        let source = self.source();
        fs::write(&source.path, content).expect("writes");
        let mut builder = Builder::new(generation, 0).with_plans(Arc::clone(&source.plans));
        for number in 0..keys {
            let (key_id, mut hash) = (format!("k{number}"), [0; 32]);
            hash[..4].copy_from_slice(&number.to_le_bytes());
            let plan = if number % 2 == 0 { "pro" } else { "" };
            let record = KeyRecord { owner: "acme", plan, ..KeyRecord::new(hash, &key_id) };
            builder.add(number.into(), &record).expect("a good row");
        }
        let (keys, policies) = builder.finish_with_policies();
        let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
        let stamp = SnapshotMeta { generation, source_time: 1_795_255_200, ..SnapshotMeta::default() };
        let snapshot = keys.into_snapshot(&mut allocator.begin(&limiter), None, stamp).expect("room");
        Job {
            snapshot: Arc::new(snapshot),
            policies,
            compiled: None,
            source: source.path.display().to_string(),
            state: FileState::of(&source.path).expect("a file"),
            parse_settings: parse_settings_digest(&source),
            accepted_at: 1_795_255_201,
        }
    }

    fn wait(&self, what: &str, ready: impl Fn(&State) -> bool) {
        let state = self.last_good.shared.state();
        let is_waiting = |state: &mut State| !ready(state);
        let waited = self.last_good.shared.changed.wait_timeout_while(state, TIMEOUT, is_waiting);
        assert!(waited.is_ok_and(|(_, timeout)| !timeout.timed_out()), "timeout: {what}");
    }

    fn wait_stored(&self, generation: u64) {
        self.wait("the keys", |state| {
            state.writing.is_none()
                && state.stored.as_ref().is_some_and(|stored| stored.generation == generation)
        });
    }

    fn stored(&self) -> Option<Manifest> {
        self.last_good.shared.state().stored.clone()
    }

    /// Opens the store again, as the next start does.
    fn reopen(self) -> Self {
        let directory = Arc::clone(&self.last_good.shared.directory);
        let last_good = LastGoodStore::open(Some(&directory), true).expect("a thread").expect("kept");
        Self { last_good, ..self }
    }

    /// The names of the files of last good keys.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).expect("lists").flatten();
        let names = entries.map(|entry| entry.file_name().into_string().expect("UTF-8"));
        let mut names: Vec<_> = names.filter(|name| name.starts_with("last_good")).collect();
        names.sort_unstable();
        names
    }

    fn recover(&self) -> Result<Option<Recovered>, RecoverError> {
        recover(self.directory.path(), &self.source())
    }
}

#[test]
fn accepted_keys_are_recovered_and_one_compiled_file_is_left() {
    let fixture = Fixture::new();
    assert!(matches!(fixture.recover(), Ok(None)));
    for generation in 1..4 {
        fixture.last_good.enqueue(fixture.job(generation, 100 + generation as u32, &generation.to_string()));
        fixture.wait_stored(generation);
        assert_eq!(fixture.files(), [format!("last_good-{generation}.kwc"), "last_good.json".to_owned()]);
        for name in fixture.files() {
            let mode = fs::metadata(fixture.path(&name)).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let recovered = fixture.recover().expect("usable").expect("there");
        let again = fixture.job(generation, 100 + generation as u32, "");
        let options = keyward_engine::snapshot::CompareOptions { now: 1, by_key_id: false };
        assert!(recovered.keys.diff_from(Some(again.snapshot.table()), options).is_unchanged());
        assert_eq!((recovered.stored.generation, recovered.stored.written_at), (generation, 1_795_255_200));
    }
}

#[test]
fn recovered_rows_keep_their_plans_with_the_current_limits() {
    let fixture = Fixture::new();
    fixture.last_good.enqueue(fixture.job(1, 2, "x"));
    fixture.wait_stored(1);
    let other = [("pro".into(), parse_limits("8/d").expect("limits")), ("free".into(), Vec::new())];
    let plans = Arc::new(Plans::new(other, Some("free".into())).expect("plans"));
    let recovered = recover(fixture.directory.path(), &SourceFile { plans, ..fixture.source() });
    let recovered = recovered.expect("usable").expect("there");
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let snapshot = recovered
        .keys
        .into_snapshot(&mut allocator.begin(&limiter), None, SnapshotMeta::default())
        .expect("room");
    let of = |key_id| snapshot.find_by_id(key_id).expect("a key").policy();
    assert_eq!(of("k0").plan(), "pro");
    assert!(of("k0").limits().map(LimitRef::to_limit).eq(parse_limits("8/d").expect("limits")));
    assert_eq!(of("k1").plan(), "free", "a row without a plan has the new default plan");
    let plans = Arc::new(Plans::new([("free".into(), Vec::new())], None).expect("plans"));
    let unusable = recover(fixture.directory.path(), &SourceFile { plans, ..fixture.source() }).err();
    let error = unusable.expect("a plan is missing");
    let text = error.to_string();
    assert!(text.contains("the plan \"pro\" is not in the configuration"), "{text}");
    assert_eq!(error.kind(), "plans");
}

/// As after an upgrade that changes the text of the settings: the source is compared once more.
#[test]
fn source_is_recognised_only_with_the_settings_that_it_was_accepted_with() {
    let fixture = Fixture::new();
    let (source, global_policy) = (fixture.source(), GlobalPolicy::default());
    fs::write(&source.path, "x").expect("writes");
    let state = FileState::of(&source.path).expect("a file");
    let is_accepted =
        |store: &LastGoodStore, source: &SourceFile| store.has_accepted(&state, source, &global_policy);
    assert!(!is_accepted(&fixture.last_good, &source));
    fixture.last_good.record_accepted(1, state, &source, &global_policy, false);
    let directory = Arc::clone(&fixture.last_good.shared.directory);
    let reopen = || LastGoodStore::open(Some(&directory), true).expect("a thread").expect("kept");
    assert!(is_accepted(&reopen(), &source));
    let other = SourceFile { mapping: ColumnMapping::default().ignoring_unknown(), ..source.clone() };
    assert!(!is_accepted(&reopen(), &other));
    let earlier = AcceptedSource::new(1, state, "0123456789abcdef".to_owned(), &global_policy, false, false);
    earlier.write(fixture.directory.path()).expect("writes");
    assert!(!is_accepted(&reopen(), &source));
}

#[test]
fn unchanged_source_is_not_written_again() {
    let fixture = Fixture::new();
    fixture.last_good.enqueue(fixture.job(1, 100, "x"));
    fixture.wait_stored(1);
    let mut again = fixture.job(2, 100, "x");
    again.state = fixture.stored().expect("stored").state;
    fixture.last_good.enqueue(again);
    fixture.wait_stored(2);
    assert_eq!(fixture.files(), ["last_good-1.kwc", "last_good.json"]);
    assert!(fixture.recover().expect("usable").is_some_and(|recovered| recovered.stored.generation == 2));
}

#[test]
fn damage_of_an_unchanged_source_s_keys_is_found_and_mended_after_a_start() {
    let fixture = Fixture::new();
    fixture.last_good.enqueue(fixture.job(1, 100, "x"));
    fixture.wait_stored(1);
    let path = fixture.path("last_good-1.kwc");
    let whole = fs::read(&path).expect("a file");
    let state = fixture.stored().expect("stored").state;
    // A byte of the header, of a policy or an owner, and of a row.
    let mut fixture = fixture;
    for (generation, at) in (2..).zip([100, 170, whole.len() / 2, whole.len() - 1]) {
        let path = fixture.path(&fixture.stored().expect("stored").file);
        let mut damaged = fs::read(&path).expect("a file");
        damaged[at] ^= 1;
        fs::write(&path, damaged).expect("writes");
        assert!(fixture.recover().is_err(), "byte {at}");
        fixture = fixture.reopen();
        let mut again = fixture.job(generation, 100, "x");
        again.state = state;
        fixture.last_good.enqueue(again);
        fixture.wait_stored(generation);
        let recovered = fixture.recover().expect("usable").expect("there");
        assert_eq!((recovered.keys.len(), recovered.stored.generation), (100, generation), "byte {at}");
    }
}

/// The file that an unreadable manifest names may be the only complete one.
#[test]
fn unreadable_manifest_keeps_its_file_until_other_keys_are_stored() {
    let fixture = Fixture::new();
    fixture.last_good.enqueue(fixture.job(1, 10, "x"));
    fixture.wait_stored(1);
    let manifest = fs::read(fixture.path(MANIFEST)).expect("a file");
    fs::write(fixture.path(MANIFEST), "damaged").expect("writes");
    let fixture = fixture.reopen();
    assert_eq!(fixture.files(), ["last_good-1.kwc", "last_good.json"]);
    // The write fails; not even root can write a file over a directory.
    let obstacle = fixture.path("last_good.json.new");
    fs::create_dir(&obstacle).expect("a directory");
    // The generations have been lost as well.
    fixture.last_good.enqueue(fixture.job(1, 20, "y"));
    fixture.wait("the failure", |state| state.failures > 0);
    fs::write(fixture.path(MANIFEST), &manifest).expect("writes");
    let recovered = fixture.recover().expect("usable").expect("there");
    assert_eq!(recovered.keys.len(), 10);
    fixture.last_good.manifest_read(&recovered.manifest);
    assert_eq!(fixture.last_good.generation(), 1);
    fs::remove_dir(&obstacle).expect("removes");
    fixture.last_good.enqueue(fixture.job(2, 30, "z"));
    fixture.wait_stored(2);
    assert_eq!(fixture.files(), ["last_good-2.kwc", "last_good.json"]);
}

/// A daemon that is killed before it has stored the keys of a source must not give access back.
#[test]
fn stored_keys_are_superseded_by_accepted_sources_that_take_access_away() {
    let mut fixture = Fixture::new();
    fixture.last_good.enqueue(fixture.job(1, 10, "x"));
    fixture.wait_stored(1);
    let source = fixture.source();
    let accept = |fixture: &Fixture, generation: u64, takes_away: bool| {
        fs::write(&source.path, generation.to_string().repeat(9)).expect("writes");
        let state = FileState::of(&source.path).expect("a file");
        let policy = GlobalPolicy::default();
        fixture.last_good.record_accepted(generation, state, &source, &policy, takes_away);
    };
    let is_superseded =
        |fixture: &Fixture| fixture.recover().expect("usable").expect("there").superseded.is_some();
    // Whether access would be given back, of each generation.
    for (generation, takes_away, expected) in
        [(2, false, false), (3, true, true), (4, false, true), (5, true, true)]
    {
        accept(&fixture, generation, takes_away);
        assert_eq!(is_superseded(&fixture), expected, "generation {generation}");
        fixture = fixture.reopen();
        assert_eq!(is_superseded(&fixture), expected, "after a start, generation {generation}");
    }
    fixture.last_good.enqueue(fixture.job(5, 10, "y"));
    fixture.wait_stored(5);
    assert!(!is_superseded(&fixture));
    accept(&fixture, 6, false);
    assert!(!is_superseded(&fixture), "what was taken away is stored");
    let record = fs::read_to_string(fixture.path(ACCEPTED_FILE)).expect("a file");
    let changed = record.replace("\"takes_away\":false", "\"takes_away\":true");
    assert_ne!(changed, record);
    fs::write(fixture.path(ACCEPTED_FILE), changed).expect("writes");
    assert!(is_superseded(&fixture), "a damaged record");
    fs::remove_file(fixture.path(ACCEPTED_FILE)).expect("removes");
    assert!(!is_superseded(&fixture), "an operator's decision");
}

/// What took access away is part of the next record.
#[test]
fn record_that_cannot_be_written_is_not_forgotten() {
    let fixture = Fixture::new();
    fixture.last_good.enqueue(fixture.job(1, 10, "x"));
    fixture.wait_stored(1);
    let (source, policy) = (fixture.source(), GlobalPolicy::default());
    let obstacle = fixture.path("accepted_source.json.new");
    let is_unwritten = || !fixture.last_good.shared.directory.health().unwritten().is_empty();
    let accept = |generation: u64, takes_away: bool| {
        fs::write(&source.path, generation.to_string().repeat(9)).expect("writes");
        let state = FileState::of(&source.path).expect("a file");
        fixture.last_good.record_accepted(generation, state, &source, &policy, takes_away);
    };
    let is_superseded = || fixture.recover().expect("usable").expect("there").superseded.is_some();
    for retry in [true, false] {
        fs::create_dir(&obstacle).expect("a directory");
        accept(2, true);
        assert!(is_unwritten() && !is_superseded());
        fs::remove_dir(&obstacle).expect("removes");
        if retry {
            fixture.last_good.retry_record();
        } else {
            accept(3, false);
        }
        assert!(!is_unwritten() && is_superseded(), "retry: {retry}");
        fs::remove_file(fixture.path(ACCEPTED_FILE)).expect("removes");
    }
    // Keys that are older than the record do not take its place.
    fs::create_dir(&obstacle).expect("a directory");
    accept(9, true);
    fixture.last_good.enqueue(fixture.job(4, 11, "y"));
    fixture.wait_stored(4);
    assert!(is_unwritten());
    fixture.last_good.enqueue(fixture.job(9, 12, "z"));
    fixture.wait_stored(9);
    assert!(!is_unwritten());
}

/// The keys on disk are of that source, and are about to be replaced by those of another one.
#[test]
fn return_to_the_stored_source_takes_away_while_other_keys_are_written() {
    let fixture = Fixture::new();
    let job = fixture.job(1, 10, "x");
    let state = job.state;
    fixture.last_good.enqueue(job);
    fixture.wait_stored(1);
    let (source, policy) = (fixture.source(), GlobalPolicy::default());
    let takes_away = |generation: u64| {
        fixture.last_good.record_accepted(generation, state, &source, &policy, true);
        let record = AcceptedSource::read(fixture.directory.path()).expect("whole").expect("there");
        fs::remove_file(fixture.path(ACCEPTED_FILE)).expect("removes");
        fixture.last_good.shared.state().accepted = None;
        record.takes_away_since(1)
    };
    assert!(!takes_away(2));
    let cancelled = Arc::new(AtomicBool::new(false));
    fixture.last_good.shared.state().writing = Some(Writing { generation: 2, keys: 11, cancelled });
    assert!(takes_away(3));
    fixture.last_good.shared.state().writing = None;
}

#[test]
fn truncated_or_damaged_file_is_refused() {
    let fixture = Fixture::new();
    fixture.last_good.enqueue(fixture.job(1, 3, "x"));
    fixture.wait_stored(1);
    let path = fixture.path("last_good-1.kwc");
    let whole = fs::read(&path).expect("a file");
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&path, &damaged).expect("writes");
        let error = fixture.recover().err().unwrap_or_else(|| panic!("bit of byte {at}"));
        assert_eq!(error.kind(), "damaged", "{error:?}");
        fs::write(&path, &whole[..at]).expect("writes");
        assert!(fixture.recover().is_err(), "cut at {at}");
    }
    fs::remove_file(&path).expect("removes");
    assert!(fixture.recover().is_err_and(|error| error.kind() == "damaged"));
    std::os::unix::fs::symlink("/etc/passwd", &path).expect("a link");
    assert!(fixture.recover().is_err(), "symbolic links are not followed");
}

#[test]
fn compiled_source_is_copied_unless_it_has_changed() {
    let fixture = Fixture::new();
    let compile = |job: &Job, name: &str| {
        let path = fixture.path(name);
        let mut file = fs::File::create(&path).expect("a file");
        job.snapshot.table().compile(&job.policies, &mut file, 7, &mut |_| {}).expect("writes");
        (fs::File::open(&path).expect("opens"), FileState::of(&path).expect("a file"), path)
    };
    let mut job = fixture.job(1, 100, "x");
    let (file, state, path) = compile(&job, "source.kwc");
    (job.compiled, job.state) = (Some(file), state);
    fixture.last_good.enqueue(job);
    fixture.wait_stored(1);
    let copied = fs::read(fixture.path("last_good-1.kwc")).expect("a file");
    assert_eq!(copied, fs::read(&path).expect("the source"));
    let recovered = fixture.recover().expect("usable").expect("there");
    assert_eq!(recovered.stored.written_at, 1_795_255_200, "from the manifest, not the file");
    // Writing to the source in place does not change the copy.
    fs::write(&path, "something else").expect("writes");
    assert!(fixture.recover().expect("usable").is_some());

    let mut job = fixture.job(2, 100, "y");
    let (file, state, path) = compile(&job, "other.kwc");
    (job.compiled, job.state) = (Some(file), state);
    fs::write(&path, "it is not what was loaded any more").expect("writes");
    fixture.last_good.enqueue(job);
    fixture.wait_stored(2);
    let recovered = fixture.recover().expect("usable").expect("there");
    assert_eq!(recovered.keys.len(), 100, "written from memory");
}

#[test]
fn failed_write_is_reported_and_keeps_the_previous_keys() {
    let fixture = Fixture::new();
    fixture.last_good.enqueue(fixture.job(1, 10, "x"));
    fixture.wait_stored(1);
    // Not even root can write a file over a directory.
    fs::create_dir(fixture.path("last_good.json.new")).expect("a directory");
    fixture.last_good.enqueue(fixture.job(2, 20, "y"));
    fixture.wait("the failure", |state| state.failures > 0);
    let unwritten = || fixture.last_good.shared.directory.health().unwritten();
    assert!(unwritten().iter().any(|file| file.error.contains("last_good.json")), "{:?}", unwritten());
    assert!(fixture.recover().expect("usable").is_some_and(|recovered| recovered.keys.len() == 10));
    fs::remove_dir(fixture.path("last_good.json.new")).expect("removes");
    fixture.last_good.enqueue(fixture.job(3, 30, "z"));
    fixture.wait_stored(3);
    assert!(unwritten().is_empty());
    assert_eq!(fixture.files(), ["last_good-3.kwc", "last_good.json"]);
}

#[test]
fn failed_write_is_retried() {
    let fixture = Fixture::new();
    let obstacle = fixture.path("last_good.json.new");
    fs::create_dir(&obstacle).expect("a directory");
    fixture.last_good.enqueue(fixture.job(1, 10, "x"));
    fixture.wait("the failure", |state| state.failures > 0);
    fs::remove_dir(&obstacle).expect("removes");
    fixture.wait_stored(1);
    assert!(fixture.recover().expect("usable").is_some_and(|recovered| recovered.keys.len() == 10));
    assert!(fixture.last_good.shared.directory.health().unwritten().is_empty());
    assert!(fixture.last_good.shared.state().retry_at.is_none(), "the writer would not wait for a next job");
}

#[test]
fn failed_write_is_tried_once_more_at_the_stop() {
    let fixture = Fixture::new();
    let obstacle = fixture.path("last_good.json.new");
    fs::create_dir(&obstacle).expect("a directory");
    fixture.last_good.enqueue(fixture.job(1, 10, "x"));
    fixture.wait("the failure", |state| state.failures > 0 && state.writing.is_none());
    fixture.last_good.shared.state().retry_at = Some(keyward_state::time::Instant::now() + 100 * TIMEOUT);
    fs::remove_dir(&obstacle).expect("removes");
    fixture.last_good.stop();
    assert!(fixture.recover().expect("usable").is_some_and(|recovered| recovered.keys.len() == 10));
}

#[test]
fn new_keys_do_not_wait_for_a_retry() {
    let fixture = Fixture::new();
    {
        let mut state = fixture.last_good.shared.state();
        (state.failures, state.retry_at) = (9, Some(keyward_state::time::Instant::now() + 100 * TIMEOUT));
    }
    fixture.last_good.enqueue(fixture.job(1, 10, "x"));
    fixture.wait_stored(1);
}

/// A state directory that has lost its last generation may use one again.
#[test]
fn repeated_generation_does_not_overwrite_the_stored_file() {
    let fixture = Fixture::new();
    fixture.last_good.enqueue(fixture.job(1, 10, "x"));
    fixture.wait_stored(1);
    fs::create_dir(fixture.path("last_good.json.new")).expect("a directory");
    fixture.last_good.enqueue(fixture.job(1, 20, "y"));
    fixture.wait("the failure", |state| state.failures > 0);
    assert!(fixture.recover().expect("usable").is_some_and(|recovered| recovered.keys.len() == 10));
}

#[test]
fn file_with_a_different_number_of_keys_is_refused() {
    let fixture = Fixture::new();
    fixture.last_good.enqueue(fixture.job(1, 10, "x"));
    fixture.wait_stored(1);
    let mut manifest = fixture.stored().expect("stored");
    manifest.keys += 1;
    manifest.write(fixture.directory.path()).expect("writes");
    assert!(fixture.recover().is_err_and(|error| error.kind() == "damaged"));
}

#[test]
fn newest_of_many_jobs_is_stored() {
    let fixture = Fixture::new();
    for generation in 1..50 {
        fixture.last_good.enqueue(fixture.job(generation, 10, &generation.to_string()));
    }
    fixture.wait_stored(49);
    assert_eq!(fixture.files(), ["last_good-49.kwc", "last_good.json"]);
}

#[test]
fn disabled_store_removes_its_files() {
    let fixture = Fixture::new();
    fixture.last_good.enqueue(fixture.job(1, 10, "x"));
    fixture.wait_stored(1);
    let state = Arc::clone(&fixture.last_good.shared.directory);
    fs::write(fixture.path("keys.kwc"), "the source's").expect("writes");
    assert!(LastGoodStore::open(Some(&state), false).expect("no thread").is_none());
    assert!(fixture.files().is_empty());
    assert!(fixture.path("keys.kwc").exists());
}

#[test]
fn leftover_files_are_removed_at_startup() {
    let fixture = Fixture::new();
    fixture.last_good.enqueue(fixture.job(1, 10, "x"));
    fixture.wait_stored(1);
    for name in ["last_good-2.kwc", "last_good-3.kwc.new", "last_good.json.new"] {
        fs::write(fixture.path(name), "half").expect("writes");
    }
    let state = Arc::clone(&fixture.last_good.shared.directory);
    LastGoodStore::open(Some(&state), true).expect("a thread");
    assert_eq!(fixture.files(), ["last_good-1.kwc", "last_good.json"]);
}
