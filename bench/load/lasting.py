"""A load that lasts: each request is told of when it has ended, and nothing of it is kept."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

import uvloop

from bench.load.endpoint import connect
from bench.load.generator import LoadGenerator
from bench.load.process import LoadJob, next_message, set_niceness, spawned, warm_up
from bench.load.records import RequestRecord
from bench.workloads.tokens import PromptsOnDemand
from tandem.clock import Clock, MonotonicClock
from tandem.errors import NotReadyError, TandemError


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins; seconds count from here."""

    pid: int  # of the load generator's process


@dataclass(frozen=True, slots=True)
class Ended:
    """A request, without its tokens. Latencies are None where it failed, or had too few tokens."""

    due_s: float
    ttft_ms: float | None
    tpot_ms: float | None
    error: str  # empty: none


@dataclass(frozen=True, slots=True)
class Tick:
    """So much time has gone by."""

    at_s: float


@dataclass(frozen=True, slots=True)
class _Over:
    problem: str  # empty: none


Event = Started | Ended | Tick


def lasting_load(job: LoadJob, tick_s: float, clock: Clock) -> Iterator[Event]:
    """`Started`, then requests as they end, between ticks. NotReadyError as of `run_load`."""
    with spawned(_main, job) as here:
        message = next_message(here)
        started_s, num_ticks = clock.now(), 0
        while not isinstance(message, _Over):
            if isinstance(message, Started | Ended):
                yield message
            while not here.poll(max(0.0, started_s + num_ticks * tick_s - clock.now())):
                num_ticks += 1
                yield Tick(clock.now() - started_s)
            message = next_message(here)
        if message.problem:
            raise NotReadyError(message.problem)


def _main(job: LoadJob, there: Connection) -> None:
    try:
        set_niceness(job.niceness)
        uvloop.run(_perform(job, there.send))
        there.send(_Over(""))
    except TandemError as error:
        there.send(_Over(str(error)))


async def _perform(job: LoadJob, tell: Callable[[Event], None]) -> None:
    endpoint = connect(job.endpoint)
    prompts = PromptsOnDemand(job.workload.requests, job.tokens, job.salt)
    try:
        await warm_up(endpoint, job)
        generator = LoadGenerator(endpoint, prompts, MonotonicClock(), report=lambda record: tell(_ended(record)))
        tell(Started(os.getpid()))
        await generator.drive(job.workload, job.drain_s)
    finally:
        await endpoint.close()


def _ended(record: RequestRecord) -> Ended:
    ttft_ms, tpot_ms = (record.ttft_ms, record.tpot_ms) if record.ok else (None, None)
    return Ended(record.intended_s, ttft_ms, tpot_ms, record.error)
