"""The machine that is measured on: what a header has to say of it, and what a size is compared with."""

import mmap, os, platform, re
from pathlib import Path

from .tools import log

# Above this, something else is running: figures would be of that too.
BUSY = 0.7


def facts():
    """What figures hold for."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return {
        "processor": model.group(1).strip() if model else platform.machine(),
        "processors": len(usable()),
        "memory_gib": round(memory("MemTotal") / 2**30),
        "kernel": f"Linux {platform.release()}",
    }


def usable():
    return sorted(os.sched_getaffinity(0))


def memory(what="MemAvailable"):
    """Bytes, by a name of /proc/meminfo."""
    return int(re.search(rf"^{what}:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.M).group(1)) * 1024


# The smallest page, and more than a virtual machine takes to give memory back that has been freed.
PAGE, GIVEN_BACK = 4096, 4.0


def touch(size):
    """Writes to so much memory, and frees it: right before what is about to need as much.

    A virtual machine may give what is free back to its host a moment later (free page reporting). Whoever writes to it first then waits
    for the host, several times as long as for the system that is measured: a figure would be of the host, and of how long the
    machine was idle before.
    """
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        memory[::PAGE] = bytes(len(range(0, size, PAGE)))


def cache(level):
    """Bytes of the first processor's cache of a level (2 or 3); None where the system does not say."""
    for index in Path(f"/sys/devices/system/cpu/cpu{usable()[0]}/cache").glob("index*"):
        read = lambda name: (index / name).read_text().strip()
        if read("level") == str(level) and read("type") != "Instruction":
            return int(read("size").rstrip("K")) * 1024
    return None


def warn_if_busy():
    if os.getloadavg()[0] > BUSY:
        log("this machine is busy with something else: the figures will be noise")
