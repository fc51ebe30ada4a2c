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

from kernels.native.team import place_team
from tandem.clock import Clock, MonotonicClock
from tandem.config.settings import PhaseConfig
from tandem.device.cuda.health import check_device, idle_check
from tandem.device.memory_backends import IMPORTERS, SegmentImporter
from tandem.device.partition import PartitionBackend
from tandem.device.partition_backends import PartitionSite, make_partition_backend
from tandem.phase.crew import Crew
from tandem.phase.door import Door
from tandem.phase.hold import Hold
from tandem.phase.joint import JointWork
from tandem.phase.lifecycle import EXIT_START_AGAIN, Engine, JointHealth, PhaseLife, run_lives
from tandem.phase.limits import PhaseLimits
from tandem.phase.loop import Reporter, StepLoop
from tandem.phase.opening import Opening
from tandem.phase.outfit import Outfit
from tandem.phase.retirement import Retirement
from tandem.phase.session import ResultT
from tandem.phase.share import ControllerPort, ShareKeeper, WholeDevice
from tandem.phase.stepper import Stepper
from tandem.phase.stewardship import Role
from tandem.phase.storage import (
    AttachmentLike,
    MappedModel,
    attach,
    choose_pausing_kernels,
    claim,
    map_model,
    until_memd_answers,
)
from tandem.phase.succession import Ancestry, Succession
from tandem.phase.supply import SupplyPolicy
from tandem.phase.warmup import warm_up
from tandem.phase.watchdog import Progress, Watchdog, end_stuck_process
from tandem.rpc.controller_client import ControllerLink
from tandem.rpc.listening import replica_ports
from tandem.rpc.memd_client import MemdClient
from tandem.rpc.server import ServiceHost
from tandem.rpc.sockets import Entry
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
    client: MemdClient
    link: ControllerLink
    backend: PartitionBackend
    stream: StepStream  # what the backend chooses, and the steps run on
    share: Callable[[Stepper], ShareKeeper]
    reporter: Reporter
    metrics: PhaseMetrics
    clock: Clock


class PhaseProcess:
    """The engines of one process and the step loop that they share, which starts with the first of them."""

    def __init__(self, around: Surroundings, steps: JointWork, crew: Crew, *, warms_up: bool) -> None:
        """`crew` gets the step loop. `warms_up`: whether its first steps are made before an engine is there."""
        self.around = around
        self._warms_up = warms_up
        self._steps = steps
        self._crew = crew
        self._model: MappedModel | None = None
        self._progress = Progress()

    async def build(self, service: PhaseService[ResultT], hold: Hold, crew: Crew) -> Engine[ResultT]:
        """The engine over what was attached; its own tasks go to `crew`."""
        around, attachment = self.around, hold.attachment
        if self._model is None:
            self._model = self._map_model(attachment)
            stepper = self._start_loop(self._model)
            if self._warms_up:
                await warm_up(around.client, attachment.holder_id, stepper, attachment.kv_layout.block_size)
        outfit = Outfit(
            store=hold,
            holder_id=hold.holder_id,
            limits=await self._limits(service.phase, attachment),
            supply_policy=SupplyPolicy(around.config.spare_blocks),
            steps=self._steps,
            metrics=around.metrics,
            crew=crew,
            clock=around.clock,
        )
        return service.make_engine(outfit)

    def _map_model(self, attachment: AttachmentLike) -> MappedModel:
        choose = partial(choose_pausing_kernels, self._progress.signing(self.around.backend.pause))
        return map_model(attachment, SegmentImporter(IMPORTERS), choose, self.around.stream)

    def _start_loop(self, model: MappedModel) -> Stepper:
        around = self.around
        turn, progress = around.backend.turn, self._progress
        stepper = Stepper(model.steps, turn, check_device, progress.step, model.open_segments, wipe=model.wipe)
        loop = StepLoop(
            self._steps,
            wake=self._steps.wake,
            stepper=stepper,
            share=around.share(stepper),
            reporter=around.reporter,
            clock=around.clock,
            idle_check=idle_check() if model.is_on_gpu else None,
        )
        self._crew.spawn(loop.run())
        if around.config.step_timeout_s:
            end = partial(end_stuck_process, EXIT_START_AGAIN, os.environ)
            self._crew.spawn(Watchdog(self._progress, around.config.step_timeout_s, around.clock, end).run())
        return stepper

    async def _limits(self, phase: Phase, attachment: AttachmentLike) -> PhaseLimits:
        """memd keeps its reserve from prefill, so a prompt that needs it would wait for ever."""
        statistics = await until_memd_answers(self.around.client.statistics)
        reserve = statistics.num_reserve_blocks if phase is Phase.PREFILL else 0
        return PhaseLimits(
            max_sequences=self.around.config.max_sequences,
            block_size=attachment.kv_layout.block_size,
            num_pool_blocks=attachment.kv_layout.num_blocks - reserve,
            vocab_size=attachment.model_config.vocab_size,
            max_context_tokens=attachment.model_config.max_position_embeddings,
        )


