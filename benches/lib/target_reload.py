"""The target for reloads: the time until a PostgreSQL export is in force."""

import os, time

from . import format, machine
from .daemon import Keyward
from .postgres import PLAIN_TABLE, REAL_TABLE, Postgres
from .target_table import Measurement, Row

def csv_reload(workdir, args):
    """`reload`: renaming and reloading an export, against the COPY that wrote it.

    The daemon has the previous export in force, as in production.
    """
    key_count, rows, versions = args.keys or 1_000_000, [], []
    for number, (name, table) in enumerate(
        (("a real table's columns", REAL_TABLE), ("hash, id, owner, limit", PLAIN_TABLE))
    ):
        postgres = Postgres(workdir, f"postgres-{number}")
        with postgres.running(cpus=workdir.cpus):
            versions.append(postgres.version())
            postgres.psql(table.format(rows=key_count))
            postgres.psql("VACUUM (ANALYZE, FREEZE) exported")
            new, source = postgres.directory / "new.csv", workdir.path(f"exported-{number}.csv")
            copy_to_file = f"COPY exported TO '{new}' WITH (FORMAT csv, HEADER)"
            postgres.psql(copy_to_file)
            os.rename(new, source)
            daemon = Keyward(workdir, f"keyward-{number}", source)
            with daemon.running(cpus=workdir.cpus):
                copies, reloads = [], []
                for round_number in range(args.rounds):
                    # Each export differs from the previous one, as real exports do.
                    status = ["revoked", "active"][round_number % 2]
                    postgres.psql(f"UPDATE exported SET status = '{status}' WHERE key_id = 'id_1'")
                    copies.append(postgres.psql(copy_to_file))
                    # A reload builds a second table before it frees the first.
                    machine.prefault(daemon.memory("VmRSS"))
                    start = time.monotonic()
                    os.rename(new, source)
                    daemon.reload()
                    reloads.append(time.monotonic() - start)
                versions.append(daemon.version())
        rows.append(
            Row(
                f"{format.count(key_count)} rows of CSV ({name}), from rename to acknowledged",
                Measurement("", reloads, format.seconds),
                Measurement("PostgreSQL's COPY that wrote it", copies, format.seconds),
                ("<=", 1),
                f"{args.rounds} rounds; the daemon already serves the previous export; both programs may use "
                "all processors; as much memory as the daemon holds is written to and freed right before "
                "the reload (see `compiled`)",
            )
        )
    return rows, list(dict.fromkeys(versions)), []
