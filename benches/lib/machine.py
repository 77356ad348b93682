"""The machine under measurement: its description, caches and memory."""

import mmap, os, platform, re
from pathlib import Path

from .tools import log

# A higher load average means that other programs run and distort the figures.
MAX_LOAD_AVERAGE = 0.7
# The smallest page size in bytes.
PAGE = 4096
# Seconds after which a virtual machine has returned freed memory to its host.
RECLAIM_DELAY = 4.0


def describe():
    """The machine's facts, as result files carry them."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return {
        "processor": model.group(1).strip() if model else platform.machine(),
        "processors": len(usable_cpus()),
        "memory_gib": round(memory("MemTotal") / 2**30),
        "kernel": f"Linux {platform.release()}",
    }


def usable_cpus():
    return sorted(os.sched_getaffinity(0))


def memory(field="MemAvailable"):
    """A field of /proc/meminfo, in bytes."""
    text = Path("/proc/meminfo").read_text()
    return int(re.search(rf"^{field}:\s+(\d+) kB$", text, re.M).group(1)) * 1024


def prefault(size):
    """Writes to `size` bytes of memory and frees them, right before a program needs as much.

    A virtual machine may return free memory to its host (free page reporting). The next program that
    touches it waits for the host, several times as long as for the measured system. Without this, a
    figure would depend on the host and on how long the machine was idle.
    """
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        memory[::PAGE] = bytes(len(range(0, size, PAGE)))


def cache_size(level):
    """Bytes of the first processor's L2 or L3 cache; None if the system does not report it."""
    for index in Path(f"/sys/devices/system/cpu/cpu{usable_cpus()[0]}/cache").glob("index*"):
        read = lambda name: (index / name).read_text().strip()
        if read("level") == str(level) and read("type") != "Instruction":
            return int(read("size").rstrip("K")) * 1024
    return None


def warn_if_busy():
    if os.getloadavg()[0] > MAX_LOAD_AVERAGE:
        log("warning: other programs keep this machine busy, so the figures will be noisy")
