"""The workers of a phase, of which one serves: what is to be done when one of them says something, or ends.

A worker that asks for a successor goes on until a spare one serves. A spare one that ends before, or is killed because
it takes too long, leaves everything as it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from tandem.phase.stewardship import Role, Word


class WorkerState(Enum):
    """Where a worker is; when it ends, it is forgotten."""

    STARTING = "starting"
    SERVING = "serving"
    RETIRING = "retiring"  # another serves: it hands back what it has


_TRANSITIONS: Mapping[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STARTING: frozenset({WorkerState.SERVING}),
    WorkerState.SERVING: frozenset({WorkerState.RETIRING}),
    WorkerState.RETIRING: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker."""

    worker_id: int
    role: Role


@dataclass(frozen=True, slots=True)
class Tell:
    """Say a word to a worker."""

    worker_id: int
    word: Word


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM for a worker."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL for a worker: it may hang."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class End:
    """Nobody is left: end, with the last one's status."""

    status: int


Effect = Start | Tell | Terminate | Kill | End


class Staff:
    """Told what happens, in the order in which it happens; answers what is to be done."""

    def __init__(self) -> None:
        self._workers: dict[int, WorkerState] = {}
        self._early_wishes: set[int] = set()  # of workers that do not serve yet
        self._last_id = 0
        self._is_ending = False

    def open(self) -> list[Effect]:
        """The first worker."""
        return [self._start(Role.FIRST)]

    def heard(self, worker_id: int, word: Word) -> list[Effect]:
        """A worker has said a word."""
        if word is Word.SUCCESSOR_WANTED:
            return self._on_wish(worker_id)
        if word is Word.SERVING:
            return self._on_serving(worker_id)
        return []

    def late(self, worker_id: int) -> list[Effect]:
        """The time that a spare worker has to serve is over."""
        return [Kill(worker_id)] if self._workers.get(worker_id) is WorkerState.STARTING else []

    def ended(self, worker_id: int, status: int) -> list[Effect]:
        """A worker's process has ended."""
        state = self._workers.pop(worker_id)
        if not self._workers:
            return [End(status)]
        if state is WorkerState.STARTING:
            return [Tell(other, Word.NO_SUCCESSOR) for other in self._serving()]
        return []

    def end(self) -> list[Effect]:
        """All are to end, and nobody is started any more."""
        self._is_ending = True
        return [Terminate(worker_id) for worker_id in self._workers]

    def _on_wish(self, worker_id: int) -> list[Effect]:
        """One spare worker at a time: it asks again itself when its share is not the one that is wanted by then."""
        if self._workers[worker_id] is WorkerState.STARTING:
            self._early_wishes.add(worker_id)
            return []
        return self._start_spare() if self._workers[worker_id] is WorkerState.SERVING else []

    def _on_serving(self, worker_id: int) -> list[Effect]:
        if self._workers[worker_id] is not WorkerState.STARTING:
            return []  # no news
        self._to(worker_id, WorkerState.SERVING)
        predecessors = [other for other in self._serving() if other != worker_id]
        for predecessor in predecessors:
            self._to(predecessor, WorkerState.RETIRING)
        told = [Tell(predecessor, Word.RETIRE) for predecessor in predecessors]
        return [*told, *(self._start_spare() if worker_id in self._early_wishes else [])]

    def _start_spare(self) -> list[Effect]:
        if self._is_ending or WorkerState.STARTING in self._workers.values():
            return []
        return [self._start(Role.SPARE)]

    def _start(self, role: Role) -> Start:
        self._last_id += 1
        self._workers[self._last_id] = WorkerState.STARTING
        return Start(self._last_id, role)

    def _serving(self) -> list[int]:
        return [worker_id for worker_id, state in self._workers.items() if state is WorkerState.SERVING]

    def _to(self, worker_id: int, state: WorkerState) -> None:
        if state not in _TRANSITIONS[self._workers[worker_id]]:
            raise ValueError(f"worker {worker_id}: {self._workers[worker_id].value} does not lead to {state.value}")
        self._workers[worker_id] = state
