"""The machine: which cores to use, what a process group consumes, what to say about it in the report."""

import contextlib
import os
import platform
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_FLUSHES = 200


@dataclass(frozen=True, slots=True)
class Cores:
    """The gateway has a core to itself; load generator and upstream share the second one where there is no third."""

    gateway: int
    load: int
    upstream: int


def choose_cores() -> Cores:
    """Choose among the cores this process may run on.

    Raises:
        SystemExit: there is only one; every number would be about the scheduler.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) == 1:
        raise SystemExit("bench: two cores are needed, one for the gateway and one for the load")
    gateway, load, *more = allowed
    return Cores(gateway=gateway, load=load, upstream=more[0] if more else load)


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Run on `core`; processes started meanwhile stay there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _stat_fields(group: int) -> Iterator[list[str]]:
    """The fields of /proc/PID/stat behind the command's name, for each process of the group."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                yield fields


def resident_bytes(group: int) -> int:
    """Resident memory of a process group, summed over its processes; shared pages count once for each."""
    return sum(int(fields[21]) * _PAGE_BYTES for fields in _stat_fields(group))


def cpu_seconds(group: int) -> float:
    """Processor time of a process group so far, user and system."""
    return sum(int(fields[11]) + int(fields[12]) for fields in _stat_fields(group)) / _TICKS_PER_S


def flush_us(directory: Path) -> float:
    """Median time of one small write with fdatasync in `directory`: what a durable row waits for at the least."""
    path = directory / "flush"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        os.pwrite(descriptor, bytes(4096 * _FLUSHES), 0)
        os.fsync(descriptor)
        times = []
        for block in range(_FLUSHES):
            start = time.perf_counter_ns()
            os.pwrite(descriptor, b"x" * 4096, 4096 * block)
            os.fdatasync(descriptor)
            times.append(time.perf_counter_ns() - start)
    finally:
        os.close(descriptor)
        path.unlink()
    return statistics.median(times) / 1000


def describe() -> str:
    """Say what this machine is, without its name."""
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    virtual = "hypervisor" in Path("/proc/cpuinfo").read_text()
    memory_gib = os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model[1] if model else platform.machine()}"
        f"{' (virtual machine)' if virtual else ''}, {memory_gib:.0f} GiB, "
        f"Linux {platform.release().split('-')[0]}"
    )
