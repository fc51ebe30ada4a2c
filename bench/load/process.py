"""The load generator in a process of its own, so that it shares no event loop with anybody."""

import asyncio
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import uvloop

from bench.load.endpoint import Endpoint, EndpointSpec, connect
from bench.load.generator import LoadGenerator
from bench.load.records import RequestRecord
from bench.workloads.request import PlannedRequest, Workload
from bench.workloads.tokens import TokenRange, all_prompts, prompt_tokens
from tandem.clock import MonotonicClock
from tandem.errors import NotReadyError, TandemError

JOIN_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class LoadJob:
    """What the process is given. `warm_up` goes out first, one after another, and is not recorded."""

    endpoint: EndpointSpec
    workload: Workload
    tokens: TokenRange
    warm_up: tuple[PlannedRequest, ...]
    drain_s: float
    salt: str  # of all prompts' text


@dataclass(frozen=True, slots=True)
class Progress:
    """One request has ended."""

    ok: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """The process's last word."""

    records: tuple[RequestRecord, ...]
    problem: str  # empty: none


def run_load(job: LoadJob, on_progress: Callable[[Progress], None]) -> tuple[RequestRecord, ...]:
    """The run's records. NotReadyError when the server cannot be warmed up, or the process dies."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(job, there), name="tandem-load", daemon=True)
    process.start()
    there.close()
    try:
        return _received(here, on_progress)
    finally:
        here.close()
        process.terminate()
        process.join(JOIN_TIMEOUT_S)


def _received(here: Connection, on_progress: Callable[[Progress], None]) -> tuple[RequestRecord, ...]:
    while True:
        try:
            message = here.recv()
        except EOFError:
            raise NotReadyError("the load generator's process has died") from None
        if isinstance(message, Progress):
            on_progress(message)
        elif isinstance(message, Finished):
            if message.problem:
                raise NotReadyError(message.problem)
            return message.records


def _main(job: LoadJob, there: Connection) -> None:
    try:
        finished = Finished(uvloop.run(perform(job, lambda record: there.send(Progress(record.ok)))), "")
    except TandemError as error:
        finished = Finished((), str(error))
    there.send(finished)


async def perform(job: LoadJob, report: Callable[[RequestRecord], None]) -> tuple[RequestRecord, ...]:
    """The job, on the running loop. TandemError when a request of the warm-up fails."""
    endpoint = connect(job.endpoint)
    prompts = all_prompts(job.workload.requests, job.tokens, job.salt)
    try:
        for request in job.warm_up:
            await _drain(endpoint, prompt_tokens(request.spans, job.tokens, job.salt), request.max_tokens)
        generator = LoadGenerator(endpoint, prompts, MonotonicClock(), asyncio.sleep, report)
        return await generator.run(job.workload, job.drain_s)
    finally:
        await endpoint.close()


async def _drain(endpoint: Endpoint, prompt: Sequence[int], max_tokens: int) -> None:
    async for _ in endpoint.generate(prompt, max_tokens):
        pass
