"""Base class of the measured servers: a pinned child process that listens on a Unix socket."""

import contextlib, os, re, resource, signal, socket, subprocess, time
from pathlib import Path

# Seconds that a server may take to start and load its keys, or to finish any other operation.
TIMEOUT = 300
# Seconds that a server may take to stop before it is killed.
STOP_TIMEOUT = 10


class ServerStartError(RuntimeError):
    """The server exited or did not become ready. `exit_code` is None if it still ran."""

    def __init__(self, message, exit_code):
        super().__init__(message)
        self.exit_code = exit_code


class Server:
    # The name in tables, and the argument of `keyward-bench --target`.
    label = target = None
    # {program: Debian package} of the programs that the server needs.
    packages = {}
    # Options of subprocess for the user that the server runs as.
    user_options = {}
    stop_signal = signal.SIGTERM

    def __init__(self, workdir, name):
        self.workdir, self.name = workdir, name
        self.directory = workdir.path(name)
        self.directory.mkdir(mode=0o755)
        self.socket = self.directory / "socket"
        self.process = None

    def command(self):
        raise NotImplementedError

    def load_keys(self, count):
        """Sends the keys to a server that does not read them from a file."""

    def version(self):
        return ""

    @contextlib.contextmanager
    def running(self, key_count=0, cpus=None):
        """Starts the server, and stops it at the end of the block."""
        try:
            self.start(key_count, cpus)
            yield self
        finally:
            self.stop()

    def start(self, key_count, cpus=None):
        """Starts the process, pinned to `cpus` (default: the first processor), and loads its keys."""
        cpus = cpus or {self.workdir.first_cpu}
        with open(self.directory / "log", "wb") as output:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                preexec_fn=lambda: prepare_child(cpus),
                **self.user_options,
            )
        self.wait_until_ready()
        self.load_keys(key_count)

    def wait_until_ready(self):
        self.wait_until("it listens", self.is_listening)

    def wait_until(self, condition, is_met, interval=0.02):
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            if is_met():
                return
            time.sleep(interval)
        message = f"{self.name}: gave up waiting until {condition}; its log:\n{self.read_log()}"
        raise ServerStartError(message, self.process.poll())

    def is_listening(self):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(self.socket))
            return True
        return False

    def read_log(self):
        return (self.directory / "log").read_text(errors="replace").strip()

    def pin(self, cpus, thread_prefix=""):
        """Pins the threads whose names have a prefix, of the server and of its child processes."""
        for pid in process_tree(self.process.pid):
            with contextlib.suppress(OSError):
                for tid in os.listdir(f"/proc/{pid}/task"):
                    with contextlib.suppress(OSError):
                        if Path(f"/proc/{pid}/task/{tid}/comm").read_text().startswith(thread_prefix):
                            os.sched_setaffinity(int(tid), cpus)

    def memory(self, field):
        """A field of /proc/PID/status (VmRSS, VmHWM, VmPTE), in bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{field}:\s+(\d+) kB$", text, re.M).group(1)) * 1024

    def stop(self):
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def prepare_child(cpus):
    """Runs in the child before exec: pins it and raises its limit of descriptors."""
    os.sched_setaffinity(0, cpus)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def process_tree(pid):
    """The pids of a process and all its descendants."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text(errors="replace")
                parents[int(entry)] = int(stat.rsplit(") ", 1)[1].split()[1])
    pids = [pid]
    for process in pids:
        # The list grows while it is iterated, so that grandchildren are found too.
        pids += [child for child, parent in parents.items() if parent == process]
    return pids


@contextlib.contextmanager
def connect(path):
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(TIMEOUT)
        stream.connect(str(path))
        yield stream
