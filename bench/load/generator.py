"""Sends a workload's requests when they are due, whatever has become of those before, and notes what came back when."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.load.endpoint import Endpoint
from bench.load.records import RequestRecord
from bench.workloads.request import PlannedRequest, Workload
from tandem.clock import Clock
from tandem.errors import TandemError

UNFINISHED = "unfinished when it was cut off"
Sleep = Callable[[float], Awaitable[None]]


@dataclass(slots=True)
class _Stream:
    """A request under way."""

    request: PlannedRequest
    prompt: Sequence[int]
    intended_s: float
    sent_s: float
    token_times_s: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    num_cached_tokens: int | None = None
    queue_ms: float | None = None


class LoadGenerator:
    """Runs one workload against one endpoint; `report` gets each record as it is made.

    `prompts` are the requests' own tokens by number. A turn that follows another goes out with that one's prompt and
    answer before its own; where the server does not say token ids, with the prompt alone.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        prompts: Mapping[int, Sequence[int]],
        clock: Clock,
        sleep: Sleep = asyncio.sleep,
        report: Callable[[RequestRecord], None] = lambda record: None,
    ) -> None:
        self._endpoint = endpoint
        self._prompts = prompts
        self._clock = clock
        self._sleep = sleep
        self._start_s = 0.0
        self._listeners = [report]
        self._noted: set[int] = set()  # numbers

    async def run(self, workload: Workload, drain_s: float) -> tuple[RequestRecord, ...]:
        """All records, by number; as `drive`."""
        records: list[RequestRecord] = []
        self._listeners.append(records.append)
        await self.drive(workload, drain_s)
        return tuple(sorted(records, key=lambda record: record.number))

    async def drive(self, workload: Workload, drain_s: float) -> None:
        """Sends everything and keeps no record: `report` has had them all.

        Cut off, and counted as failed: in an open loop what has not ended `drain_s` after the last send, in a closed
        loop an answer that takes longer than that.
        """
        self._start_s = self._clock.now()
        chains = _chains(workload.requests)
        if workload.num_users:
            await self._closed(chains, workload.num_users, drain_s)
        else:
            await self._open(chains, workload.last_send_s + drain_s)
        self._note_unsent(workload)

    async def _open(self, chains: Sequence[Sequence[PlannedRequest]], limit_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s), asyncio.TaskGroup() as running:
                await self._send_when_due(chains, running)

    async def _send_when_due(self, chains: Sequence[Sequence[PlannedRequest]], running: asyncio.TaskGroup) -> None:
        for chain in sorted(chains, key=lambda chain: chain[0].at_s):
            await self._until(chain[0].at_s)
            running.create_task(self._converse(chain, chain[0].at_s, None))

    async def _closed(self, chains: Sequence[Sequence[PlannedRequest]], num_users: int, limit_s: float) -> None:
        left = deque(chains)
        async with asyncio.TaskGroup() as users:
            for _ in range(num_users):
                users.create_task(self._user(left, limit_s))

    async def _user(self, left: deque[Sequence[PlannedRequest]], limit_s: float) -> None:
        while left:
            await self._converse(left.popleft(), self._now_s(), limit_s)

    async def _converse(self, chain: Sequence[PlannedRequest], due_s: float, limit_s: float | None) -> None:
        """The turns of one conversation, each when the one before has been answered and thought over."""
        before: list[int] = []
        for request in chain:
            if request.follows is not None:
                due_s = self._now_s() + request.think_s
                await self._until(due_s)
            stream = _Stream(request, [*before, *self._prompts[request.number]], due_s, self._now_s())
            await self._answer(stream, limit_s)
            before = [*stream.prompt, *stream.token_ids]

    async def _answer(self, stream: _Stream, limit_s: float | None) -> None:
        error = UNFINISHED
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    error = await self._receive(stream)
        finally:
            self._note(_record(stream, self._now_s(), error))

    async def _receive(self, stream: _Stream) -> str:
        """What went wrong, or nothing."""
        expected = stream.request.max_tokens
        try:
            async for tokens in self._endpoint.generate(stream.prompt, expected):
                stream.token_times_s += [self._now_s()] * tokens.num_tokens
                stream.token_ids += tokens.token_ids
                if tokens.num_cached_tokens is not None:
                    stream.num_cached_tokens = tokens.num_cached_tokens
                if tokens.queue_ms is not None:
                    stream.queue_ms = tokens.queue_ms
        except TandemError as failure:
            return f"{type(failure).__name__}: {failure}"
        came = len(stream.token_times_s)
        return "" if came == expected else f"{came} tokens came instead of {expected}"

    def _note(self, record: RequestRecord) -> None:
        self._noted.add(record.number)
        for listener in self._listeners:
            listener(record)

    def _note_unsent(self, workload: Workload) -> None:
        """Later turns of conversations that were cut off: they were never due."""
        now_s = self._now_s()
        for request in workload.requests:
            if request.number not in self._noted:
                self._note(_record(_Stream(request, (), now_s, now_s), now_s, UNFINISHED))

    def _now_s(self) -> float:
        return self._clock.now() - self._start_s

    async def _until(self, at_s: float) -> None:
        delay_s = at_s - self._now_s()
        if delay_s > 0:
            await self._sleep(delay_s)


def _chains(requests: Sequence[PlannedRequest]) -> list[list[PlannedRequest]]:
    """Conversations: each request with those that follow it, in order."""
    chains: dict[int, list[PlannedRequest]] = {}
    for request in requests:
        chain = [] if request.follows is None else chains.pop(request.follows)
        chains[request.number] = [*chain, request]
    return list(chains.values())


def _record(stream: _Stream, now_s: float, error: str) -> RequestRecord:
    return RequestRecord(
        number=stream.request.number,
        intended_s=stream.intended_s,
        sent_s=stream.sent_s,
        token_times_s=tuple(stream.token_times_s),
        ended_s=now_s,
        num_prompt_tokens=len(stream.prompt),
        num_expected_tokens=stream.request.max_tokens,
        num_cached_tokens=stream.num_cached_tokens,
        error=error,
        queue_ms=stream.queue_ms,
    )
