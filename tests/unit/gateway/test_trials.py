"""Requests that end a phase, or fail in it, among others that do not: who is convicted, and who is spared."""

from collections import Counter
from dataclasses import dataclass, field

import pytest

from services.gateway.requests import Request
from services.gateway.trials import Trials
from tandem.config.settings import GatewayConfig
from tandem.errors import SequenceFailedError
from tandem.types import DecodeResult, DropReason, FinishReason, Phase, PrefillResult, SequenceDropped, SequenceSpec
from tests.support.gateway_fakes import Rig, read_all, tokens_of

PREFILL, DECODE = Phase.PREFILL, Phase.DECODE
NUM_TOKENS = 12
POISON = b"poison"


@dataclass
class Machine:
    """Both phases of a rig, step by step: a phase that has the poison in a step ends, or says that the step failed."""

    rig: Rig
    phase: Phase
    dies: bool = True
    at_once: int = 4  # sequences that prefill computes in a step
    num_drawn: int = 0  # tokens that the poison gets each time before the phase ends
    requests: list[Request] = field(default_factory=list)
    crashes: Counter[Phase] = field(default_factory=Counter)

    def run(self) -> None:
        """Until nothing is left to do."""
        while self.rig.prefill.held or self.rig.decode.held:
            self.step()

    def step(self) -> None:
        """One of each phase."""
        self._prefill()
        self._decode()

    def _prefill(self) -> None:
        step = list(self.rig.prefill.held.values())[: self.at_once]
        if self._goes_wrong(PREFILL, step):
            return
        for spec in step:
            self.rig.prefilled(*self._next(spec), lease_id=spec.lease_id)

    def _decode(self) -> None:
        step = list(self.rig.decode.held.values())
        if self._goes_wrong(DECODE, step):
            return
        for spec in step:
            if spec.lease_id in self.rig.decode.held:
                self.rig.token(*self._next(spec), lease_id=spec.lease_id)

    def _goes_wrong(self, phase: Phase, step: list[SequenceSpec]) -> bool:
        if phase is not self.phase or not any(is_poison(spec) and not self._draws(spec) for spec in step):
            return False
        self.crashes[phase] += 1
        if self.dies:
            ended = (phase,) if self.rig.config.mode == "semi-pd" else (PREFILL, DECODE)
            for each in ended:
                self.rig.lose(each)
            for each in ended:
                self.rig.connect(each)
        else:
            held = self.rig.phase(phase).held
            dropped = tuple(
                SequenceDropped(held.pop(spec.lease_id).lease_id, DropReason.FAILED, "bad") for spec in step
            )
            result = PrefillResult(dropped=dropped) if phase is PREFILL else DecodeResult(dropped=dropped)
            self.rig.orchestrator.phase_result(result)
        return True

    def _draws(self, spec: SequenceSpec) -> bool:
        """Whether it gets a token once more, since the phase has it this time."""
        num_had = len(spec.token_ids) - spec.num_prompt_tokens
        return len(self._sequence(spec).output_token_ids) - num_had < self.num_drawn

    def _next(self, spec: SequenceSpec) -> tuple[int, FinishReason]:
        """A token that depends on the position alone."""
        number = len(self._sequence(spec).output_token_ids)
        return 97 + number, FinishReason.LENGTH if number + 1 == NUM_TOKENS else FinishReason.NONE

    def _sequence(self, spec: SequenceSpec):
        return next(request for request in self.requests if request.request_id == spec.request_id).sequences[0]


def is_poison(spec: SequenceSpec) -> bool:
    return bytes(spec.token_ids[: spec.num_prompt_tokens]) == POISON


async def started(rig: Rig, machine: Machine, num_innocent: int, num_poison: int = 1):
    prompts = ["innocent"] * num_innocent
    for number in range(num_poison):
        prompts.insert(1 + 3 * number, POISON.decode())
    for number, prompt in enumerate(prompts):
        machine.requests.append(await rig.request(prompt, request_id=f"{number}-{prompt}", max_tokens=NUM_TOKENS))


