import asyncio
from dataclasses import replace

import pytest

from tandem.config.settings import ControllerConfig
from tandem.device.partition import Applied, RestartRequired
from tandem.errors import InvalidRequestError, NotReadyError
from tandem.partition.status import ControllerStatus, PhaseStatus, ShareApplied
from tandem.rpc import controller_client
from tandem.rpc.controller_client import ControllerClient, ControllerLink, ObservationSender
from tandem.rpc.controller_codecs import observations_to_proto
from tandem.types import Phase, RequestObservation, Split, StepStatistics
from tests.support.controller import HostedController
from tests.support.sockets import short_run_dir

STEP = StepStatistics(12.0, 4, 8, 100, 0, 1)


@pytest.fixture
async def away():
    with short_run_dir() as run_dir:
        hosted = HostedController(ControllerConfig(run_dir=run_dir, prefill_percent=40, decode_percent=60))
        yield hosted
        await hosted.stop()


@pytest.fixture
async def hosted(away):
    await away.start()
    return away


@pytest.fixture
async def link(away):
    link = ControllerLink(away.address, Phase.DECODE, 42, "cpu-affinity")
    await link.start()
    yield link
    await link.close()


@pytest.fixture
async def sender(away):
    sender = ObservationSender(away.address)
    await sender.start()
    yield sender
    await sender.close()


def observation(number: int) -> RequestObservation:
    return RequestObservation(f"r{number}", 100.0, 20.0, 80.0, 30.0, 10, 5, 0, True, 1, 0)


async def until(condition, timeout_s=20.0):
    """What the background tasks bring about is seen soon; the limit only ends a test that fails."""
    async with asyncio.timeout(timeout_s):
        while not (value := condition()):
            await asyncio.sleep(0.005)
    return value


def decode_status(hosted: HostedController) -> PhaseStatus:
    return next(phase for phase in hosted.controller.status().phases if phase.phase is Phase.DECODE)


async def ask(hosted: HostedController) -> ControllerStatus:
    def status() -> ControllerStatus:
        with ControllerClient(hosted.address) as client:
            return client.status()

    return await asyncio.to_thread(status)


async def test_an_assignment_is_given_out_once(hosted, link):
    assert await until(link.pending) == (1, Split(40, 60))
    assert link.pending() is None


async def test_only_the_newest_assignment_is_pending(hosted, link):
    await until(link.pending)
    for percent in (10, 20, 30):
        hosted.controller.fix_split(Split(percent, 50))
    assert await until(lambda: link.pending() if link._pending == (4, Split(30, 50)) else None)
    assert link.pending() is None


async def test_steps_and_applied_shares_reach_the_controller(hosted, link):
    decision_id, _ = await until(link.pending)
    link.report_step(STEP)
    link.report_applied(decision_id, Applied("cores 1; threads 1"), 1.5)
    await until(lambda: decode_status(hosted).applied_decision_id == decision_id)
    status = decode_status(hosted)
    assert (status.pid, status.partition_backend, status.applied_detail) == (42, "cpu-affinity", "cores 1; threads 1")
    assert status.statistics.step.p50_ms == 12.0


async def test_steps_are_gathered_into_one_message_and_an_applied_share_takes_them_along():
    unsent = controller_client._Unsent()
    for duration_ms in (1.0, 2.0):
        unsent.add_step(replace(STEP, duration_ms=duration_ms))
    unsent.add_applied(ShareApplied(7, False, "", 0.0))
    unsent.add_step(replace(STEP, duration_ms=3.0))
    reports = await unsent.take()
    assert [[step.duration_ms for step in report.steps.steps] for report in reports] == [[1.0, 2.0], [], [3.0]]
    assert reports[1].applied.decision_id == 7
    assert len(unsent) == 0


async def test_a_backend_that_needs_a_restart_says_so(hosted, link):
    decision_id, _ = await until(link.pending)
    link.report_applied(decision_id, RestartRequired("another percentage", {}), 0.0)
    await until(lambda: decode_status(hosted).applied_detail == "another percentage")


async def test_reports_to_a_controller_that_is_away_are_dropped(away, link):
    for _ in range(1000):
        link.report_step(STEP)
    link.report_applied(1, Applied("x"), 0.0)
    assert len(link._unsent) == 0
    assert link.pending() is None
    await away.start()
    assert await until(link.pending) == (1, Split(40, 60))


async def test_reports_beyond_the_bound_are_dropped(hosted, link):
    await until(link.pending)
    for _ in range(10_000):
        link.report_step(STEP)
    assert len(link._unsent) == controller_client.MAX_UNSENT_STEPS


async def test_the_link_comes_back_with_the_controller(away, link):
    for _ in range(3):
        await away.start()
        assert await until(link.pending) == (1, Split(40, 60))
        await away.stop()
        await until(lambda: not link.is_connected)


async def test_observations_reach_the_controller(hosted, sender):
    for number in range(5):
        sender.observe(observation(number))
    await until(lambda: hosted.controller.status().requests.num_observed_total == 5)
    assert hosted.controller.status().requests.ttft.p50_ms == 100.0


async def test_observations_of_a_moment_go_in_one_message(hosted, sender, monkeypatch):
    sizes: list[int] = []

    def counted(observations):
        sizes.append(len(observations))
        return observations_to_proto(observations)

    monkeypatch.setattr(controller_client, "observations_to_proto", counted)
    monkeypatch.setattr(controller_client, "MAX_OBSERVATIONS", 4)
    for number in range(10):
        sender.observe(observation(number))
    await until(lambda: hosted.controller.status().requests.num_observed_total == 10)
    assert sizes == [4, 4, 2]


async def test_observations_wait_for_a_controller_that_is_away_up_to_a_bound(away, sender):
    for number in range(controller_client.MAX_UNSENT_OBSERVATIONS + 100):
        sender.observe(observation(number))
    await away.start()
    await until(
        lambda: away.controller.status().requests.num_observed_total == controller_client.MAX_UNSENT_OBSERVATIONS
    )


async def test_the_sender_comes_back_with_the_controller(away, sender):
    def observed() -> bool:  # what is on its way when the controller ends is lost
        sender.observe(observation(0))
        return away.controller.status().requests.num_observed_total > 0

    for _ in range(3):
        await away.start()
        await until(observed)
        await away.stop()


async def test_close_before_start_and_while_away(away):
    link = ControllerLink(away.address, Phase.PREFILL, 1, "cpu-affinity")
    await link.close()
    await link.start()
    await link.close()
    sender = ObservationSender(away.address)
    await sender.close()
    await sender.start()
    await sender.close()


async def test_the_client_reads_the_status(hosted, link):
    await until(link.pending)
    link.report_step(STEP)
    await until(lambda: decode_status(hosted).statistics.step.num_samples == 1)
    status = await ask(hosted)
    assert (status.decision.split, status.planner) == (Split(40, 60), "predictive")
    decode = next(phase for phase in status.phases if phase.phase is Phase.DECODE)
    assert (decode.connected, decode.pid, decode.statistics.step.p99_ms) == (True, 42, 12.0)


async def test_the_client_sets_the_split(hosted):
    def set_split() -> int:
        with ControllerClient(hosted.address) as client:
            with pytest.raises(InvalidRequestError, match="decode_percent"):
                client.set_split(Split(50, 101))
            return client.set_split(Split(25, 75))

    assert await asyncio.to_thread(set_split) == 2
    assert hosted.controller.decision.split == Split(25, 75)


async def test_the_client_of_a_controller_that_is_away(away):
    with pytest.raises(NotReadyError):
        await ask(away)
