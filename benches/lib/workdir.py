"""A run's working directory, the keyward binary that it measures, and its processors."""

import contextlib, os, tempfile
from pathlib import Path


class WorkDir:
    def __init__(self, directory, binary, cpus):
        self.directory, self.binary = Path(directory), binary
        # The client runs on the first processor. Servers do too, or on the second if a case
        # separates them. The second is None if there is only one.
        self.first_cpu, self.second_cpu = cpus

    @property
    def loadgen(self):
        """The load generator, which cargo builds beside the daemon."""
        return Path(self.binary).with_name("keyward-bench")

    @property
    def cpus(self):
        """All processors of the run."""
        return {self.first_cpu, self.second_cpu} - {None}

    def path(self, name):
        return self.directory / name


@contextlib.contextmanager
def temporary(binary, cpus):
    """A working directory that is removed at the end.

    Other users may read it, because PostgreSQL does not run as root.
    """
    with tempfile.TemporaryDirectory(prefix="keyward-benches-") as directory:
        os.chmod(directory, 0o755)
        yield WorkDir(directory, binary, cpus)
