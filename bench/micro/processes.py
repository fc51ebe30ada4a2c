"""What the kernel says of a process: the CPU time of its threads, and its memory."""

from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
RPC_THREADS = ("grpc", "event_engine", "timer_manager", "default-executo", "resolver-execut")
KIB = 1024


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds since the process began."""

    total_s: float
    loop_s: float  # of the main thread, which runs the event loop, and of gRPC's own threads: not of those that compute


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """PSS counts a page that n processes map as 1/n, USS only those that no other maps."""

    pss_bytes: int
    pss_anonymous_bytes: int  # its own
    pss_shared_bytes: int  # of segments
    rss_bytes: int
    uss_bytes: int


def cpu_time(pid: int) -> CpuTime:
    """Threads that have ended are not in it. ProcessLookupError: there is no such process."""
    total_s = loop_s = 0.0
    for task in _entries(pid, "task"):
        try:
            seconds = int((task / "schedstat").read_text().split()[0]) / 1e9
            name = (task / "comm").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
        total_s += seconds
        if task.name == str(pid) or name.startswith(RPC_THREADS):
            loop_s += seconds
    return CpuTime(total_s, loop_s)


def memory(pid: int) -> ProcessMemory:
    """Now. ProcessLookupError: there is no such process."""
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None
    sizes = {line.partition(":")[0]: _bytes(line) for line in text.splitlines()[1:]}
    uss_bytes = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return ProcessMemory(sizes["Pss"], sizes["Pss_Anon"], sizes["Pss_Shmem"], sizes["Rss"], uss_bytes)


def num_threads(pid: int) -> int:
    """ProcessLookupError: there is no such process."""
    return len(_entries(pid, "task"))


def num_descriptors(pid: int) -> int:
    """ProcessLookupError: there is no such process."""
    return len(_entries(pid, "fd"))


def _entries(pid: int, folder: str) -> list[Path]:
    try:
        return list((PROC / str(pid) / folder).iterdir())
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None


def _bytes(line: str) -> int:
    """Of ``Pss:  1234 kB``."""
    return int(line.split()[1]) * KIB
