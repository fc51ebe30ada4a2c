"""Sees to it that a keeper has memd's segments, for as long as memd serves: also a keeper that was started anew."""

import asyncio
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

import structlog

from services.memd.keeping import deposit, held_epoch
from tandem.device.memory import SegmentHandle
from tandem.errors import DeviceError, NotFoundError, NotReadyError

LOOK_S = 2.0

_log = structlog.get_logger()


class Custody(Enum):
    """What the end of memd would mean for the storage."""

    UNKNOWN = "unknown"
    KEPT = "kept"
    ALONE = "alone"  # no keeper: it would end with memd
    TIED = "tied"  # memory of a kind that ends with memd in any case


class Depositor:
    """One memd's segments, of one epoch. Each change of custody is one event."""

    def __init__(self, path: Path, epoch: int, segments: Sequence[SegmentHandle]) -> None:
        """`path`: the keeper's socket."""
        self.custody = Custody.UNKNOWN
        self._path = path
        self._epoch = epoch
        self._segments = tuple(segments)

    async def run(self) -> None:
        """For ever, or until it is clear that there is nothing to keep."""
        while True:
            self._note(*await asyncio.to_thread(self._look))
            if self.custody is Custody.TIED:
                return
            await asyncio.sleep(LOOK_S)

    def _look(self) -> tuple[Custody, str]:
        tied = sorted(segment.name for segment in self._segments if segment.kind.ends_with_its_maker)
        if tied:
            return Custody.TIED, f"{', '.join(tied)}: memory of this kind ends with memd"
        try:
            if held_epoch(self._path) != self._epoch:
                deposit(self._path, self._epoch, self._segments)
        except (NotFoundError, NotReadyError, DeviceError) as error:
            return Custody.ALONE, f"the storage would end with memd: {error}"
        return Custody.KEPT, ""

    def _note(self, custody: Custody, reason: str) -> None:
        if custody is self.custody:
            return
        self.custody = custody
        if custody is Custody.KEPT:
            _log.info("storage.kept", epoch=self._epoch)
        else:
            _log.warning("storage.not_kept", custody=custody.value, reason=reason)