async def run_phases(
    services: Sequence[PhaseService[Any]], steps: JointWork, config: PhaseConfig, stop: asyncio.Event
) -> int:
    """Serves one phase, or both in one step loop, until `stop` is set or memd is gone; the process's exit status.

    Both together have the whole device, whatever the split, and report their steps as the first one's. It also ends
    when the share that it should have takes another process: see `tandem.phase.succession`.
    ConfigError: an address in use. DeviceError: the partition backend that is configured does not work here.
    FingerprintMismatchError: the storage is not what the configuration claims.
    """
    ancestry = Ancestry(config.run_dir, services[0].phase, os.environ)
    retirement, registry, crew = Retirement(), CollectorRegistry(), Crew()
    steward = await ancestry.open_steward()
    succession = ancestry.succession(retirement, steward)
    around = _surround(services, config, PhaseMetrics.create(registry, services[0].phase), succession)
    host = _host(services, config, ancestry.role, has_steward=succession.has_steward)
    start_metrics = partial(start_metrics_server, registry, config.metrics_port, config.metrics_host)
    opening = Opening(ancestry.role, host, around.link, start_metrics, crew)
    process = PhaseProcess(around, steps, crew, warms_up=ancestry.role is Role.SPARE)
    health = JointHealth(len(services), partial(_publish, host, succession))
    lives = [_life(service, process, health, opening, retirement) for service in services]
    try:
        if steward is not None:
            crew.spawn(steward.run(succession))
        crew.spawn(_leave_the_link(around.link, retirement))
        await opening.at_start()
        return await run_lives(lives, crew, stop)
    finally:
        await crew.cancel()
        opening.close()  # first: a successor takes the metrics' port when it has got the sockets' claims
        await host.stop(HOST_GRACE_S)
        await around.link.close()
        await around.client.close()


def _surround(
    services: Sequence[PhaseService[Any]], config: PhaseConfig, metrics: PhaseMetrics, succession: Succession
) -> Surroundings:
    phase, stream, clock = services[0].phase, StepStream(), MonotonicClock()
    site = PartitionSite(
        tuple(each.phase for each in services),
        config.run_dir,
        os.environ,
        use_stream=stream.use,
        place_team=place_team,
        has_steward=succession.has_steward,
    )
    backend = make_partition_backend(config.partition_backend, site)
    link = ControllerLink(config.socket("controller"), phase, os.getpid(), backend.name, backend.splits)
    controller: ControllerPort = link if len(services) == 1 else WholeDevice(link)

    def share(stepper: Stepper) -> ShareKeeper:
        return ShareKeeper(phase, controller, backend, stepper, metrics=metrics, clock=clock, successors=succession)

    return Surroundings(
        config=config,
        client=MemdClient(config.socket("memd")),
        link=link,
        backend=backend,
        stream=stream,
        share=share,
        reporter=Reporter(controller, metrics, time.time_ns),
        metrics=metrics,
        clock=clock,
    )


def _host(services: Sequence[PhaseService[Any]], config: PhaseConfig, role: Role, *, has_steward: bool) -> ServiceHost:
    entry = Entry.SUCCESSOR if role is Role.SPARE else Entry.ALONE
    addresses = [config.socket(each.phase) for each in services]
    name = services[0].phase if len(services) == 1 else "colocated"
    ports = replica_ports(name, config, len(services), are_shared=has_steward)
    return ServiceHost([each.grpc_name for each in services], addresses, entry=entry, ports=ports)


def _life(
    service: PhaseService[ResultT],
    process: PhaseProcess,
    health: JointHealth,
    opening: Opening,
    retirement: Retirement,
) -> PhaseLife[ResultT]:
    around = process.around
    door: Door[ResultT] = Door()
    service.register(door, opening.host.server)
    return PhaseLife(
        door,
        attach=partial(_hold, around, service.phase),
        build=partial(process.build, service),
        take_place=opening.when_ready,
        set_serving=partial(health.set, service.phase),
        drain_timeout_s=around.config.drain_timeout_s,
        retirement=retirement,
    )


async def _hold(around: Surroundings, phase: Phase) -> Hold:
    attachment = await attach(around.client, phase, os.getpid(), claim(around.config))
    return Hold(around.client, attachment, around.metrics.memd_connected.set)


async def _leave_the_link(link: ControllerLink, retirement: Retirement) -> None:
    """A phase has one link, and the successor has its own by now."""
    await retirement.due()
    await link.close()


def _publish(host: ServiceHost, succession: Succession, serving: bool) -> None:
    host.set_serving(serving)
    if serving:
        succession.serves()
