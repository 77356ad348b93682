"""keyward itself, with one worker unless its configuration says otherwise, and no configuration of the machine's."""

import json, os, subprocess, threading, time
from pathlib import Path

from .tools import first_line, run
from .server import PATIENCE, Server

# The setting that makes workers spin before they sleep: the longest that they wait for a request that way.
BUSY_POLL = 'busy_poll = "50us"'
# The exit code of a daemon whose configuration is wrong.
BAD_CONFIGURATION = 78
# How often memory is looked at where its peak cannot be asked for.
GLANCE = 0.005


class Keyward(Server):
    label, target = "keyward", "keyward"
    # Lines under [server].
    settings = "workers = 1"
    # Other tables of the configuration.
    rest = ""
    # Of the snapshot that it has served last, as far as is known.
    generation = 0

    def __init__(self, place, name="keyward", source=None, settings=None):
        super().__init__(place, name)
        self.source = source or place.path("keys.csv")
        self.settings = settings or self.settings

    def command(self):
        config = self.directory / "keyward.toml"
        # Nobody but the one who asks for a reload should cause one.
        config.write_text(f'[server]\n{self.settings}\n[source]\npoll = "1h"\n[log]\nlevel = "error"\n{self.rest}')
        return [
            self.place.binary,
            "serve",
            "--config",
            config,
            "--source",
            self.source,
            "--socket",
            self.socket,
            "--state-dir",
            self.directory,
        ]

    def wait(self):
        self.until("it listens", self.listens)
        self.until("it has its keys", self.ready, every=0.05)

    def ready(self):
        status = self.status() or {}
        self.generation = status.get("generation", 0)
        return status.get("ready", False)

    def status(self):
        done = subprocess.run(
            [self.place.binary, "status", "--socket", self.socket, "--json"], capture_output=True, text=True
        )
        return json.loads(done.stdout) if done.returncode == 0 else None

    def reload(self):
        """Has the source, which has changed, read again, and returns when it is in force: seconds of the command."""
        command = [self.place.binary, "reload", "--admin-socket", self.directory / "admin.sock", "--json"]
        start = time.monotonic()
        outcome = json.loads(run(command, timeout=PATIENCE))
        took = time.monotonic() - start
        # The watch may have been first: then it is in force as well, and was read twice.
        before, self.generation = self.generation, outcome["generation"]
        if not outcome["accepted"] or self.generation == before:
            raise RuntimeError(f"the reload was not what is to be measured: {outcome}")
        return took

    def peak_of(self, action):
        """Bytes of resident memory, at most, while `action` runs."""
        try:
            # The kernel's own high-water mark, from now on; of a process that is not dumpable, for root only.
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        except OSError:
            return self.watched(action)
        action()
        return self.memory("VmHWM")

    def watched(self, action):
        peak, done = 0, threading.Event()

        def watch():
            nonlocal peak
            while not done.wait(GLANCE):
                peak = max(peak, self.memory("VmRSS"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            action()
        finally:
            done.set()
            watcher.join()
        return peak

    def version(self):
        return first_line([self.place.binary, "--version"])


class Spinning(Keyward):
    """The same, whose worker spins. It waits where its client does not: on two processors."""

    settings = Keyward.settings + "\n" + BUSY_POLL


def compile_export(place, source, output):
    """A compiled snapshot of an export."""
    run([place.binary, "compile", source, "--output", output], env={**os.environ, "KEYWARD_CONFIG": "/dev/null"})
