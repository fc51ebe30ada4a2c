"""The controller killed under load: the answers go on, the split in force stays, and the next one reads it back."""

import asyncio
import time

import pytest

from tandem.rpc.controller_client import ControllerClient
from tandem.types import Split
from tests.e2e.test_services import answers, request
from tests.support.deployment import POOL, deployment

FIXED = Split(35, 65)
STATIC = {**POOL, "controller": {"planner": "static"}}  # which leaves alone what somebody has fixed
REQUESTS = [(number, 60) for number in range(6)]
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def system(tiny_model_dir):
    with deployment(str(tiny_model_dir("llama")), STATIC) as running:
        yield running


def until_applied(address: str, split: Split) -> None:
    """Both phases have answered a decision for it."""
    deadline_s = time.monotonic() + PATIENCE_S
    with ControllerClient(address) as client:
        while time.monotonic() < deadline_s:
            status = client.status()
            answered = {phase.applied_decision_id for phase in status.phases}
            if status.decision.split == split and answered == {status.decision.decision_id}:
                return
            time.sleep(0.05)
    raise AssertionError(f"{split} is not in force: {status}")


async def test_a_controller_that_is_killed_under_load_stops_nothing_and_leaves_its_split(system):
    controller = system.socket("controller")
    before = await answers(system.gateway, [request(*each) for each in REQUESTS])
    with ControllerClient(controller) as client:
        client.set_split(FIXED)
    await asyncio.to_thread(until_applied, controller, FIXED)
    running = asyncio.ensure_future(answers(system.gateway, [request(*each) for each in REQUESTS]))
    await asyncio.sleep(0.05)
    system.kill("controller")
    assert await running == before
    assert await answers(system.gateway, [request(*each) for each in REQUESTS]) == before
    system.start("controller")
    system.wait_serving("controller")
    await asyncio.to_thread(until_applied, controller, FIXED)
    with ControllerClient(controller) as client:
        reasons = [record.decision.reason for record in client.history()]
    assert any("before this controller came" in reason for reason in reasons)
    assert await answers(system.gateway, [request(*each) for each in REQUESTS]) == before