@pytest.mark.parametrize("dies", [True, False], ids=["it ends the phase", "its steps fail"])
@pytest.mark.parametrize("phase", [PREFILL, DECODE])
@pytest.mark.parametrize(("num_innocent", "num_poison"), [(0, 1), (1, 1), (7, 1), (7, 3)])
async def test_the_poison_is_convicted_and_nobody_else(phase, dies, num_innocent, num_poison):
    rig = await Rig(config=GatewayConfig(max_running=5)).up()
    await check_justice(rig, Machine(rig, phase, dies), num_innocent, num_poison)


@pytest.mark.parametrize("phase", [PREFILL, DECODE])
@pytest.mark.parametrize("num_innocent", [1, 4, 7])
async def test_phases_that_end_together_change_nothing_of_that(phase, num_innocent):
    rig = await Rig(config=GatewayConfig(max_running=5, mode="colocated")).up()
    await check_justice(rig, Machine(rig, phase), num_innocent, num_poison=1)


async def check_justice(rig: Rig, machine: Machine, num_innocent: int, num_poison: int) -> None:
    await started(rig, machine, num_innocent, num_poison)
    machine.run()
    for request in machine.requests:
        if "poison" in request.request_id:
            with pytest.raises(SequenceFailedError):
                await read_all(request)
        else:
            assert tokens_of(await read_all(request)) == [97 + number for number in range(NUM_TOKENS)]
    assert machine.crashes[machine.phase] <= 6 * num_poison
    await rig.assert_all_released()


@pytest.mark.parametrize("num_drawn", [1, 2, 5])
async def test_who_gets_tokens_before_each_end_ends_its_phase_no_oftener_than_it_has_tokens(num_drawn):
    rig = await Rig(config=GatewayConfig(max_running=5)).up()
    machine = Machine(rig, DECODE, num_drawn=num_drawn)
    await started(rig, machine, 7)
    machine.run()
    for request in machine.requests:
        assert tokens_of(await read_all(request)) == [97 + number for number in range(NUM_TOKENS)]
    assert 0 < machine.crashes[DECODE] <= NUM_TOKENS / num_drawn
    await rig.assert_all_released()


async def test_what_is_killed_from_outside_convicts_nobody_that_goes_on_in_between():
    rig = await Rig().up()
    machine = Machine(rig, DECODE)
    await started(rig, machine, 3, num_poison=0)
    for _ in range(NUM_TOKENS // 2):
        for phase in (DECODE, PREFILL):
            machine.step()
            rig.lose(phase)
            rig.connect(phase)
    machine.run()
    for request in machine.requests:
        assert len(tokens_of(await read_all(request))) == NUM_TOKENS
    await rig.assert_all_released()


async def test_a_suspect_that_ends_makes_room_for_the_next():
    rig = await Rig().up()
    requests = [await rig.request(max_tokens=2) for _ in range(3)]
    for _ in range(2):
        rig.lose(PREFILL)
        rig.connect(PREFILL)
    assert len(rig.prefill.held) == 1, "one at a time"
    tried = next(iter(rig.prefill.held.values())).request_id
    (request,) = (request for request in requests if request.request_id == tried)
    rig.gateway.frontend.cancel(request)
    assert len(rig.prefill.held) == 2, "the next does not wait for an answer to the abort"
    rig.obey_aborts()
    for rest in requests:
        rig.gateway.frontend.cancel(rest)
    await rig.assert_all_released()


async def test_a_suspect_that_is_preempted_stays_one():
    rig = await Rig().up()
    requests = [await rig.request(max_tokens=3) for _ in range(2)]
    for _ in range(2):
        rig.lose(PREFILL)
        rig.connect(PREFILL)
    first = next(iter(rig.prefill.held.values()))
    rig.drop(PREFILL, DropReason.PREEMPTED)
    second = next(iter(rig.prefill.held.values()))
    assert first.request_id != second.request_id, "the other is tried meanwhile"
    for _ in range(2):
        rig.prefilled(97, FinishReason.LENGTH)
    assert not any(request.unfinished for request in requests)
    await rig.assert_all_released()


def test_a_token_of_the_other_phase_clears_nobody():
    trials: Trials[str] = Trials()
    for _ in range(2):
        trials.strike("a", DECODE, alone=False)
    trials.clear("a", PREFILL)
    assert trials.take_back("a")
    assert trials.take() == "a"
    trials.clear("a", DECODE)
    assert not trials.are_on
    assert not trials
    assert not trials.take_back("a")
