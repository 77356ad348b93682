"""keyward as a measured server: one worker by default, with a configuration file of its own."""

import json, os, subprocess, threading, time
from pathlib import Path

from .server import TIMEOUT, Server
from .tools import first_line, run

# The setting that lets workers spin before they sleep: the longest wait for a request by spinning.
BUSY_POLL = 'busy_poll = "50us"'
# The daemon's exit code for a bad configuration.
EXIT_BAD_CONFIGURATION = 78
# Seconds between samples of resident memory where the kernel's peak cannot be reset.
SAMPLE_INTERVAL = 0.005


class Keyward(Server):
    label, target = "keyward", "keyward"
    # Lines of the [server] table.
    server_settings = "workers = 1"
    # Further tables of the configuration.
    extra_config = ""
    # Generation of the snapshot that was last seen in force.
    generation = 0

    def __init__(self, workdir, name="keyward", source=None):
        super().__init__(workdir, name)
        self.source = source or workdir.path("keys.csv")

    def command(self):
        config = self.directory / "keyward.toml"
        # With a long polling interval, only explicit reloads take place.
        config.write_text(
            f'[server]\n{self.server_settings}\n[source]\npoll = "1h"\n[log]\nlevel = "error"\n'
            f"{self.extra_config}"
        )
        return [
            self.workdir.binary,
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

    def wait_until_ready(self):
        self.wait_until("it listens", self.is_listening)
        self.wait_until("it has loaded its keys", self.is_ready, interval=0.05)

    def is_ready(self):
        status = self.status() or {}
        self.generation = status.get("generation", 0)
        return status.get("ready", False)

    def status(self):
        """The daemon's status as a dict; None if it does not answer."""
        process = subprocess.run(
            [self.workdir.binary, "status", "--socket", self.socket, "--json"], capture_output=True, text=True
        )
        return json.loads(process.stdout) if process.returncode == 0 else None

    def reload(self):
        """Reloads a changed source. Returns the seconds until the new snapshot was in force."""
        command = [self.workdir.binary, "reload", "--admin-socket", self.directory / "admin.sock", "--json"]
        start = time.monotonic()
        outcome = json.loads(run(command, timeout=TIMEOUT))
        elapsed = time.monotonic() - start
        # If the file watcher loaded the source first, this reload loaded it a second time.
        previous, self.generation = self.generation, outcome["generation"]
        if not outcome["accepted"] or self.generation == previous:
            raise RuntimeError(f"the reload did not put a new snapshot into force: {outcome}")
        return elapsed

    def has_saved_last_good(self):
        """Whether the snapshot in force has been written to the state directory."""
        status = self.status() or {}
        return status.get("last_good", {}).get("generation") == status.get("generation", 0)

    def wait_until_last_good_saved(self):
        self.wait_until("the last good keys are saved", self.has_saved_last_good, interval=0.05)

    def peak_memory_during(self, action):
        """Peak resident memory in bytes while `action` runs."""
        try:
            # Resets the kernel's high-water mark. The process is not dumpable, so this needs root.
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        except OSError:
            return self.sampled_peak_during(action)
        action()
        return self.memory("VmHWM")

    def sampled_peak_during(self, action):
        peak, done = 0, threading.Event()

        def sample():
            nonlocal peak
            while not done.wait(SAMPLE_INTERVAL):
                peak = max(peak, self.memory("VmRSS"))

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            action()
        finally:
            done.set()
            sampler.join()
        return peak

    def version(self):
        return first_line([self.workdir.binary, "--version"])


class SpinningKeyward(Keyward):
    """keyward with a spinning worker, for a client on another processor."""

    server_settings = f"{Keyward.server_settings}\n{BUSY_POLL}"


def compile_export(workdir, source, output):
    """Writes the compiled snapshot of an export."""
    environment = {**os.environ, "KEYWARD_CONFIG": "/dev/null"}
    run([workdir.binary, "compile", source, "--output", output], env=environment)
