"""The load generator: when it sends, and what it notes, whatever the server does."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import pytest

from bench.load.endpoint import Tokens
from bench.load.generator import UNFINISHED, LoadGenerator
from bench.load.records import RequestRecord
from bench.workloads.request import PlannedRequest, Workload
from tandem.errors import QueueFullError


class SimulatedTime:
    """A clock that only sleepers move, always to the earliest who waits: exact, and as fast as the loop."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        self._waiting: list[tuple[float, int, asyncio.Event]] = []
        self._num_sleeps = 0
        self._mover: asyncio.Task[None] | None = None

    def now(self) -> float:
        return self._now_s

    async def sleep(self, seconds: float) -> None:
        self._num_sleeps += 1
        woken = asyncio.Event()
        self._waiting.append((self._now_s + seconds, self._num_sleeps, woken))
        if self._mover is None:
            self._mover = asyncio.create_task(self._move())
        await woken.wait()

    async def _move(self) -> None:
        while self._waiting:
            for _ in range(20):  # everybody who can run has run to its next sleep
                await asyncio.sleep(0)
            self._waiting.sort(key=lambda sleeper: sleeper[:2])
            self._now_s, _, woken = self._waiting.pop(0)
            woken.set()
            await asyncio.sleep(0)
        self._mover = None


@dataclass
class SlowServer:
    """Takes `first_s` to the first token and `each_s` for each other; one request after another when `serial`."""

    time: SimulatedTime
    first_s: float
    each_s: float = 0.0
    serial: bool = False
    failing: frozenset[int] = frozenset()  # by the prompt's first token
    prompts: list[list[int]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def generate(self, prompt: Sequence[int], max_tokens: int) -> AsyncGenerator[Tokens, None]:
        self.prompts.append(list(prompt))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if prompt[0] in self.failing:
                raise QueueFullError("full", 1.0)
            if self.serial:
                await self.turn.acquire()
            for number in range(max_tokens):
                await self.time.sleep(self.each_s if number else self.first_s)
                last = (3, 1.5) if number == max_tokens - 1 else (None, None)
                yield Tokens(1, (500 + number,), *last)
            if self.serial:
                self.turn.release()
        finally:
            self.at_once -= 1

    async def close(self) -> None:
        pass


def planned(times_s: Sequence[float], max_tokens: int = 2) -> tuple[PlannedRequest, ...]:
    return tuple(PlannedRequest(number, at_s, (), max_tokens) for number, at_s in enumerate(times_s))


async def run(server: SlowServer, workload: Workload, drain_s: float = 60.0) -> tuple[RequestRecord, ...]:
    prompts = {request.number: [request.number, 7] for request in workload.requests}
    return await LoadGenerator(server, prompts, server.time, server.time.sleep).run(workload, drain_s)


async def test_slow_answers_do_not_delay_what_is_sent():
    time = SimulatedTime()
    server = SlowServer(time, first_s=100.0, each_s=1.0)
    times_s = [0.0, 0.1, 0.25, 0.3, 5.0]
    records = await run(server, Workload("w", planned(times_s)))
    assert [record.intended_s for record in records] == times_s
    assert [record.sent_s for record in records] == pytest.approx(times_s)
    assert [record.ttft_ms for record in records] == pytest.approx([100_000] * 5)
    assert server.most_at_once == 5


async def test_waiting_in_the_server_counts_from_the_intended_time():
    time = SimulatedTime()
    records = await run(SlowServer(time, first_s=2.0, serial=True), Workload("w", planned([0.0, 0.5, 1.0])))
    assert [record.ttft_ms for record in records] == pytest.approx([2000, 3500, 5000])
    assert all(record.ok for record in records)


async def test_a_request_is_noted_with_its_tokens_and_what_was_cached():
    time = SimulatedTime()
    (record,) = await run(SlowServer(time, first_s=1.0, each_s=0.5), Workload("w", planned([0.25], max_tokens=3)))
    assert record.token_times_s == pytest.approx((1.25, 1.75, 2.25))
    assert record.tpot_ms == pytest.approx(500)
    assert (record.num_prompt_tokens, record.num_cached_tokens, record.queue_ms) == (2, 3, 1.5)


async def test_requests_are_sent_by_time_not_by_number():
    time = SimulatedTime()
    server = SlowServer(time, first_s=0.1)
    records = await run(server, Workload("w", planned([2.0, 1.0])))
    assert [prompt[0] for prompt in server.prompts] == [1, 0]
    assert [record.number for record in records] == [0, 1]


async def test_a_failure_is_noted_and_the_others_go_on():
    time = SimulatedTime()
    records = await run(SlowServer(time, first_s=0.1, failing=frozenset([1])), Workload("w", planned([0.0, 0.1, 0.2])))
    assert [record.error for record in records] == ["", "QueueFullError: full", ""]


async def test_an_answer_that_is_too_short_is_a_failure():
    class Short(SlowServer):
        async def generate(self, prompt, max_tokens):
            async for tokens in super().generate(prompt, max_tokens - 1):
                yield tokens

    (record,) = await run(Short(SimulatedTime(), first_s=0.1), Workload("w", planned([0.0], max_tokens=4)))
    assert record.error == "3 tokens came instead of 4"


async def test_users_of_a_closed_loop_wait_for_their_answer():
    time = SimulatedTime()
    server = SlowServer(time, first_s=1.0)
    records = await run(server, Workload("w", planned([0.0] * 6, max_tokens=1), num_users=2))
    assert server.most_at_once == 2
    assert [record.intended_s for record in records] == pytest.approx([0, 0, 1, 1, 2, 2])
    assert [record.ttft_ms for record in records] == pytest.approx([1000] * 6)


async def test_a_turn_follows_the_answer_and_carries_the_conversation():
    time = SimulatedTime()
    first = PlannedRequest(0, 0.5, (), 2)
    second = PlannedRequest(1, 0.5, (), 2, follows=0, think_s=3.0)
    third = PlannedRequest(2, 0.5, (), 1, follows=1, think_s=3.0)
    server = SlowServer(time, first_s=1.0, each_s=1.0)
    records = await run(server, Workload("w", (first, second, third)))
    assert [record.intended_s for record in records] == pytest.approx([0.5, 5.5, 10.5])
    assert server.prompts == [[0, 7], [0, 7, 500, 501, 1, 7], [0, 7, 500, 501, 1, 7, 500, 501, 2, 7]]
    assert records[1].ttft_ms == pytest.approx(1000)


class Stuck(SlowServer):
    async def generate(self, prompt, max_tokens):
        yield Tokens(1, (1,))
        await asyncio.Event().wait()


async def test_what_does_not_end_is_cut_off_and_counted():
    first, second = PlannedRequest(0, 0.0, (), 2), PlannedRequest(1, 0.0, (), 2, follows=0)
    records = await run(Stuck(SimulatedTime(), first_s=0.0), Workload("w", (first, second)), drain_s=0.05)
    assert [record.error for record in records] == [UNFINISHED, UNFINISHED]
    assert [record.num_output_tokens for record in records] == [1, 0]


async def test_a_user_gives_an_answer_up_that_does_not_come():
    workload = Workload("w", planned([0.0, 0.0]), num_users=1)
    records = await run(Stuck(SimulatedTime(), first_s=0.0), workload, drain_s=0.02)
    assert [record.error for record in records] == [UNFINISHED, UNFINISHED]
