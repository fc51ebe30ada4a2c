"""The threads that one thread computes with, and the cores that they have.

They wait for each other many times a layer. Two on one core take turns there, and a step many times as long, while
the other core stands free or does what matters less: the kernel moves neither of them soon. So each has its own.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tandem.device.cpu.cores import CoreShare
from tandem.errors import DeviceError

PlaceTeam = Callable[[Sequence[int]], bool]
"""Puts the calling thread on the first core and each other one that it computes with on the next; False: it cannot."""


def leave_team(cores: Sequence[int]) -> bool:
    """A `PlaceTeam` where nobody can tell the threads apart."""
    return False


def use_share(share: CoreShare, place: PlaceTeam) -> None:
    """For the calling thread and those that it computes with; the first core is the caller's own.

    Where there is not a core for each thread, or `place` cannot, they may run on any of the share's. DeviceError.
    """
    import torch

    torch.set_num_threads(share.num_threads)
    if len(share.cores) == share.num_threads and place(share.cores):
        return
    if share.num_threads == 1:
        bind_thread(0, share.cores)
    else:
        bind_all_threads(share.cores)


def bind_all_threads(cores: Sequence[int]) -> None:
    """Of this process, until none is new: one that starts meanwhile may have inherited the old set. DeviceError."""
    bound: set[int] = set()
    while new := _thread_ids() - bound:
        for thread_id in new:
            bind_thread(thread_id, cores)
        bound |= new


def bind_thread(thread_id: int, cores: Sequence[int]) -> None:
    """0: the calling one; nothing happens when it has ended. DeviceError when the cores are not to be had."""
    try:
        os.sched_setaffinity(thread_id, cores)
    except ProcessLookupError:
        return
    except OSError as error:
        raise DeviceError(f"cannot run on cores {tuple(cores)}: {error.strerror}") from error


def _thread_ids() -> set[int]:
    return {int(entry.name) for entry in Path("/proc/self/task").iterdir()}
