"""PostgreSQL: the key's row by its indexed hash, and tables for COPY to export."""

import os, pwd, re, signal, subprocess, time

from .keys import blocks, record
from .server import Server
from .tools import find_tool, first_line, run

# Everything stays in memory; there is no background work and no waiting for a disk.
SETTINGS = [
    "listen_addresses=",
    "fsync=off",
    "shared_buffers=1GB",
    "autovacuum=off",
    "max_wal_size=8GB",
    "jit=off",
    "max_connections=50",
]

# As in tests/integration/postgres.rs: PostgreSQL's own types for hashes, times, arrays, networks and JSON.
REAL_TABLE = """
CREATE UNLOGGED TABLE exported AS SELECT
    sha256(convert_to('key-' || n, 'UTF8')) AS key_hash,
    'id_' || n AS key_id,
    'owner-' || n % 50000 AS owner,
    CASE WHEN n % 2 = 0 THEN 'live' ELSE 'test' END AS environment,
    CASE WHEN n % 1000 = 7 THEN 'revoked' ELSE 'active' END AS status,
    CASE WHEN n % 10 = 0 THEN timestamptz '2001-02-03 04:05:06.789+05:30'
         WHEN n % 10 = 1 THEN 'infinity'
         ELSE timestamptz '2099-01-01 00:00:00+00' END AS expires_at,
    CASE WHEN n % 3 = 0 THEN ARRAY['orders:read', 'orders:write'] ELSE ARRAY[]::text[] END AS scopes,
    CASE WHEN n % 100 = 3 THEN ARRAY['10.0.0.0/8', '2001:db8::/32']::cidr[] END AS allowed_ips,
    '100/s burst 200' AS limits,
    CASE WHEN n % 1000 = 9 THEN jsonb_build_object('tier', n) END AS metadata
FROM generate_series(1, {rows}) AS n"""

# Only the fields that this package's keys have.
PLAIN_TABLE = """
CREATE UNLOGGED TABLE exported AS SELECT
    sha256(convert_to('key-' || n, 'UTF8')) AS key_hash, 'id_' || n AS key_id, 'owner-' || n % 50000 AS owner,
    'active' AS status, '100/s burst 200' AS limits
FROM generate_series(1, {rows}) AS n"""


class Postgres(Server):
    label, target = "PostgreSQL SELECT", "postgres"
    packages = {"postgres": "postgresql"}
    # Fast shutdown, which does not wait for clients to disconnect.
    stop_signal = signal.SIGINT

    def __init__(self, workdir, name="postgres"):
        super().__init__(workdir, name)
        self.socket = self.directory / ".s.PGSQL.5432"
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root; Debian's package creates a user for it.
            try:
                account = pwd.getpwnam("postgres")
            except KeyError:
                return
            os.chown(self.directory, account.pw_uid, account.pw_gid)
            self.user_options = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def command(self):
        data = self.directory / "data"
        initdb = [find_tool("initdb"), "-A", "trust", "-U", "postgres", "-N", "-D", data]
        run(initdb, cwd="/", **self.user_options)
        settings = [argument for setting in SETTINGS for argument in ("-c", setting)]
        return [find_tool("postgres"), "-D", data, "-k", self.directory, *settings]

    def wait_until_ready(self):
        super().wait_until_ready()
        self.wait_until("it accepts queries", self.accepts_queries, interval=0.1)

    def accepts_queries(self):
        command = self.psql_command("SELECT 1")
        return subprocess.run(command, capture_output=True, cwd="/", **self.user_options).returncode == 0

    def load_keys(self, count):
        if count == 0:
            return
        self.psql(
            "CREATE UNLOGGED TABLE api_keys (key_hash bytea, key_id text, owner text, environment text, "
            "plan text, limits text)"
        )
        copy = subprocess.Popen(
            self.psql_command("COPY api_keys FROM STDIN WITH (FORMAT csv)"),
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            **self.user_options,
        )
        for first, block in blocks(count):
            text = block.hex().encode()
            copy.stdin.writelines(
                b"\\x%s,%s\n" % (text[at * 64 : at * 64 + 64], record(first + at))
                for at in range(len(text) // 64)
            )
        copy.stdin.close()
        if copy.wait() != 0:
            raise RuntimeError("PostgreSQL refuses the keys")
        self.psql("ALTER TABLE api_keys ADD PRIMARY KEY (key_hash)")
        self.psql("VACUUM (ANALYZE, FREEZE) api_keys")

    def psql_command(self, sql):
        options = ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres"]
        return [find_tool("psql"), *options, "-h", self.directory, "-c", sql]

    def psql(self, sql):
        """Runs a statement and returns the seconds that it took."""
        command = self.psql_command(sql)
        start = time.monotonic()
        run(command, cwd="/", **self.user_options)
        return time.monotonic() - start

    def version(self):
        line = first_line([find_tool("postgres"), "--version"])
        return re.sub(r"^postgres \(PostgreSQL\) (\S+).*", r"PostgreSQL \1", line)
