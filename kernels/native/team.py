"""Which core each of the threads runs on that compute together."""

from collections.abc import Sequence
from ctypes import CDLL, c_int32
from functools import cache

from kernels.native.levels import NativeUnavailableError, choose_level
from kernels.native.library import load_library

HIGHEST_CORE = 1023  # that a `cpu_set_t` can name


def place_team(cores: Sequence[int]) -> bool:
    """Puts the calling thread on the first of `cores`, and each other one that it computes with on the next.

    They stay there until they are put elsewhere. False: not all of them could be; where they are is not known.
    """
    library = _library()
    if library is None or not cores or not all(0 <= core <= HIGHEST_CORE for core in cores):
        return False
    return not library.tandem_place_team((c_int32 * len(cores))(*cores), len(cores))


@cache
def _library() -> CDLL | None:
    try:
        return load_library(choose_level())
    except NativeUnavailableError:
        return None
