"""The simulated gateway: the queue that serves, and requests from their arrival to their end."""

from collections.abc import Callable, Iterable

from bench.simulate.events import EventQueue
from bench.simulate.sequences import BlockPool, SimSequence
from bench.workloads.request import PlannedRequest
from tandem.scheduler.fcfs import first_come_first_served
from tandem.scheduler.waiting import OrderingPolicy, WaitingEntry


class SimGateway:
    """Sends to prefill what there is room for. `ended` hears of each request that has its whole answer."""

    def __init__(
        self,
        events: EventQueue,
        pool: BlockPool,
        max_running: int,
        submit: Callable[[SimSequence], None],
        ended: Callable[[SimSequence], None],
    ) -> None:
        """`submit` puts a sequence into prefill."""
        self.sequences: list[SimSequence] = []
        self._events = events
        self._pool = pool
        self._max_running = max_running
        self._submit = submit
        self._ended = ended
        self._queue: OrderingPolicy[SimSequence] = first_come_first_served()
        self._num_running = 0

    @property
    def num_waiting(self) -> int:
        """In the queue."""
        return len(self._queue)

    def plan_arrivals(self, requests: Iterable[PlannedRequest]) -> None:
        """Each at its time."""
        for request in requests:
            sequence = SimSequence(request.number, request.at_s, request.num_new_tokens, request.max_tokens)
            self.sequences.append(sequence)
            self._events.after(request.at_s, lambda arriving=sequence: self._arrive(arriving))  # type: ignore[misc]

    def complete(self, sequence: SimSequence) -> None:
        """It has its whole answer."""
        self._pool.take_back(sequence)
        self._num_running -= 1
        self._ended(sequence)
        self._dispatch()

    def requeue(self, sequence: SimSequence) -> None:
        """A phase has let it go, its blocks are gone; it keeps its place in the order."""
        self._num_running -= 1
        self._arrive(sequence)

    def _arrive(self, sequence: SimSequence) -> None:
        self._queue.push(sequence, WaitingEntry(sequence.priority, sequence.arrival_unix_ns, 0))
        self._dispatch()

    def _dispatch(self) -> None:
        while self._queue and self._num_running < self._max_running:
            self._num_running += 1
            self._submit(self._queue.pop(int(self._events.now_s * 1e9)))
