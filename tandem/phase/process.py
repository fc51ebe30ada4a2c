"""Puts a phase together: server, memd, controller, device, metrics, and the engine between them."""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic

import grpc
from prometheus_client import CollectorRegistry

from tandem.clock import Clock, MonotonicClock
from tandem.config.settings import PhaseConfig
from tandem.device.cpu.memory import MemfdImporter
from tandem.device.partition import PartitionBackend
from tandem.device.partition_backends import make_partition_backend
from tandem.kv.store import MemoryStore
from tandem.phase.crew import Crew
from tandem.phase.door import Door
from tandem.phase.lifecycle import Engine, PhaseLife
from tandem.phase.limits import PhaseLimits
from tandem.phase.loop import Reporter
from tandem.phase.outfit import Outfit
from tandem.phase.session import ResultT
from tandem.phase.share import ControllerPort, ShareKeeper
from tandem.phase.stepper import Stepper
from tandem.phase.storage import AttachmentLike, attach, claim, map_model
from tandem.phase.supply import SupplyPolicy
from tandem.rpc.controller_client import ControllerLink
from tandem.rpc.memd_client import MemdClient
from tandem.rpc.server import ServiceHost
from tandem.runner.sampler import sample
from tandem.telemetry.metrics import PhaseMetrics, start_metrics_server
from tandem.types import Phase

HOST_GRACE_S = 1.0  # for streams to end after the engine has closed them


@dataclass(frozen=True, slots=True)
class PhaseService(Generic[ResultT]):
    """What is a service's own."""

    phase: Phase
    grpc_name: str  # full name of the gRPC service
    register: Callable[[Door[ResultT], grpc.aio.Server], None]
    make_engine: Callable[[Outfit], Engine[ResultT]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is there before memd is, and outlives an engine."""

    phase: Phase
    config: PhaseConfig
    store: MemoryStore
    controller: ControllerPort
    backend: PartitionBackend
    metrics: PhaseMetrics
    clock: Clock


async def run_phase(service: PhaseService[ResultT], config: PhaseConfig, stop: asyncio.Event) -> int:
    """Serves until `stop` is set or memd is gone; the process's exit status.

    ConfigError: an address in use. FingerprintMismatchError: the storage is not what the configuration claims.
    """
    registry = CollectorRegistry()
    metrics_server = start_metrics_server(registry, config.metrics_port, config.metrics_host)
    backend = make_partition_backend(config.partition_backend)
    client = MemdClient(config.socket("memd"))
    link = ControllerLink(config.socket("controller"), service.phase, os.getpid(), backend.name)
    metrics = PhaseMetrics.create(registry, service.phase)
    around = Surroundings(service.phase, config, client, link, backend, metrics, MonotonicClock())
    door: Door[ResultT] = Door()
    host = ServiceHost([service.grpc_name], [config.socket(service.phase)])
    service.register(door, host.server)
    life = PhaseLife(
        door,
        attach=partial(attach, client, service.phase, os.getpid(), claim(config)),
        build=partial(_build, service, around),
        set_serving=partial(_publish, host, metrics),
        drain_timeout_s=config.drain_timeout_s,
    )
    try:
        await host.start()
        await link.start()
        return await life.run(stop)
    finally:
        await host.stop(HOST_GRACE_S)
        await link.close()
        await client.close()
        metrics_server.close()


def _publish(host: ServiceHost, metrics: PhaseMetrics, serving: bool) -> None:
    host.set_serving(serving)
    metrics.memd_connected.set(int(serving))


async def _build(
    service: PhaseService[ResultT], around: Surroundings, attachment: AttachmentLike, crew: Crew
) -> Engine[ResultT]:
    model = map_model(attachment, MemfdImporter())
    stepper = Stepper(model.runner, sample)
    share = ShareKeeper(
        around.phase, around.controller, around.backend, stepper, metrics=around.metrics, clock=around.clock
    )
    outfit = Outfit(
        store=around.store,
        holder_id=attachment.holder_id,
        limits=await _limits(around, attachment),
        supply_policy=SupplyPolicy(around.config.spare_blocks),
        stepper=stepper,
        share=share,
        reporter=Reporter(around.controller, around.metrics, time.time_ns),
        metrics=around.metrics,
        crew=crew,
        clock=around.clock,
    )
    return service.make_engine(outfit)


async def _limits(around: Surroundings, attachment: AttachmentLike) -> PhaseLimits:
    """memd keeps its reserve from prefill, so a prompt that needs it would wait for ever."""
    statistics = await around.store.statistics()
    reserve = statistics.num_reserve_blocks if around.phase is Phase.PREFILL else 0
    return PhaseLimits(
        max_sequences=around.config.max_sequences,
        block_size=attachment.kv_layout.block_size,
        num_pool_blocks=attachment.kv_layout.num_blocks - reserve,
        vocab_size=attachment.model_config.vocab_size,
        max_context_tokens=attachment.model_config.max_position_embeddings,
    )
