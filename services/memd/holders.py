"""Who is attached to memd, and who was when the memd before ended and may attach again."""

import asyncio
from enum import Enum, auto

import structlog

from tandem.clock import Clock
from tandem.errors import NotFoundError, NotReadyError, StorageLostError
from tandem.kv.ledger import Ledger
from tandem.kv.store import Holding

REATTACH_S = 30.0
"""How long a holder of the memd before is waited for: as long as gRPC's keepalive waits for one that is silent."""

_log = structlog.get_logger()


class LocalAttachment:
    """One holder. What is asked back of it adds up to the largest request until the holder hears of it."""

    def __init__(self, holder_id: int) -> None:
        self.holder_id = holder_id
        self._num_asked = 0
        self._ended = False
        self._news = asyncio.Event()

    def ask(self, num_blocks: int) -> None:
        """Other holders lack `num_blocks`."""
        self._num_asked = max(self._num_asked, num_blocks)
        self._news.set()

    def end(self) -> None:
        """memd is about to end, or another stream is the holder's attachment now."""
        self._ended = True
        self._news.set()

    async def next_reclaim(self) -> int:
        """Blocks asked back. NotReadyError when the attachment has ended."""
        await self._news.wait()
        if self._ended:
            raise NotReadyError("memd is about to end")
        self._news.clear()
        num_asked, self._num_asked = self._num_asked, 0
        return num_asked


class Intake(Enum):
    """Whether holders come and go."""

    OPEN = auto()
    CLOSED = auto()  # memd ends: what its holders have is there for the next memd


class Holders:
    """The ledger's holders are attached, or absent: expected back since memd was started over an existing ledger.

    Whether an absent one is dead nobody can tell, so its blocks stay its own until it is given up: it may be writing.
    """

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._intake = Intake.OPEN
        self._attached: dict[int, LocalAttachment] = {}
        self._absent = {holder.holder_id for holder in ledger.statistics().holders}
        self._given_up_s = clock.now() + REATTACH_S

    def attach(self, service: str, pid: int) -> LocalAttachment:
        """A new holder. LeaseError when too many are attached. NotReadyError: memd is about to end."""
        self._check_open()
        attachment = LocalAttachment(self._ledger.add_holder(service, pid))
        self._attached[attachment.holder_id] = attachment
        _log.info("holder.attached", holder_id=attachment.holder_id, holder=service, pid=pid)
        return attachment

    def attach_again(self, holder_id: int) -> LocalAttachment:
        """A holder of the memd before, or one whose stream this memd does not know to be broken yet.

        StorageLostError: it was given up, and its blocks may be others'. NotReadyError: memd is about to end.
        """
        self._check_open()
        before = self._attached.get(holder_id)
        if before is not None:
            before.end()
        elif holder_id not in self._absent:
            raise StorageLostError(f"memd has given holder {holder_id} up: its blocks may be others'")
        self._absent.discard(holder_id)
        self._attached[holder_id] = attachment = LocalAttachment(holder_id)
        _log.info("holder.attached_again", holder_id=holder_id)
        return attachment

    def detach(self, attachment: LocalAttachment) -> None:
        """The attachment has ended. Its holder is gone unless it has another, or memd itself ends."""
        holder_id = attachment.holder_id
        if self._intake is Intake.OPEN and self._attached.get(holder_id) is attachment:
            del self._attached[holder_id]
            _log.info("holder.gone", holder_id=holder_id, num_freed_blocks=self._ledger.drop_holder(holder_id))

    def is_attached(self, holder_id: int) -> bool:
        """Whether it is there."""
        return holder_id in self._attached

    def ask(self, holder_id: int, num_blocks: int) -> None:
        """Of an attached holder: others lack `num_blocks`."""
        self._attached[holder_id].ask(num_blocks)

    def holding(self, holder_id: int) -> Holding:
        """What the ledger says that an attached holder has. NotReadyError and NotFoundError as of `check`."""
        self.check(holder_id)
        return self._ledger.holding(holder_id)

    def check(self, holder_id: int) -> None:
        """NotReadyError: it has not attached again yet. NotFoundError: there is no such holder."""
        if holder_id in self._attached:
            return
        if holder_id in self._absent:
            raise NotReadyError(f"holder {holder_id} has not attached again yet")
        raise NotFoundError(f"holder {holder_id} is not attached")

    def give_up_absent(self) -> None:
        """Drops those that have not come back in time."""
        if self._absent and self._clock.now() > self._given_up_s:
            absent, self._absent = sorted(self._absent), set()
            for holder_id in absent:
                num_freed = self._ledger.drop_holder(holder_id)
                _log.warning("holder.given_up", holder_id=holder_id, num_freed_blocks=num_freed)

    def close(self) -> None:
        """memd ends: every attachment does, and no holder is gone by that."""
        self._intake = Intake.CLOSED
        for attachment in self._attached.values():
            attachment.end()

    def _check_open(self) -> None:
        if self._intake is Intake.CLOSED:
            raise NotReadyError("memd is about to end")
