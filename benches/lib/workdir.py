"""Where a run keeps its files, which binary it measures, and on which processors the ends are."""

import contextlib, os, tempfile
from pathlib import Path


class Place:
    def __init__(self, directory, binary, pin):
        self.directory, self.binary = Path(directory), binary
        # The client's processor; and the servers' where the ends are apart, if there is a second.
        self.first, self.second = pin

    def path(self, name):
        return self.directory / name


@contextlib.contextmanager
def temporary(binary, pin):
    """A place that is gone afterwards. Other users can look into it: PostgreSQL does not run as root."""
    with tempfile.TemporaryDirectory(prefix="keyward-benches-") as directory:
        os.chmod(directory, 0o755)
        yield Place(directory, binary, pin)
