"""Faults in the middle of answers: the gateway killed, a phase stopped, a request that ends its phase.

docs/guarantees.md says what each of them costs.
"""

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.deployment.local import run_dir, running
from tandem.client import AsyncClient, Client, Piece
from tandem.config.settings import MODES
from tandem.errors import SequenceFailedError
from tests.e2e.test_load import idle_statistics
from tests.support.deployment import POOL, Deployment
from tests.support.poisoned_phase import POISON
from tests.support.sockets import free_port

MAX_TOKENS = 150
NUM_TOKENS_BEFORE_THE_FAULT = 20
PATIENCE_S = 60.0  # generous: the machine may be loaded
PROMPT = list(range(1, 40))
CASES = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 7, "top_p": 0.9, "logprobs": 2},
    {"temperature": 1.0, "seed": 8, "n": 3},
    {"temperature": 0.8, "seed": 9, "presence_penalty": 0.7, "repetition_penalty": 1.3, "min_tokens": 50},
    {"temperature": 1.0, "seed": 10, "stop": ["never to be seen"]},
]


@dataclass
class Stream:
    """What came of one request, by answer."""

    pieces: dict[int, list[Piece]] = field(default_factory=dict)

    def text(self) -> list[str]:
        return ["".join(piece.text_delta for piece in pieces) for _, pieces in sorted(self.pieces.items())]

    def token_ids(self) -> list[list[int]]:
        return [[token for piece in pieces for token in piece.token_ids] for _, pieces in sorted(self.pieces.items())]

    def logprobs(self) -> list[float]:
        return [entry.logprob for pieces in self.pieces.values() for piece in pieces for entry in piece.logprobs]

    def ends(self) -> list[tuple[int, int]]:
        last = [pieces[-1] for _, pieces in sorted(self.pieces.items())]
        return [(piece.finish_reason, piece.usage.num_output_tokens) for piece in last]

    async def read(self, client: AsyncClient, number: int) -> None:
        async for piece in client.generate([number + 1, *PROMPT], **sampling(number)):
            self.pieces.setdefault(piece.index, []).append(piece)

    def read_blocking(self, client: Client, number: int) -> None:
        for piece in client.generate([number + 1, *PROMPT], **sampling(number)):
            self.pieces.setdefault(piece.index, []).append(piece)


def sampling(number: int) -> dict[str, Any]:
    innocent = {POISON: -100.0}
    return {"max_tokens": MAX_TOKENS, "ignore_eos": True, "logit_bias": innocent, **CASES[number]}


class Poisoned(Deployment):
    """Prefill dies of one token."""

    def _command(self, service: str) -> list[str]:
        plain = super()._command(service)
        if service != "prefill":
            return plain
        return [sys.executable, "-m", "tests.support.poisoned_phase", service, *plain[3:]]


@pytest.fixture(scope="module")
def system(tiny_model_dir):
    settings = {"memd": {**POOL["memd"], "lease-ttl-s": 2}, "gateway": {"port": free_port()}}
    with run_dir() as path:
        services = Poisoned(path, str(tiny_model_dir("llama")), settings, MODES["semi-pd"])
        with running(services):
            yield services


@pytest.fixture(scope="module")
def address(system):
    return f"127.0.0.1:{system.settings['gateway']['port']}"


@pytest.fixture(scope="module")
def expected(address):
    """What comes of the requests when nothing happens."""

    async def undisturbed() -> list[Stream]:
        async with AsyncClient(address) as client:
            return await all_streams(client, [Stream() for _ in CASES])

    return asyncio.run(undisturbed())


async def all_streams(client: AsyncClient, streams: list[Stream]) -> list[Stream]:
    await asyncio.gather(*(stream.read(client, number) for number, stream in enumerate(streams)))
    return streams


@contextlib.contextmanager
def watchdog(path: Path, hang_timeout_s: float) -> Iterator[Path]:
    """Over the services of a run directory; yields its log."""
    command = [sys.executable, "-m", "tandem.cli.watchdog", "--run-dir", str(path)]
    log = path / "watchdog.log"
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--hang-timeout-s", str(hang_timeout_s)], stdout=file, stderr=file)
        try:
            yield log
        finally:
            process.terminate()
            process.wait()


