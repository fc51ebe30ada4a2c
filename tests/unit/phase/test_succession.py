"""A share that needs a new process: who is asked for one, and when this one ends."""

import asyncio
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tandem.clock import ManualClock
from tandem.device.partition import Applied, RestartRequired
from tandem.phase.crew import Crew
from tandem.phase.lifecycle import EXIT_OK, EXIT_START_AGAIN
from tandem.phase.opening import Opening
from tandem.phase.retirement import Retirement
from tandem.phase.share import ShareKeeper
from tandem.phase.start_environment import StartEnvironment
from tandem.phase.stepper import Stepper
from tandem.phase.stewardship import ENV_ROLE, ENV_STEWARD_FD, Role, Word
from tandem.phase.succession import Ancestry, Succession
from tandem.phase.warmup import warm_up
from tandem.rpc.server import ServiceHost
from tandem.rpc.sockets import Entry
from tandem.runner.steps import LogitsThenDraws
from tandem.telemetry.metrics import MetricsServer, PhaseMetrics
from tandem.types import Phase, Split
from tests.support.fake_model import BLOCK_SIZE, FakeRunner, Slots, greedy
from tests.support.fake_store import DECODE_HOLDER, FakeStore
from tests.support.phase_fakes import FakeBackend, FakeController
from tests.support.sockets import short_run_dir

OTHER = {"PERCENT": "35"}


def nothing() -> None:
    """Nobody is to be told."""


class FakeSteward:
    def __init__(self) -> None:
        self.heard: list[Word] = []

    def say(self, word: Word) -> None:
        self.heard.append(word)


def succession(
    run_dir: Path, steward: FakeSteward | None, started_with: dict[str, str] | None = None
) -> tuple[Succession, Retirement]:
    retirement = Retirement()
    return Succession(StartEnvironment(run_dir, Phase.DECODE), started_with or {}, retirement, steward), retirement


async def test_the_steward_is_asked_and_this_process_goes_on(tmp_path: Path) -> None:
    steward = FakeSteward()
    ours, retirement = succession(tmp_path, steward)
    ours.serves()
    ours.want(OTHER, nothing)
    assert steward.heard == [Word.SERVING, Word.SUCCESSOR_WANTED]
    assert StartEnvironment(tmp_path, Phase.DECODE).read() == OTHER
    assert not retirement.is_due
    ours.hear(Word.RETIRE)
    assert (retirement.is_due, retirement.exit_status) == (True, EXIT_OK)


async def test_without_a_steward_it_ends_and_asks_for_a_new_process(tmp_path: Path) -> None:
    ours, retirement = succession(tmp_path, None)
    ours.want(OTHER, nothing)
    assert (retirement.is_due, retirement.exit_status) == (True, EXIT_START_AGAIN)
    assert StartEnvironment(tmp_path, Phase.DECODE).read() == OTHER


async def test_what_a_new_process_would_not_change_is_no_reason_for_one(tmp_path: Path) -> None:
    ours, retirement = succession(tmp_path, None, started_with=OTHER)
    ours.want(OTHER, nothing)
    assert not retirement.is_due


async def test_after_a_successor_that_failed_a_start_is_as_this_ones_was(tmp_path: Path) -> None:
    before = {"PERCENT": "50"}
    ours, retirement = succession(tmp_path, FakeSteward(), started_with=before)
    ours.want(OTHER, nothing)
    ours.hear(Word.NO_SUCCESSOR)
    assert StartEnvironment(tmp_path, Phase.DECODE).read() == before
    assert not retirement.is_due


async def test_a_wish_that_cannot_be_written_down_changes_nothing(tmp_path: Path) -> None:
    steward = FakeSteward()
    ours, retirement = succession(tmp_path / "gone", steward)
    ours.want(OTHER, nothing)
    assert steward.heard == []
    assert not retirement.is_due


async def test_a_successor_that_failed_is_asked_for_again_later_each_time_until_another_is_wanted(
    tmp_path: Path,
) -> None:
    steward, failures = FakeSteward(), []
    ours = Succession(StartEnvironment(tmp_path, Phase.DECODE), {}, Retirement(), steward, first_retry_s=0.0)
    ours.want(OTHER, lambda: failures.append(1))
    for _ in range(3):
        ours.hear(Word.NO_SUCCESSOR)
        ours.hear(Word.NO_SUCCESSOR)  # of one asked for before
        assert StartEnvironment(tmp_path, Phase.DECODE).read() == {}
        await asyncio.sleep(0.01)
        assert StartEnvironment(tmp_path, Phase.DECODE).read() == OTHER
    assert (len(steward.heard), len(failures)) == (4, 3)
    ours.hear(Word.NO_SUCCESSOR)
    ours.need_none()
    await asyncio.sleep(0.01)
    ours.hear(Word.NO_SUCCESSOR)
    assert (len(steward.heard), len(failures)) == (4, 4)


