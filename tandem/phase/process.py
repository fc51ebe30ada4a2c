"""Puts a process together: server, memd, controller, device, metrics, one step loop, and the engines that share it.

A process serves one phase, or both when colocated. Each phase is a holder of its own in memd with an attachment of its
own; the model is mapped once.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

import grpc
from prometheus_client import CollectorRegistry

from tandem.clock import Clock, MonotonicClock
from tandem.config.settings import PhaseConfig
from tandem.device.cuda.health import check_device
from tandem.device.memory_backends import IMPORTERS, SegmentImporter
from tandem.device.partition import PartitionBackend
from tandem.device.partition_backends import PartitionSite, make_partition_backend
from tandem.kv.store import MemoryStore
from tandem.phase.crew import Crew
from tandem.phase.door import Door
from tandem.phase.joint import JointWork
from tandem.phase.lifecycle import Engine, JointHealth, PhaseLife, run_lives
from tandem.phase.limits import PhaseLimits
from tandem.phase.loop import Reporter, StepLoop
from tandem.phase.outfit import Outfit
from tandem.phase.session import ResultT
from tandem.phase.share import ControllerPort, ShareKeeper, WholeDevice
from tandem.phase.stepper import Stepper
from tandem.phase.storage import AttachmentLike, MappedModel, attach, choose_pausing_kernels, claim, map_model
from tandem.phase.supply import SupplyPolicy
from tandem.rpc.controller_client import ControllerLink
from tandem.rpc.memd_client import MemdClient
from tandem.rpc.server import ServiceHost
from tandem.runner.cuda.graphs import StepStream
from tandem.telemetry.metrics import PhaseMetrics, start_metrics_server
from tandem.types import Phase

HOST_GRACE_S = 1.0  # for streams to end after the engine has closed them


@dataclass(frozen=True, slots=True)
class PhaseService(Generic[ResultT]):
    """What is a phase's own."""

    phase: Phase
    grpc_name: str  # full name of the gRPC service
    register: Callable[[Door[ResultT], grpc.aio.Server], None]
    make_engine: Callable[[Outfit], Engine[ResultT]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is there before memd is, and outlives an engine."""

    config: PhaseConfig
    store: MemoryStore
    backend: PartitionBackend
    stream: StepStream  # what the backend chooses, and the steps run on
    share: Callable[[Stepper], ShareKeeper]
    reporter: Reporter
    metrics: PhaseMetrics
    clock: Clock


class PhaseProcess:
    """The engines of one process and the step loop that they share, which starts with the first of them."""

    def __init__(self, around: Surroundings, steps: JointWork, crew: Crew) -> None:
        """`crew` gets the step loop."""
        self._around = around
        self._steps = steps
        self._crew = crew
        self._model: MappedModel | None = None

    async def build(self, service: PhaseService[ResultT], attachment: AttachmentLike, crew: Crew) -> Engine[ResultT]:
        """The engine over what was attached; its own tasks go to `crew`."""
        if self._model is None:
            self._model = self._map_model(attachment)
            self._start_loop(self._model)
        around = self._around
        outfit = Outfit(
            store=around.store,
            holder_id=attachment.holder_id,
            limits=await self._limits(service.phase, attachment),
            supply_policy=SupplyPolicy(around.config.spare_blocks),
            steps=self._steps,
            metrics=around.metrics,
            crew=crew,
            clock=around.clock,
        )
        return service.make_engine(outfit)

    def _map_model(self, attachment: AttachmentLike) -> MappedModel:
        choose = partial(choose_pausing_kernels, self._around.backend.pause)
        return map_model(attachment, SegmentImporter(IMPORTERS), choose, self._around.stream)

    def _start_loop(self, model: MappedModel) -> None:
        around = self._around
        stepper = Stepper(model.steps, around.backend.turn, check_device)
        loop = StepLoop(
            self._steps,
            wake=self._steps.wake,
            stepper=stepper,
            share=around.share(stepper),
            reporter=around.reporter,
            clock=around.clock,
        )
        self._crew.spawn(loop.run())

    async def _limits(self, phase: Phase, attachment: AttachmentLike) -> PhaseLimits:
        """memd keeps its reserve from prefill, so a prompt that needs it would wait for ever."""
        statistics = await self._around.store.statistics()
        reserve = statistics.num_reserve_blocks if phase is Phase.PREFILL else 0
        return PhaseLimits(
            max_sequences=self._around.config.max_sequences,
            block_size=attachment.kv_layout.block_size,
            num_pool_blocks=attachment.kv_layout.num_blocks - reserve,
            vocab_size=attachment.model_config.vocab_size,
            max_context_tokens=attachment.model_config.max_position_embeddings,
        )


async def run_phases(
    services: Sequence[PhaseService[Any]], steps: JointWork, config: PhaseConfig, stop: asyncio.Event
) -> int:
    """Serves one phase, or both in one step loop, until `stop` is set or memd is gone; the process's exit status.

    Both together have the whole device, whatever the split, and report their steps as the first one's.
    ConfigError: an address in use. DeviceError: the partition backend that is configured does not work here.
    FingerprintMismatchError: the storage is not what the configuration claims.
    """
    phase = services[0].phase
    registry = CollectorRegistry()
    metrics_server = start_metrics_server(registry, config.metrics_port, config.metrics_host)
    metrics = PhaseMetrics.create(registry, phase)
    stream = StepStream()
    phases = tuple(each.phase for each in services)
    site = PartitionSite(phases, config.run_dir, os.environ, use_stream=stream.use)
    backend = make_partition_backend(config.partition_backend, site)
    client = MemdClient(config.socket("memd"))
    link = ControllerLink(config.socket("controller"), phase, os.getpid(), backend.name, backend.splits)
    controller: ControllerPort = link if len(services) == 1 else WholeDevice(link)
    host = ServiceHost([each.grpc_name for each in services], [config.socket(each.phase) for each in services])
    clock = MonotonicClock()
    around = Surroundings(
        config=config,
        store=client,
        backend=backend,
        stream=stream,
        share=lambda stepper: ShareKeeper(phase, controller, backend, stepper, metrics=metrics, clock=clock),
        reporter=Reporter(controller, metrics, time.time_ns),
        metrics=metrics,
        clock=clock,
    )
    crew = Crew()
    process = PhaseProcess(around, steps, crew)
    health = JointHealth(len(services), partial(_publish, host, metrics))
    lives = [_life(service, process, config=config, client=client, host=host, health=health) for service in services]
    try:
        await host.start()
        await link.start()
        return await run_lives(lives, crew, stop)
    finally:
        await crew.cancel()
        await host.stop(HOST_GRACE_S)
        await link.close()
        await client.close()
        metrics_server.close()


def _life(
    service: PhaseService[ResultT],
    process: PhaseProcess,
    *,
    config: PhaseConfig,
    client: MemdClient,
    host: ServiceHost,
    health: JointHealth,
) -> PhaseLife[ResultT]:
    door: Door[ResultT] = Door()
    service.register(door, host.server)
    return PhaseLife(
        door,
        attach=partial(attach, client, service.phase, os.getpid(), claim(config)),
        build=partial(process.build, service),
        set_serving=partial(health.set, service.phase),
        drain_timeout_s=config.drain_timeout_s,
    )


def _publish(host: ServiceHost, metrics: PhaseMetrics, serving: bool) -> None:
    host.set_serving(serving)
    metrics.memd_connected.set(int(serving))
