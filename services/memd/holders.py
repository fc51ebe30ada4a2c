"""Who is attached to memd, and who was and may attach again."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from math import inf
from typing import Protocol, TypeAlias

import structlog

from services.memd.processes import Unwatched, seen_process, watch_end
from tandem.clock import Clock
from tandem.errors import NotFoundError, NotReadyError, StorageLostError
from tandem.kv.ledger import Ledger
from tandem.kv.store import HolderProcess, Holding

REATTACH_S = 30.0
"""How long a holder that has gone is waited for where nobody can see its process: as long as gRPC's keepalive waits
for one that is silent."""

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


class EndWatch(Protocol):
    """Of a process, until its end."""

    def forget(self) -> None:
        """Its end is no matter any more."""
        ...


EndWatcher: TypeAlias = Callable[[HolderProcess, Callable[[], None]], EndWatch | Unwatched]


class Intake(Enum):
    """Whether holders come and go."""

    OPEN = auto()
    CLOSED = auto()  # memd ends: what its holders have is there for the next memd


@dataclass(frozen=True, slots=True)
class _Absence:
    """Until the end of the process, or a moment where that cannot be seen."""

    watched: EndWatch | None = None
    given_up_s: float = inf

    def is_over(self, now_s: float) -> bool:
        """Whether the moment has come."""
        return now_s > self.given_up_s


class Holders:
    """The ledger's holders are attached, or absent: their attachment has ended, with memd or with the connection.

    An absent one may be writing, so its blocks stay its own until its process has ended. Where memd cannot see the
    process it is given up after a while.
    """

    def __init__(self, ledger: Ledger, clock: Clock, watch: EndWatcher = watch_end) -> None:
        self._ledger = ledger
        self._clock = clock
        self._watch = watch
        self._intake = Intake.OPEN
        self._attached: dict[int, LocalAttachment] = {}
        self._absent: dict[int, _Absence] = {}
        for holder in ledger.statistics().holders:
            self._miss(holder.holder_id)

    @property
    def absent(self) -> frozenset[int]:
        """Who is expected back."""
        return frozenset(self._absent)

    def attach(self, service: str, pid: int) -> LocalAttachment:
        """A new holder. LeaseError when too many are attached. NotReadyError: memd is about to end."""
        self._check_open()
        attachment = LocalAttachment(self._ledger.add_holder(service, pid))
        self._attached[attachment.holder_id] = attachment
        _log.info("holder.attached", holder_id=attachment.holder_id, holder=service, pid=pid)
        return attachment

    def attach_again(self, holder_id: int) -> LocalAttachment:
        """An absent holder, or one whose stream this memd does not know to be broken yet.

        StorageLostError: it was given up, and its blocks may be others'. NotReadyError: memd is about to end.
        """
        self._check_open()
        before = self._attached.get(holder_id)
        if before is not None:
            before.end()
        elif holder_id not in self._absent:
            raise StorageLostError(f"memd has given holder {holder_id} up: its blocks may be others'")
        self._expect_no_more(holder_id)
        self._attached[holder_id] = attachment = LocalAttachment(holder_id)
        _log.info("holder.attached_again", holder_id=holder_id)
        return attachment

    def admit(self, holder_id: int, pid: int) -> bool:
        """Whether a holder is attached; if so, its process is from now on the one that the kernel calls `pid`."""
        if holder_id not in self._attached:
            return False
        process = seen_process(pid)
        if process is not None:
            self._ledger.processes.note(holder_id, process)
        return True

    def detach(self, attachment: LocalAttachment) -> None:
        """The attachment has ended. Its holder is absent from now on, unless it has another, or memd itself ends."""
        holder_id = attachment.holder_id
        if self._intake is Intake.OPEN and self._attached.get(holder_id) is attachment:
            del self._attached[holder_id]
            if self._ledger.processes.get(holder_id) is None:
                self._drop(holder_id)
            else:
                self._miss(holder_id)

    def leave(self, holder_id: int) -> None:
        """A holder says that it is done: it writes nothing more. NotFoundError: it is not attached."""
        self.check(holder_id)
        self._attached.pop(holder_id).end()
        self._drop(holder_id)

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
        """Drops those that memd cannot see and that have not come back in time."""
        now_s = self._clock.now()
        late = [each for each, absence in self._absent.items() if absence.is_over(now_s)]
        for holder_id in sorted(late):
            _log.warning("holder.given_up", holder_id=holder_id)
            self._drop(holder_id)

    def close(self) -> None:
        """memd ends: every attachment does, and no holder is gone by that."""
        self._intake = Intake.CLOSED
        for attachment in self._attached.values():
            attachment.end()
        for holder_id in tuple(self._absent):
            self._expect_no_more(holder_id)

    def _miss(self, holder_id: int) -> None:
        """It is absent from now on, or gone if its process is."""
        process = self._ledger.processes.get(holder_id)
        watched = Unwatched.UNSEEN if process is None else self._watch(process, partial(self._drop, holder_id))
        if watched is Unwatched.ENDED:
            self._drop(holder_id)
        elif watched is Unwatched.UNSEEN:
            self._absent[holder_id] = _Absence(given_up_s=self._clock.now() + REATTACH_S)
        else:
            self._absent[holder_id] = _Absence(watched=watched)
            _log.info("holder.missed", holder_id=holder_id)

    def _drop(self, holder_id: int) -> None:
        """It is gone, and what it had is free."""
        self._expect_no_more(holder_id)
        _log.info("holder.gone", holder_id=holder_id, num_freed_blocks=self._ledger.drop_holder(holder_id))

    def _expect_no_more(self, holder_id: int) -> None:
        absence = self._absent.pop(holder_id, None)
        if absence is not None and absence.watched is not None:
            absence.watched.forget()

    def _check_open(self) -> None:
        if self._intake is Intake.CLOSED:
            raise NotReadyError("memd is about to end")