@pytest.mark.parametrize("left", ["", "{", "[]", '{"PERCENT": 35}'])
def test_what_is_no_environment_is_passed_over(tmp_path: Path, left: str) -> None:
    (tmp_path / "decode.start").write_text(left)
    assert StartEnvironment(tmp_path, Phase.DECODE).read() == {}


async def test_a_process_finds_its_role_its_steward_and_what_was_left(tmp_path: Path) -> None:
    StartEnvironment(tmp_path, Phase.DECODE).write(OTHER)
    ours, theirs = socket.socketpair()
    environ = {ENV_ROLE: "spare", ENV_STEWARD_FD: str(theirs.detach()), "PERCENT": "50"}
    ancestry = Ancestry(tmp_path, Phase.DECODE, environ)
    assert (ancestry.role, environ["PERCENT"]) == (Role.SPARE, "35")
    steward, retirement = await ancestry.open_steward(), Retirement()
    assert steward is not None
    reading = asyncio.create_task(steward.run(ancestry.succession(retirement, steward)))
    steward.say(Word.SERVING)
    assert await asyncio.to_thread(ours.recv, 100) == b"serving\n"
    ours.close()
    await reading
    assert retirement.exit_status == EXIT_START_AGAIN, "the steward is gone"


async def test_a_process_that_nobody_looks_after(tmp_path: Path) -> None:
    ancestry = Ancestry(tmp_path, Phase.DECODE, {})
    assert ancestry.role is Role.FIRST
    assert await ancestry.open_steward() is None


class FakeSuccessors:
    def __init__(self) -> None:
        self.wanted: list[Mapping[str, str]] = []
        self.fail: Callable[[], None] = nothing

    def want(self, environment: Mapping[str, str], on_failure: Callable[[], None]) -> None:
        self.wanted.append(environment)
        self.fail = on_failure

    def need_none(self) -> None:
        self.wanted.clear()


class FixedShare(FakeBackend):
    """Another share needs another process."""

    def apply(self, phase: Phase, split: Split) -> Applied | RestartRequired:
        return RestartRequired("not this one", {"PERCENT": str(split.percent(phase))})


async def test_a_share_that_needs_a_new_process_is_reported_and_wished_for() -> None:
    controller, wishes = FakeController(assignments=[(4, Split(35, 65))]), FakeSuccessors()
    stepper = Stepper(LogitsThenDraws(FakeRunner(Slots()), greedy))
    share = ShareKeeper(
        Phase.DECODE,
        controller,
        FixedShare(),
        stepper,
        metrics=PhaseMetrics.create(CollectorRegistry(), Phase.DECODE),
        clock=ManualClock(0.0),
        successors=wishes,
    )
    await share.apply_pending()
    assert wishes.wanted == [{"PERCENT": "65"}]
    assert controller.applied == [(4, "not this one")]
    wishes.fail()
    assert controller.applied[1:] == [(4, "no new process came to serve, tried again later: not this one")]


async def test_warming_up_makes_one_prompt_and_one_row_and_gives_its_blocks_back() -> None:
    store, slots = FakeStore(num_blocks=4), Slots()
    runner = FakeRunner(slots)
    await warm_up(store, DECODE_HOLDER, Stepper(LogitsThenDraws(runner, greedy)), BLOCK_SIZE)
    (prompt,), (row,) = runner.steps
    assert (len(prompt.token_ids), prompt.start) == (BLOCK_SIZE, 0)
    assert (len(row.token_ids), row.start) == (1, BLOCK_SIZE)
    assert len(set(row.block_ids)) == 2
    assert slots.context(row) == [0] * (BLOCK_SIZE + 1)
    assert sorted(block.block_id for block in store.free) == [0, 1, 2, 3]
    assert store.spare[DECODE_HOLDER] == set()


async def test_a_pool_that_is_low_is_left_alone() -> None:
    store, runner = FakeStore(num_blocks=1), FakeRunner(Slots())
    await warm_up(store, DECODE_HOLDER, Stepper(LogitsThenDraws(runner, greedy)), BLOCK_SIZE)
    assert runner.steps == []
    assert len(store.free) == 1


class FakeLink:
    def __init__(self) -> None:
        self.is_started = False

    async def start(self) -> None:
        self.is_started = True


@pytest.fixture
def address() -> Iterator[str]:
    with short_run_dir() as path:
        yield f"unix:{path}/decode.sock"


async def test_a_spare_process_answers_when_it_is_ready_and_has_the_metrics_port_when_the_other_has_ended(
    address: str,
) -> None:
    first, crew, link = ServiceHost([], [address]), Crew(), FakeLink()
    await first.start()
    started = asyncio.Event()

    def start_metrics() -> MetricsServer:
        started.set()
        return MetricsServer(None, None)

    host = ServiceHost([], [address], entry=Entry.SUCCESSOR)
    opening = Opening(Role.SPARE, host, link, start_metrics, crew)
    await opening.at_start()
    assert not link.is_started
    await opening.when_ready()
    assert link.is_started
    assert not started.is_set()
    await first.stop(0)
    await asyncio.wait_for(started.wait(), 30)
    await crew.cancel()
    await host.stop(0)
