"""The load generator in a process of its own, so that it shares no event loop with anybody."""

import asyncio
import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from bench.load.endpoint import Endpoint, EndpointSpec, connect
from bench.load.generator import LoadGenerator
from bench.load.records import RequestRecord
from bench.workloads.request import PlannedRequest, Workload
from bench.workloads.tokens import TokenRange, all_prompts, prompt_tokens
from tandem.clock import MonotonicClock
from tandem.errors import ConfigError, NotReadyError, TandemError

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
    niceness: int = 0  # of the process, beside this one's


@dataclass(frozen=True, slots=True)
class Progress:
    """One request has ended."""

    ok: bool


@dataclass(frozen=True, slots=True)
class DatedRecords:
    """`started_unix_s` is when the run began that the records' times count from."""

    records: tuple[RequestRecord, ...]
    started_unix_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The process's last word."""

    run: DatedRecords
    problem: str  # empty: none


def run_load(job: LoadJob, on_progress: Callable[[Progress], None]) -> tuple[RequestRecord, ...]:
    """The run's records. NotReadyError when the server cannot be warmed up, or the process dies."""
    return run_dated_load(job, on_progress).records


def run_dated_load(job: LoadJob, on_progress: Callable[[Progress], None]) -> DatedRecords:
    """As `run_load`, for who holds them against what else happened."""
    with spawned(_main, job) as here:
        return _received(here, on_progress)


@contextlib.contextmanager
def spawned(main: Callable[[Any, Connection], None], job: object) -> Iterator[Connection]:
    """What `main` sends in a process of its own, which gets the job and the pipe's other end; ended when left."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=main, args=(job, there), name="tandem-load", daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.terminate()
        process.join(JOIN_TIMEOUT_S)


def next_message(here: Connection) -> object:
    """Waits for it. NotReadyError: the process has died."""
    try:
        return here.recv()
    except EOFError:
        raise NotReadyError("the load generator's process has died") from None


def _received(here: Connection, on_progress: Callable[[Progress], None]) -> DatedRecords:
    while True:
        message = next_message(here)
        if isinstance(message, Progress):
            on_progress(message)
        elif isinstance(message, Finished):
            if message.problem:
                raise NotReadyError(message.problem)
            return message.run


def _main(job: LoadJob, there: Connection) -> None:
    try:
        set_niceness(job.niceness)
        finished = Finished(uvloop.run(perform(job, lambda record: there.send(Progress(record.ok)))), "")
    except TandemError as error:
        finished = Finished(DatedRecords((), 0.0), str(error))
    there.send(finished)


def set_niceness(niceness: int) -> None:
    """Of this process, beside what it has. ConfigError: it may not."""
    try:
        os.nice(niceness)
    except PermissionError as error:
        raise ConfigError("niceness", f"{niceness}: only root may take more than its share") from error


async def perform(job: LoadJob, report: Callable[[RequestRecord], None]) -> DatedRecords:
    """The job, on the running loop. TandemError when a request of the warm-up fails."""
    endpoint = connect(job.endpoint)
    prompts = all_prompts(job.workload.requests, job.tokens, job.salt)
    try:
        await warm_up(endpoint, job)
        generator = LoadGenerator(endpoint, prompts, MonotonicClock(), asyncio.sleep, report)
        started_unix_s = time.time()
        return DatedRecords(await generator.run(job.workload, job.drain_s), started_unix_s)
    finally:
        await endpoint.close()


async def warm_up(endpoint: Endpoint, job: LoadJob) -> None:
    """One request after another. TandemError when one fails."""
    for request in job.warm_up:
        await _drain(endpoint, prompt_tokens(request.spans, job.tokens, job.salt), request.max_tokens)


async def _drain(endpoint: Endpoint, prompt: Sequence[int], max_tokens: int) -> None:
    async for _ in endpoint.generate(prompt, max_tokens):
        pass
