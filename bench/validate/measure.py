"""What a prediction rests on: step times of the model alone, and what becomes of them when both phases are at work."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench.deployment.local import run_dir, running
from bench.deployment.open import DeploymentOptions
from bench.micro.measure import MEMD, MicroPlan, memd_alone
from bench.micro.shapes import model_facts
from bench.micro.split_worker import SHAPES
from bench.micro.splits import measure_meeting, measure_splits
from bench.micro.steps import measure_steps, open_steps
from bench.micro.table import ModelFacts, StepTime
from bench.simulate.step_times import Contention, DeviceTable, StepContent
from bench.simulate.systems import measured_table
from tandem.phase.storage import choose_pausing_kernels
from tandem.rpc.memd_client import MemdClient
from tandem.types import Phase, Split

EVEN = Split(50, 50)
HALF_PERCENT = 50.0


@dataclass(frozen=True, slots=True)
class MeasuredSteps:
    """Of the model in a process of its own, by threads."""

    model: ModelFacts
    steps: tuple[StepTime, ...]

    @property
    def label(self) -> str:
        """What the steps are of."""
        return f"{self.model.name}, measured"

    @property
    def table(self) -> DeviceTable:
        """As the simulator reads it. ConfigError."""
        return measured_table(self.label, self.steps)


def measured_steps(plan: MicroPlan, options: DeploymentOptions, advance: Callable[[], None]) -> MeasuredSteps:
    """`advance` is called once a step. NotReadyError when memd does not start."""
    with run_dir() as path, running(memd_alone(plan, options, path)) as services:
        return asyncio.run(_steps(plan, services.socket(MEMD), advance))


async def _steps(plan: MicroPlan, address: str, advance: Callable[[], None]) -> MeasuredSteps:
    client = MemdClient(address)
    try:
        async with open_steps(client, partial(choose_pausing_kernels, _pass)) as bench:
            facts = model_facts(plan.model.name, bench.config, bench.layout)
            _, steps = await measure_steps(bench, plan.shapes, facts, plan.num_rounds, advance)
            return MeasuredSteps(facts, steps)
    finally:
        await client.close()


def measured_contention(table: DeviceTable, model: str, backend: str, seconds: float) -> Contention:
    """Steps with both phases at work, over what the table has for half of the device.

    Under an even split, and of decode's on all cores, as they are when prefill comes back in the middle of them.
    """
    (even,) = measure_splits(model, [EVEN], seconds, backend).splits
    meeting_ms = measure_meeting(model, seconds)[Phase.DECODE].mean_ms
    prefill, decode = SHAPES[Phase.PREFILL], SHAPES[Phase.DECODE]
    alone_ms = {
        Phase.PREFILL: table.ms(StepContent(num_prompt_rows=prefill.num_new_tokens), HALF_PERCENT),
        Phase.DECODE: table.ms(
            StepContent(
                num_decode_rows=decode.num_sequences, num_decode_keys=decode.num_sequences * decode.num_context_tokens
            ),
            HALF_PERCENT,
        ),
    }
    factors = {phase: even.together[phase].mean_ms / ms for phase, ms in alone_ms.items()}
    meeting = meeting_ms / alone_ms[Phase.DECODE]
    return Contention(factors[Phase.PREFILL], factors[Phase.DECODE], noise=0.05, meeting_factor=meeting)


def _pass() -> None:
    """Long steps ask between their layers whether to go on, as under `cpu-cadence`, and always go on."""