def logged(path: Path, *words: str) -> bool:
    """Whether there is an event that has all of them."""
    return any(all(word in line for word in words) for line in path.read_text().splitlines())


async def until_logged(path: Path, *words: str) -> None:
    """An event that has all of them."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not logged(path, *words):
        assert time.monotonic() < deadline_s, words
        await asyncio.sleep(0.02)


async def reading(client: AsyncClient, streams: list[Stream]) -> "asyncio.Task[list[Stream]]":
    """All streams, in the middle of their answers."""
    task = asyncio.ensure_future(all_streams(client, streams))
    while sum(map(len, streams[0].token_ids())) < NUM_TOKENS_BEFORE_THE_FAULT:
        await asyncio.sleep(0)
    return task


def check_equal(streams: list[Stream], expected: list[Stream]) -> None:
    for got, whole in zip(streams, expected, strict=True):
        assert got.token_ids() == whole.token_ids()
        assert got.text() == whole.text()
        assert got.ends() == whole.ends()
        assert got.logprobs() == pytest.approx(whole.logprobs(), abs=1e-3)


async def check_every_block_came_back(system: Deployment) -> None:
    statistics = await idle_statistics(system)
    in_pool = statistics.num_free_blocks + statistics.num_spare_blocks + statistics.num_cached_blocks
    assert in_pool == statistics.num_blocks


async def test_answers_go_on_through_a_new_gateway_as_if_nothing_had_happened(system, address, expected):
    async with AsyncClient(address) as client:
        blocking = [Stream() for _ in CASES]
        with Client(address) as another:
            reads = [asyncio.to_thread(each.read_blocking, another, number) for number, each in enumerate(blocking)]
            read = asyncio.gather(*reads)
            streams = [Stream() for _ in CASES]
            under_way = await reading(client, streams)
            system.kill("gateway")
            assert not under_way.done() and not read.done()
            system.start("gateway")
            await asyncio.gather(under_way, read)
    check_equal(streams, expected)
    check_equal(blocking, expected)
    await check_every_block_came_back(system)


async def test_a_phase_that_is_stopped_is_ended_and_the_answers_go_on(system, address, expected):
    with watchdog(system.run_dir, hang_timeout_s=1.0) as log:
        async with AsyncClient(address) as client:
            await until_logged(log, "service.watched", '"decode"')
            streams = [Stream() for _ in CASES]
            under_way = await reading(client, streams)
            system.processes["decode"].send_signal(signal.SIGSTOP)
            await until_logged(log, "service.hung", '"decode"')
            assert await asyncio.to_thread(system.processes["decode"].wait, PATIENCE_S) == -signal.SIGKILL
            system.start("decode")
            await under_way
        check_equal(streams, expected)
        assert log.read_text().count("service.hung") == 1
    await check_every_block_came_back(system)


async def test_a_request_that_ends_its_phase_is_refused_and_others_are_not(system, address, expected):
    async with AsyncClient(address) as client:
        streams = [Stream() for _ in CASES]
        under_way = await reading(client, streams)
        poison = asyncio.ensure_future(client.generate_once([POISON, 1, 2], max_tokens=4))
        num_ends = 0
        while not poison.done():
            if system.processes["prefill"].poll() is not None:
                num_ends += 1
                system.start("prefill")
            await asyncio.sleep(0.02)
        with pytest.raises(SequenceFailedError, match="prefill went away"):
            await poison
        assert 2 <= num_ends <= 4
        system.revive()
        await under_way
    check_equal(streams, expected)
    await check_every_block_came_back(system)


async def test_leases_of_a_gateway_that_is_gone_end_by_themselves(system, address):
    system.revive()
    async with AsyncClient(address) as client:
        stream = client.generate(PROMPT, max_tokens=400, ignore_eos=True)
        await anext(stream)
        system.kill("gateway")
        await stream.aclose()
    statistics = await idle_statistics(system)
    assert statistics.num_sequences == 0
