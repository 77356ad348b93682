"""PostgreSQL: the key's row by its indexed hash; and a table as a real system has it, for COPY to export."""

import os, pwd, re, signal, subprocess, time

from .keys import blocks, record
from .tools import find, first_line, run
from .server import Server

# Everything in memory, nothing in the background, and no wait for a disk.
SETTINGS = [
    "listen_addresses=",
    "fsync=off",
    "shared_buffers=1GB",
    "autovacuum=off",
    "max_wal_size=8GB",
    "jit=off",
    "max_connections=50",
]

# As in tests/postgres.rs: the database's own types for hashes, times, arrays, networks and JSON.
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

# What the keys of this package are, and nothing else.
PLAIN_TABLE = """
CREATE UNLOGGED TABLE exported AS SELECT
    sha256(convert_to('key-' || n, 'UTF8')) AS key_hash, 'id_' || n AS key_id, 'owner-' || n % 50000 AS owner,
    'active' AS status, '100/s burst 200' AS limits
FROM generate_series(1, {rows}) AS n"""


class Postgres(Server):
    label, target = "PostgreSQL SELECT", "postgres"
    packages = {"postgres": "postgresql"}
    # Not waiting for its clients.
    stop_signal = signal.SIGINT

    def __init__(self, place, name="postgres"):
        super().__init__(place, name)
        self.socket = self.directory / ".s.PGSQL.5432"
        if os.geteuid() == 0:
            # It refuses to run as root; Debian's package brings a user.
            try:
                account = pwd.getpwnam("postgres")
            except KeyError:
                return
            os.chown(self.directory, account.pw_uid, account.pw_gid)
            self.user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def command(self):
        data = self.directory / "data"
        run([find("initdb"), "-A", "trust", "-U", "postgres", "-N", "-D", data], cwd="/", **(self.user or {}))
        return [
            find("postgres"),
            "-D",
            data,
            "-k",
            self.directory,
            *(part for setting in SETTINGS for part in ("-c", setting)),
        ]

    def wait(self):
        super().wait()
        self.until("it answers", self.answers, every=0.1)

    def answers(self):
        done = subprocess.run(self.psql_command("SELECT 1"), capture_output=True, cwd="/", **(self.user or {}))
        return done.returncode == 0

    def load(self, count):
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
            **(self.user or {})
        )
        for first, block in blocks(count):
            text = block.hex().encode()
            copy.stdin.writelines(
                b"\\x%s,%s\n" % (text[at * 64 : at * 64 + 64], record(first + at))
                for at in range(len(text) // 64)
            )
        copy.stdin.close()
        if copy.wait() != 0:
            raise RuntimeError("PostgreSQL does not take the keys")
        self.psql("ALTER TABLE api_keys ADD PRIMARY KEY (key_hash)")
        self.psql("VACUUM (ANALYZE, FREEZE) api_keys")

    def psql_command(self, sql):
        return [
            find("psql"),
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-h",
            self.directory,
            "-c",
            sql,
        ]

    def psql(self, sql):
        """Seconds that it took."""
        command = self.psql_command(sql)
        start = time.monotonic()
        run(command, cwd="/", **(self.user or {}))
        return time.monotonic() - start

    def version(self):
        return re.sub(
            r"^postgres \(PostgreSQL\) (\S+).*", r"PostgreSQL \1", first_line([find("postgres"), "--version"])
        )
