"""Phases that take turns: the answers are the usual ones, and a phase killed in its turn holds nobody up."""

import asyncio
import json

import pytest

from tests.e2e.test_services import answers, request
from tests.support.deployment import POOL, deployment

TAKING_TURNS = {phase: {"partition-backend": "timeshare"} for phase in ("prefill", "decode")}
REQUESTS = [(number, 40) for number in range(8)]


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return str(tiny_model_dir("llama"))


@pytest.fixture(scope="module")
def system(model):
    with deployment(model, POOL | TAKING_TURNS) as running:
        yield running


def logged(log: str, event: str) -> dict:
    (line,) = [line for line in log.splitlines() if f'"event": "{event}"' in line][-1:]
    return json.loads(line)


async def test_a_share_is_a_ratio_of_turns(system):
    await answers(system.gateway, [request(1, 4)])
    for phase in TAKING_TURNS:
        assert logged(system.log(phase), "partition.chosen")["backend"] == "timeshare"
        assert logged(system.log(phase), "share.applied")["detail"] == "turns, prefill to decode as 50 to 50"


async def test_under_load_the_answers_are_those_of_one_request_at_a_time(system):
    alone = [(await answers(system.gateway, [request(*each)]))[0] for each in REQUESTS]
    together = await answers(system.gateway, [request(*each) for each in REQUESTS])
    assert together == alone


@pytest.mark.parametrize("killed", ["decode", "prefill"])
async def test_a_phase_that_is_killed_in_the_middle_of_its_work_holds_nobody_up(system, killed):
    before = await answers(system.gateway, [request(*each) for each in REQUESTS])
    running = asyncio.ensure_future(answers(system.gateway, [request(*each) for each in REQUESTS]))
    await asyncio.sleep(0.05)
    system.kill(killed)
    system.start(killed)
    assert await running == before
