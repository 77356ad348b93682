//! A million keys from PostgreSQL: the output of its COPY is served within two seconds of the
//! daemon's start.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Setup, wait_for};
use keyward_client::Request;
use tempfile::TempDir;

const KEYS: usize = 1_000_000;

/// A table with PostgreSQL's own types for hashes, times, arrays, networks and JSON.
const TABLE: &str = "
CREATE TABLE api_keys AS SELECT
    sha256(convert_to('key-' || n, 'UTF8')) AS key_hash,
    'id_' || n AS key_id,
    'owner-' || n % 50000 AS owner,
    CASE WHEN n % 2 = 0 THEN 'live' ELSE 'test' END AS environment,
    CASE WHEN n % 1000 = 7 THEN 'revoked' ELSE 'active' END AS status,
    CASE WHEN n % 10 = 0 THEN timestamptz '2001-02-03 04:05:06.789+05:30'
         WHEN n % 10 = 1 THEN 'infinity'
         ELSE timestamptz '2099-01-01 00:00:00+00' END AS expires_at,
    CASE WHEN n % 3 = 0 THEN ARRAY['orders:read', 'orders:write'] ELSE ARRAY[]::text[] END AS scopes,
    CASE WHEN n % 100 = 3 THEN ARRAY['10.0.0.0/8', '2001:db8::/32']::cidr[]
         WHEN n % 100 = 4 THEN ARRAY[]::cidr[] END AS allowed_ips,
    '100/s burst 200' AS limits,
    CASE WHEN n % 1000 = 9 THEN jsonb_build_object('tier', n) END AS metadata
FROM generate_series(1, 1000000) AS n";

/// A PostgreSQL server of this test, on a Unix socket in its directory.
struct Postgres {
    dir: TempDir,
    bin: PathBuf,
    server: Child,
}

impl Postgres {
    fn start() -> Self {
        let dir = TempDir::new().expect("a directory");
        let bin = binaries();
        if rustix::process::geteuid().is_root() {
            // PostgreSQL refuses to run as root; Debian's package brings a user.
            let (uid, gid) = (id("-u"), id("-g"));
            chown(dir.path(), Some(uid), Some(gid)).expect("chown");
        }
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("readable");
        let data = dir.path().join("data");
        let mut init = as_postgres(&bin.join("initdb"));
        let output = init
            .args(["-A", "trust", "-U", "postgres", "-N", "-D"])
            .arg(&data)
            .output()
            .expect("initdb runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut server = as_postgres(&bin.join("postgres"));
        server.arg("-D").arg(&data).arg("-k").arg(dir.path()).args([
            "-c",
            "listen_addresses=",
            "-c",
            "fsync=off",
        ]);
        let server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("PostgreSQL starts");
        let postgres = Self { dir, bin, server };
        wait_for("PostgreSQL", || postgres.psql("SELECT 1").status().ok().filter(|status| status.success()));
        postgres
    }

    fn psql(&self, sql: &str) -> Command {
        let mut psql = as_postgres(&self.bin.join("psql"));
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h"]).arg(self.dir.path());
        psql.arg("-c").arg(sql).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        psql
    }

    fn run(&self, sql: &str) {
        let output = self.psql(sql).stderr(Stdio::piped()).output().expect("psql runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Writes `COPY … TO STDOUT` to a file. Returns how long that took.
    fn export(&self, to: &Path) -> Duration {
        let file = fs::File::create(to).expect("a file");
        let start = Instant::now();
        let copy = "COPY api_keys TO STDOUT WITH (FORMAT csv, HEADER)";
        assert!(self.psql(copy).stdout(file).status().expect("psql runs").success());
        start.elapsed()
    }
}

impl Drop for Postgres {
    /// SIGINT is PostgreSQL's fast shutdown, which ends its child processes too.
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.server.id() as i32) {
            // Fails only if the server has exited already.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        let _ = self.server.wait();
    }
}

/// The binaries of the newest version. Debian installs each version in a directory outside PATH.
fn binaries() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("postgresql is installed: run tests/run");
    let mut found: Vec<PathBuf> = versions
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("postgresql is installed: run tests/run")
}

fn id(what: &str) -> u32 {
    let output = Command::new("id").args([what, "postgres"]).output().expect("id runs");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("the user postgres exists")
}

/// A command that runs as the user `postgres` if the test runs as root. setpriv executes the
/// program, so its pid is the program's.
fn as_postgres(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"])
        .arg(program)
        .current_dir("/");
    command
}

#[test]
#[ignore = "needs PostgreSQL: tests/run runs it"]
fn postgresql_export_of_a_million_keys_is_served_within_two_seconds() {
    let postgres = Postgres::start();
    postgres.run(TABLE);
    let setup = Setup::without_export().text_source();
    let copied = postgres.export(&setup.source());

    // The bound holds for the optimised binary. `tests/run` builds it and sets this variable.
    let release = std::env::var_os("KEYWARD_BIN_RELEASE");
    let command = setup.command_of(release.as_deref());
    let start = Instant::now();
    let daemon = setup.start_with(command);
    let served = start.elapsed();
    let status = daemon.status();
    assert!(status.ready && status.keys == KEYS, "{}", daemon.log());
    println!("PostgreSQL wrote {KEYS} keys in {copied:?}; they were served {served:?} after the start");
    assert!(release.is_none() || served < Duration::from_secs(2), "it took {served:?}");

    let mut client = daemon.client();
    let mut verify = |request: Request<'_>| {
        let answer = client.verify(&request).expect("an answer");
        (answer.verdict().name(), answer.key_id().map(str::to_owned), answer.metadata().map(str::to_owned))
    };
    assert_eq!(verify(Request::new("key-2")), ("ALLOWED", Some("id_2".into()), None));
    assert_eq!(verify(Request::new("key-10")).0, "EXPIRED");
    assert_eq!(verify(Request::new("key-11")).0, "ALLOWED", "infinity does not expire");
    assert_eq!(verify(Request::new("key-999007")).0, "REVOKED");
    assert_eq!(verify(Request::new("key-3").ip([10, 1, 2, 3].into())).0, "ALLOWED");
    assert_eq!(verify(Request::new("key-103").ip([11, 1, 2, 3].into())).0, "IP_NOT_ALLOWED");
    assert_eq!(
        verify(Request::new("key-104").ip([10, 1, 2, 3].into())).0,
        "IP_NOT_ALLOWED",
        "an empty list admits no address"
    );
    assert_eq!(verify(Request::new("key-6").scopes(["orders:write"])).0, "ALLOWED");
    assert_eq!(verify(Request::new("key-5").scopes(["orders:write"])).0, "MISSING_SCOPE");
    assert_eq!(verify(Request::new("key-9").metadata()).2.as_deref(), Some("{\"tier\": 9}"));
    assert_eq!(verify(Request::new("key-1000001")).0, "UNKNOWN_KEY");

    postgres.run("UPDATE api_keys SET status = 'revoked' WHERE key_id = 'id_2'");
    let next = daemon.setup.path("next.csv");
    postgres.export(&next);
    fs::rename(&next, daemon.setup.source()).expect("renamed");
    let start = Instant::now();
    let outcome = daemon.reload();
    println!("a changed export of {KEYS} keys was in force {:?} after its rename", start.elapsed());
    assert!(outcome.accepted, "{:?}", outcome.error);
    assert_eq!(verify(Request::new("key-2")).0, "REVOKED");
}
