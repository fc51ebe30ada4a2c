"""What a piece of work may use at most: memory, processor time, descriptors."""

import gc
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def bounded(num_bytes: int, cpu_s: float) -> Iterator[None]:
    """No more address space than this on top; more processor time than this, or a file left open, is an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before, started_s = open_files(), time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - started_s < cpu_s
    if not open_files().items() <= before.items():
        gc.collect()  # what an error's trace refers to is not left open
    assert open_files().items() <= before.items()  # of what others left, some may be closed meanwhile


def open_files() -> dict[int, str]:
    """This process's descriptors and what they are."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            found[int(link.name)] = str(link.readlink())
    return found


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
