"""A share that only a new process can have: a spare worker takes the phase's place in the middle of the answers."""

import asyncio
import sys
import time
from dataclasses import dataclass
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from bench.deployment.local import run_dir, running
from tandem.phase.lifecycle import EXIT_START_AGAIN
from tandem.rpc.controller_client import ControllerClient
from tandem.types import Phase, Split
from tests.e2e.test_load import idle_statistics
from tests.e2e.test_services import answers, request
from tests.support import fixed_share_phase
from tests.support.deployment import POOL, Deployment
from tests.support.sockets import free_port

REQUESTS = [(number, 120) for number in range(6)]
PATIENCE_S = 120.0


@dataclass
class FixedShares(Deployment):
    """Phases whose share is fixed at their start; decode has a steward."""

    def _command(self, service: str) -> list[str]:
        usual = super()._command(service)
        if service not in set(Phase):
            return usual
        under = ["steward"] if service == "decode" else []
        return [sys.executable, "-m", fixed_share_phase.__name__, *under, service, *usual[usual.index("--run-dir") :]]


@pytest.fixture(scope="module")
def system(tiny_model_dir):
    settings = {**POOL, "decode": {"metrics-port": free_port()}}
    with run_dir() as path, running(FixedShares(path, str(tiny_model_dir("llama")), settings)) as services:
        yield services


async def switch(system: FixedShares, split: Split) -> None:
    """Orders the split, and waits until processes that have it serve both phases."""
    with ControllerClient(system.socket("controller")) as client:
        decision_id = client.set_split(split)
        async with asyncio.timeout(PATIENCE_S):
            while not all(in_force(phase, decision_id) for phase in client.status().phases):
                await asyncio.sleep(0.05)


def in_force(phase, decision_id: int) -> bool:
    return phase.applied_decision_id == decision_id and phase.applied_detail.startswith("started with")


def pids(system: FixedShares) -> set[int]:
    with ControllerClient(system.socket("controller")) as client:
        return {phase.pid for phase in client.status().phases}


def until_free(system: FixedShares, phase: str) -> None:
    """The worker that lost its steward has given the place up."""
    deadline_s = time.monotonic() + PATIENCE_S
    while (system.run_dir / f"{phase}.sock").exists():
        assert time.monotonic() < deadline_s, "the worker goes on without its steward"
        time.sleep(0.02)


async def metrics(port: object) -> str:
    """Of whoever has the port, soon."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                with await asyncio.to_thread(urlopen, f"http://127.0.0.1:{port}/metrics") as answer:
                    return answer.read().decode()
            except (URLError, ConnectionError):  # nobody has it, or one that ends took the connection
                await asyncio.sleep(0.05)


async def asked_until(system: FixedShares, event: asyncio.Event) -> list:
    """The same requests over and over, each client on its own; one round's answers a client."""

    async def ask(each: tuple[int, int]) -> list:
        rounds = []
        while not event.is_set():
            rounds += await answers(system.gateway, [request(*each)])
        return rounds

    return await asyncio.gather(*(ask(each) for each in REQUESTS))


async def test_a_phase_is_replaced_under_load_and_no_answer_differs(system):
    alone = [(await answers(system.gateway, [request(*each)]))[0] for each in REQUESTS]
    before, done = pids(system), asyncio.Event()
    asking = asyncio.ensure_future(asked_until(system, done))
    await switch(system, Split(50, 65))
    done.set()
    for expected, rounds in zip(alone, await asking, strict=True):
        assert rounds
        assert set(rounds) == {expected}
    assert len(before & pids(system)) == 1, "the other phase has its share"
    assert "DRAINING" in system.log("decode")  # somebody was in the middle of an answer
    assert "tandem:step_duration_seconds_count" in await metrics(system.settings["decode"]["metrics-port"])
    statistics = await idle_statistics(system)
    assert sorted(holder.service for holder in statistics.holders) == ["decode", "prefill"]
    assert system.log("memd").count('"model.loaded"') == 1
    assert all(process.poll() is None for process in system.processes.values())
    assert await answers(system.gateway, [request(*REQUESTS[0])]) == alone[:1]


async def test_without_a_steward_a_phase_hands_back_what_it_has_and_asks_for_a_new_process(system):
    before = await answers(system.gateway, [request(*each) for each in REQUESTS])
    asking = asyncio.ensure_future(answers(system.gateway, [request(*each) for each in REQUESTS]))
    switching = asyncio.ensure_future(switch(system, Split(35, 65)))
    assert await asyncio.to_thread(system.processes["prefill"].wait, PATIENCE_S) == EXIT_START_AGAIN
    system.start("prefill")
    await switching
    assert await asking == before


async def test_a_worker_ends_with_its_steward(system):
    system.kill("decode")
    await asyncio.to_thread(until_free, system, "decode")
