"""The gateway's process."""

import asyncio
import secrets
import sys
import time
import uuid
from contextlib import suppress

from prometheus_client import CollectorRegistry

from services.gateway.assembly import World, assemble
from services.gateway.frontend import Draws
from services.gateway.listening import directory, port_credentials
from services.gateway.service import SERVICE_NAME, add_to_server
from tandem.clock import MonotonicClock
from tandem.config.settings import GatewayConfig
from tandem.errors import TandemError
from tandem.model.metadata import read_metadata
from tandem.rpc.controller_client import ObservationSender
from tandem.rpc.memd_client import MemdClient
from tandem.rpc.phase_client import PhaseClient
from tandem.rpc.server import ServiceHost, service_main
from tandem.telemetry.metrics import GatewayMetrics, start_metrics_server
from tandem.types import Phase

STOP_GRACE_S = 2.0  # for the last messages to reach clients that read
FINAL_RELEASE_S = 2.0  # for memd to hear of the last leases; their time to live ends them otherwise
LEASE_ID_BITS = 63
SEED_BITS = 64


class Process:
    """A gateway with its server and its links, from `start` to `stop`. Made on the running loop."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []
        self._phases = {phase: PhaseClient(phase, config.socket(phase)) for phase in Phase}
        self._store = MemdClient(config.socket("memd"))
        self._observations = ObservationSender(config.socket("controller"))
        registry = CollectorRegistry()
        self._metrics_server = start_metrics_server(registry, config.metrics_port, config.metrics_host)
        self._host = ServiceHost(
            [SERVICE_NAME],
            [f"{config.host}:{config.port}", config.socket("gateway")],
            max_message_bytes=config.max_message_bytes,
            credentials=port_credentials(config),
        )
        model = read_metadata(config.model, config.cache_dir)
        self._gateway = assemble(config, model, self._world(GatewayMetrics.create(registry)), self._on_ready)
        add_to_server(self._gateway.frontend, self._gateway.status, self._host.server)

    async def start(self) -> None:
        """Listens, NOT_SERVING until every peer is connected. ConfigError when an address is in use."""
        await self._host.start()
        await self._observations.start()
        for client in self._phases.values():
            client.start(self._gateway.orchestrator)
        gateway = self._gateway
        self._tasks = [
            asyncio.create_task(gateway.pool.run()),
            asyncio.create_task(gateway.leases.run_releases()),
            asyncio.create_task(gateway.leases.run_renewals(gateway.pool.lease_ttl_s)),
        ]

    async def drain(self) -> None:
        """Refuses what is new, lets what runs end, hands every lease back."""
        self._draining = True
        self._host.set_serving(False)
        await self._gateway.orchestrator.drain(self._config.drain_timeout_s)
        with suppress(TandemError, TimeoutError):
            async with asyncio.timeout(FINAL_RELEASE_S):
                await self._gateway.leases.flush()

    async def stop(self) -> None:
        """Ends the server and every link; also after a start that failed."""
        await self._host.stop(STOP_GRACE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._phases.values():
            await client.close()
        await self._observations.close()
        await self._store.close()
        self._metrics_server.close()

    def _world(self, metrics: GatewayMetrics) -> World:
        clock = MonotonicClock()
        return World(
            phases=self._phases,
            store=self._store,
            observations=self._observations,
            metrics=metrics,
            clock=clock,
            unix_ns=time.time_ns,
            timers=asyncio.get_running_loop(),
            draw_lease_id=lambda: secrets.randbits(LEASE_ID_BITS),
            draws=Draws(seed=lambda: secrets.randbits(SEED_BITS), request_id=lambda: uuid.uuid4().hex),
            tenants=directory(self._config, clock),
        )

    def _on_ready(self, ready: bool) -> None:
        if not self._draining:
            self._host.set_serving(ready)


async def serve(config: GatewayConfig, stop: asyncio.Event) -> int:
    """Serves until `stop`, then drains; the exit status."""
    process = Process(config)
    try:
        await process.start()
        await stop.wait()
        await process.drain()
    finally:
        await process.stop()
    return 0


def main() -> int:
    """Runs the service; the exit status."""
    return service_main("gateway", GatewayConfig, serve)


if __name__ == "__main__":
    sys.exit(main())
