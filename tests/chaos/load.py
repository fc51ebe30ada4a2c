"""Many clients at once, each with one request after another."""

import asyncio
import contextlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

from tandem.client import AsyncClient, Piece, RetryPolicy
from tandem.clock import Clock
from tandem.errors import TandemError
from tests.chaos.cases import Case, Ending
from tests.chaos.oracle import difference
from tests.chaos.records import Answers, End, Record

PATIENT = RetryPolicy(give_up_s=180.0)  # a storm may leave a stream without a token for longer than the usual 60 s
STUCK_S = 240.0  # without a message
MAX_SEEDS = 4  # of a case
NUM_TOGETHER = 2


class Load:
    """Stream i asks `clients[i]`; which cases, and in which order, the seed says."""

    def __init__(self, clients: Sequence[AsyncClient], cases: Sequence[Case], seed: int, clock: Clock) -> None:
        self.records: list[Record] = []
        self._clients = clients
        self._cases = cases
        self._clock = clock
        self._draws = [random.Random(f"{seed}/stream/{stream}") for stream in range(len(clients))]
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    def start(self) -> None:
        """Until `stop`."""
        self._stopping = False
        self._tasks = [asyncio.create_task(self._repeat(stream)) for stream in range(len(self._clients))]

    async def stop(self) -> None:
        """Returns when every request that was begun has ended, one way or another."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    def cancel(self) -> None:
        """What was begun stays open."""
        for task in self._tasks:
            task.cancel()

    async def _repeat(self, stream: int) -> None:
        while not self._stopping:
            case = self._draws[stream].choice(self._cases)
            record = Record(stream, uuid4().hex, case, self._clock.now())
            self.records.append(record)
            await read(self._clients[stream], record, self._clock)


async def read(client: AsyncClient, record: Record, clock: Clock) -> None:
    """One request, to the end that its client means it to have."""
    case = record.case
    stream = client.generate(case.prompt, request_id=record.request_id, **case.sampling)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(STUCK_S) as limit, contextlib.aclosing(stream) as pieces:
            async for piece in pieces:
                record.take(piece, clock.now())
                limit.reschedule(loop.time() + STUCK_S)
                if await _left(client, record, piece):
                    record.close(End.CLOSED, clock.now())
                    return
        record.close(End.READ, clock.now())
    except TimeoutError:
        record.close(End.STUCK, clock.now())
    except TandemError as error:
        record.close(End.FAILED, clock.now(), f"{type(error).__name__}: {error}")


async def _left(client: AsyncClient, record: Record, piece: Piece) -> bool:
    """Whether the client hangs up now. One that aborts does so with this message, and reads on."""
    num_before = record.num_tokens - len(piece.token_ids)
    if record.case.ending is Ending.READ or not num_before < record.case.leave_after <= record.num_tokens:
        return False
    if record.case.ending is Ending.ABORT:
        with contextlib.suppress(TandemError):  # it has ended meanwhile, or its gateway has
            await client.abort(record.request_id)
        return False
    return True


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """The cases that are asked, and each one's answers without faults, by its number."""

    cases: tuple[Case, ...]
    answers: Mapping[int, Answers]
    num_reseeded: int


async def undisturbed(client: AsyncClient, cases: Sequence[Case], clock: Clock) -> Undisturbed:
    """Asks each alone, and twice more all at once. A case whose answer the company turns gets another seed.

    Among many rows a logit has other last bits than alone, which decide where a drawn number meets the very border
    between two tokens. RuntimeError: that happens again and again, which no border explains.
    """
    answers: dict[int, Answers] = {}
    asked, num_reseeded = list(cases), 0
    for _ in range(MAX_SEEDS):
        for case in asked:
            if case.number not in answers:
                answers[case.number] = await _whole(client, case, clock)
        turned = await _turned(client, asked, answers, clock)
        if not turned:
            return Undisturbed(tuple(asked), answers, num_reseeded)
        num_reseeded += len(turned)
        for number in turned:
            del answers[number]
        asked = [case.reseeded() if case.number in turned else case for case in asked]
    raise RuntimeError(f"cases {sorted(turned)} have other answers among others than alone, without faults")


async def _turned(
    client: AsyncClient, cases: Sequence[Case], answers: Mapping[int, Answers], clock: Clock
) -> frozenset[int]:
    """Cases whose answers are others in company."""
    turned: set[int] = set()
    for _ in range(NUM_TOGETHER):
        together = await asyncio.gather(*(_whole(client, case, clock) for case in cases))
        for case, other in zip(cases, together, strict=True):
            if difference(other, answers[case.number]):
                turned.add(case.number)
    return frozenset(turned)


async def _whole(client: AsyncClient, case: Case, clock: Clock) -> Answers:
    record = Record(0, uuid4().hex, replace(case, ending=Ending.READ), clock.now())
    await read(client, record, clock)
    if record.end is not End.READ:
        raise RuntimeError(f"case {case.number} ended as {record.end} without faults: {record.error}")
    return record.answers
