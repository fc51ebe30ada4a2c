"""A GPU that cannot be used any more ends the phase, with a status that asks for a new one; nothing less does."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import pytest
import torch
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from tandem.clock import ManualClock
from tandem.device.cuda.health import check_device, idle_check
from tandem.device.partition import Applied
from tandem.errors import DeviceError, DeviceFaultError
from tandem.model.batch import SequenceRows
from tandem.phase.crew import Crew
from tandem.phase.lifecycle import EXIT_OK, EXIT_START_AGAIN, run_lives
from tandem.phase.loop import MAX_FAILURES_IN_A_ROW, Load, Reporter, StepLoop
from tandem.phase.share import ShareKeeper
from tandem.phase.stepper import StepPart, Stepper
from tandem.runner.sampler import SampledToken
from tandem.runner.steps import LogitsThenDraws
from tandem.telemetry.metrics import PhaseMetrics
from tandem.types import Phase, Split
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_cuda.host import fake_driver
from tests.support.fake_model import greedy
from tests.support.phase_fakes import FakeBackend, FakeController


class Runner:
    """Fails as torch does after a kernel's fault, which it leaves behind in the driver if there is one to leave."""

    def __init__(self, driver: FakeCuda, fault: object = None) -> None:
        self.driver = driver
        self.fault = fault

    def execute(self, rows: Sequence[SequenceRows]) -> torch.Tensor:
        if self.driver.base.current_context == 0:
            self.driver.cuCtxSetCurrent(self.driver.cuDevicePrimaryCtxRetain(0)[1])
        self.driver.base.sticky = self.fault
        raise RuntimeError("CUDA error: something is wrong")


class Work:
    """One row a step, for ever."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def prepare(self) -> Sequence[StepPart]:
        return [StepPart(SequenceRows([7], 0, [0]), None)]

    def finish(self, tokens: Sequence[SampledToken | None]) -> None:
        raise AssertionError("no step succeeds")

    def fail(self, message: str) -> None:
        self.failures.append(message)

    def deliver(self) -> None: ...

    def load(self) -> Load:
        return Load(0, 1, 0)


class NoWork(Work):
    """Nothing to do, until the end."""

    def __init__(self, on_look: Callable[[], None]) -> None:
        super().__init__()
        self._on_look = on_look

    def prepare(self) -> Sequence[StepPart]:
        self._on_look()
        return []


def step_loop(
    work: Work, runner: Runner, check: Callable[[], None], idle_check: Callable[[], None] | None = None
) -> StepLoop:
    controller, clock = FakeController(), ManualClock(0.0)
    metrics = PhaseMetrics.create(CollectorRegistry(), Phase.DECODE)
    stepper = Stepper(LogitsThenDraws(runner, greedy), check_device=check)
    share = ShareKeeper(Phase.DECODE, controller, FakeBackend(), stepper, metrics=metrics, clock=clock)
    reporter = Reporter(controller, metrics, lambda: 7)
    return StepLoop(
        work,
        wake=asyncio.Event(),
        stepper=stepper,
        share=share,
        reporter=reporter,
        clock=clock,
        idle_check=idle_check,
    )


@pytest.mark.parametrize(
    "fault", ["CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_MPS_RPC_FAILURE"]
)
async def test_the_first_step_after_a_fault_ends_the_loop_and_its_sequences_are_let_go(fault: str) -> None:
    driver, work = fake_driver(), Work()
    runner = Runner(driver, getattr(driver.CUresult, fault))
    with pytest.raises(DeviceFaultError, match=fault):
        await step_loop(work, runner, partial(check_device, lambda: driver)).run()
    assert len(work.failures) == 1
    assert fault in work.failures[0]


async def test_a_step_that_fails_on_a_sound_device_costs_its_own_sequences() -> None:
    driver, work = fake_driver(), Work()
    with pytest.raises(DeviceError, match="steps in a row failed") as raised:
        await step_loop(work, Runner(driver), partial(check_device, lambda: driver)).run()
    assert not isinstance(raised.value, DeviceFaultError)
    assert len(work.failures) == MAX_FAILURES_IN_A_ROW


async def test_a_fault_of_another_process_ends_one_that_has_nothing_to_do() -> None:
    """Under MPS nobody new is served until it has gone; its step thread has never computed."""
    driver, looks = fake_driver(), 0

    def on_look() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            driver.base.sticky = driver.CUresult.CUDA_ERROR_MPS_CLIENT_TERMINATED

    loop = step_loop(NoWork(on_look), Runner(driver), lambda: None, idle_check(lambda: driver))
    with pytest.raises(DeviceFaultError, match="MPS_CLIENT_TERMINATED"):
        await loop.run()
    assert looks == 2


def test_what_is_no_fault_leaves_an_idle_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = fake_driver()
    look = idle_check(lambda: driver)
    monkeypatch.setattr(driver, "cuCtxSynchronize", lambda: (driver.CUresult.CUDA_ERROR_NOT_READY,), raising=False)
    look()


def test_a_thread_that_uses_no_gpu_has_no_fault() -> None:
    def no_driver() -> FakeCuda:
        raise DeviceError("no CUDA driver")

    check_device(no_driver)
    check_device(fake_driver)


class Life:
    """Serves until it is told to stop."""

    async def run(self, stop: asyncio.Event) -> int:
        await stop.wait()
        return EXIT_OK


async def fail_with(error: Exception) -> None:
    raise error


async def test_a_fault_ends_the_process_with_a_status_that_asks_for_another() -> None:
    crew, stop = Crew(), asyncio.Event()
    crew.spawn(fail_with(DeviceFaultError("cuCtxSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS (700)")))
    with capture_logs() as logs:
        assert await run_lives([Life(), Life()], crew, stop) == EXIT_START_AGAIN
    (lost,) = [entry for entry in logs if entry["event"] == "device.lost"]
    assert "ILLEGAL_ADDRESS" in lost["message"]
    assert lost["exit_status"] == EXIT_START_AGAIN
    with suppress(DeviceFaultError):
        await crew.cancel()


async def test_any_other_failure_is_raised() -> None:
    crew, stop = Crew(), asyncio.Event()
    crew.spawn(fail_with(DeviceError("3 steps in a row failed")))
    with pytest.raises(DeviceError, match="in a row"):
        await run_lives([Life()], crew, stop)
    with suppress(DeviceError):
        await crew.cancel()


class BrokenAtTheSwitch(FakeBackend):
    """The device is found broken when another share is to be applied."""

    def __init__(self, error: DeviceError) -> None:
        self.error = error

    def apply(self, phase: Phase, split: Split) -> Applied:
        raise self.error


async def apply_once(error: DeviceError) -> FakeController:
    controller = FakeController(assignments=[(1, Split(50, 50))])
    stepper = Stepper(Runner(fake_driver()), greedy)
    metrics = PhaseMetrics.create(CollectorRegistry(), Phase.DECODE)
    backend, clock = BrokenAtTheSwitch(error), ManualClock(0.0)
    share = ShareKeeper(Phase.DECODE, controller, backend, stepper, metrics=metrics, clock=clock)
    await share.apply_pending()
    return controller


async def test_a_fault_that_shows_at_a_switch_of_shares_is_no_share_that_cannot_be_had() -> None:
    with pytest.raises(DeviceFaultError):
        await apply_once(DeviceFaultError("cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS (700)"))


async def test_a_share_that_cannot_be_had_leaves_the_old_one() -> None:
    assert (await apply_once(DeviceError("no core to run on"))).applied == []
