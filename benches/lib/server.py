"""A server that is measured: a process of ours at a Unix socket in a directory of its own, pinned, and stopped by its pid."""

import contextlib, os, re, resource, signal, socket, subprocess, time
from pathlib import Path

# How long a server may take to be there with all its keys, or to do anything that it is asked to.
PATIENCE = 300
# How long one may take to stop before it is killed.
STOPPING = 10


class DoesNotStart(RuntimeError):
    """It has ended or does not listen; `status` is its exit code."""

    def __init__(self, text, status):
        super().__init__(text)
        self.status = status


class Server:
    # Its name in tables; what `keyward bench --target` calls it.
    label = target = None
    # {program: Debian's package}, of programs that are not ours.
    packages = {}
    # As whom it runs, for subprocess.
    user = None
    stop_signal = signal.SIGTERM

    def __init__(self, place, name):
        self.place, self.name = place, name
        self.directory = place.path(name)
        self.directory.mkdir(mode=0o755)
        self.socket = self.directory / "socket"
        self.process = None

    def command(self):
        raise NotImplementedError

    def load(self, count):
        """Gives it the keys, where it does not read them itself."""

    def version(self):
        return ""

    def start(self, count, processors=None):
        """The process, pinned from its first moment on (None: to the first processor), and its keys."""
        processors = processors or {self.place.first}
        with open(self.directory / "log", "wb") as output:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                preexec_fn=lambda: prepare(processors),
                **(self.user or {}),
            )
        self.wait()
        self.load(count)

    def wait(self):
        self.until("it listens", self.listens)

    def until(self, what, ready, every=0.02):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            if ready():
                return
            time.sleep(every)
        text = f"{self.name}: waited in vain until {what}:\n{self.log()}"
        raise DoesNotStart(text, self.process.poll())

    def listens(self):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self.socket))
            return True
        return False

    def log(self):
        return (self.directory / "log").read_text(errors="replace").strip()

    def pin(self, processors, thread=""):
        """Moves its threads whose name begins so, and those of the processes that it started."""
        for process in family(self.process.pid):
            with contextlib.suppress(OSError):
                for tid in os.listdir(f"/proc/{process}/task"):
                    with contextlib.suppress(OSError):
                        if Path(f"/proc/{process}/task/{tid}/comm").read_text().startswith(thread):
                            os.sched_setaffinity(int(tid), processors)

    def memory(self, what):
        """Bytes, by a name of /proc/PID/status: VmRSS, VmHWM, VmPTE."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{what}:\s+(\d+) kB$", text, re.M).group(1)) * 1024

    def stop(self):
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def prepare(processors):
    """In the child, before it becomes the server: where it runs, and as many descriptors as it may have."""
    os.sched_setaffinity(0, processors)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def family(pid):
    """A process and all that descend from it."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text(errors="replace")
                parents[int(entry)] = int(stat.rsplit(") ", 1)[1].split()[1])
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


@contextlib.contextmanager
def connected(path):
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(PATIENCE)
        stream.connect(str(path))
        yield stream
