"""All micro measurements, one after another, each over processes of its own."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.deployment.local import LocalServices, run_dir, running
from bench.deployment.open import DeploymentKind, DeploymentOptions, DeploymentSpec, open_deployment
from bench.experiment import Experiment
from bench.micro.decisions import measure_decisions
from bench.micro.gateway import measure_gateway, request_us
from bench.micro.leases import measure_leases
from bench.micro.memory import measure_segments, measure_services
from bench.micro.overhead import measure_overhead, overhead_shapes
from bench.micro.shapes import Grid, kv_bytes_needed, model_facts, step_shapes
from bench.micro.steps import measure_steps, open_steps
from bench.micro.table import (
    Floor,
    GatewayCost,
    LeaseCost,
    MicroResult,
    ModelFacts,
    SegmentSize,
    ServiceMemory,
    StepOverhead,
    StepShape,
    StepTime,
)
from bench.results import provenance
from tandem.config.settings import MemdConfig
from tandem.model.metadata import ModelMetadata
from tandem.rpc.memd_client import MemdClient

MEMD = "memd"
STEPS_A_ROUND = 5  # of the overhead's
BLOCK_SIZE_FLAG, KV_BYTES_FLAG = "block-size", "kv-bytes"


@dataclass(frozen=True, slots=True)
class MicroPlan:
    """What is measured."""

    model: ModelMetadata
    grid: Grid
    max_context_tokens: int
    num_rounds: int

    @property
    def shapes(self) -> tuple[StepShape, ...]:
        """Every step of a round."""
        return step_shapes(self.grid, self.max_context_tokens)

    @property
    def all_shapes(self) -> tuple[StepShape, ...]:
        """Those of other measurements included, for the pool's size."""
        return (*self.shapes, *overhead_shapes(self.grid.threads))

    @property
    def num_steps(self) -> int:
        """That are run, the uncounted round included."""
        return len(self.shapes) * (self.num_rounds + 1)


@dataclass(frozen=True, slots=True)
class _StorageCosts:
    """What was measured over one memd."""

    model: ModelFacts
    floors: tuple[Floor, ...]
    steps: tuple[StepTime, ...]
    leases: tuple[LeaseCost, ...]
    overhead: tuple[StepOverhead, ...]


@dataclass(frozen=True, slots=True)
class _SystemCosts:
    """What was measured over a whole deployment."""

    gateway: tuple[GatewayCost, ...]
    segments: tuple[SegmentSize, ...]
    services: tuple[ServiceMemory, ...]


def measure(
    plan: MicroPlan, options: DeploymentOptions, experiment: Experiment, advance: Callable[[], None]
) -> MicroResult:
    """Everything; `advance` is called once a step. NotReadyError when a process does not start."""
    with run_dir() as path, running(memd_alone(plan, options, path)) as services:
        storage = asyncio.run(_storage_costs(plan, services.socket(MEMD), advance))
    system = _system_costs(options, experiment)
    return MicroResult(
        provenance=provenance(),
        model=storage.model,
        floors=storage.floors,
        steps=storage.steps,
        decisions=measure_decisions(plan.num_rounds),
        leases=storage.leases,
        gateway=system.gateway,
        gateway_request_us=request_us(system.gateway),
        overhead=storage.overhead,
        segments=system.segments,
        services=system.services,
    )


def _system_costs(options: DeploymentOptions, experiment: Experiment) -> _SystemCosts:
    with open_deployment(DeploymentSpec(DeploymentKind.SEMI_PD), options) as target:
        gateway = measure_gateway(experiment, target)
        services = measure_services(target.pids)
        return _SystemCosts(gateway, asyncio.run(measure_segments(target.memd)), services)


async def _storage_costs(plan: MicroPlan, address: str, advance: Callable[[], None]) -> _StorageCosts:
    client = MemdClient(address)
    try:
        leases = await measure_leases(client, plan.num_rounds)
        async with open_steps(client) as bench:
            facts = model_facts(plan.model.name, bench.config, bench.layout)
            floors, steps = await measure_steps(bench, plan.shapes, facts, plan.num_rounds, advance)
        overhead = await measure_overhead(client, plan.grid.threads, plan.num_rounds * STEPS_A_ROUND)
        return _StorageCosts(facts, floors, steps, leases, overhead)
    finally:
        await client.close()


def memd_alone(plan: MicroPlan, options: DeploymentOptions, path: Path) -> LocalServices:
    """memd alone, with a pool for the largest step."""
    flags = dict(options.settings.get(MEMD, {}))
    block_size = int(str(flags.get(BLOCK_SIZE_FLAG, MemdConfig().block_size)))
    flags[KV_BYTES_FLAG] = kv_bytes_needed(plan.all_shapes, plan.model.config, block_size)
    return LocalServices(path, options.model, {MEMD: flags}, (MEMD,))
