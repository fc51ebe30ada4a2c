"""Whether the other phase is at work: a file of the run directory with a time for each, until which it says it is.

Who dies or hangs says nothing more, and so is idle soon; nobody waits for anybody's word.
"""

import mmap
import os
import struct
from pathlib import Path

from tandem.errors import DeviceError
from tandem.types import Phase

_TIME = struct.Struct("<d")
_PLACE = {Phase.PREFILL: 0, Phase.DECODE: _TIME.size}
_PEER = {Phase.PREFILL: Phase.DECODE, Phase.DECODE: Phase.PREFILL}


class Presence:
    """One phase's view; each writes its own time, of the machine's monotonic clock, and reads the other's."""

    def __init__(self, run_dir: Path, phase: Phase) -> None:
        """DeviceError when there is no place for the file."""
        try:
            descriptor = os.open(run_dir / "presence", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, 2 * _TIME.size)
                self._times = mmap.mmap(descriptor, 2 * _TIME.size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DeviceError(f"cannot meet the other phase in {run_dir}: {error.strerror}") from error
        self._phase = phase

    def busy_until(self, until_s: float) -> None:
        """This phase is at work until then, unless it says otherwise."""
        _TIME.pack_into(self._times, _PLACE[self._phase], until_s)

    def peer_is_busy(self, now_s: float) -> bool:
        """As far as it has said."""
        (until_s,) = _TIME.unpack_from(self._times, _PLACE[_PEER[self._phase]])
        return bool(now_s < until_s)
