"""The gateway's process."""

import asyncio
import time

from prometheus_client import CollectorRegistry

from services.gateway.addresses import read_replicas
from services.gateway.assembly import World, assemble
from services.gateway.connections import RunningReplicas
from services.gateway.discovery import Discovery, look_up
from services.gateway.entropy import Entropy
from services.gateway.frontend import Draws
from services.gateway.listening import directory, gateway_port, replica_credentials
from services.gateway.service import SERVICE_NAME, add_to_server
from tandem.clock import MonotonicClock
from tandem.config.settings import GatewayConfig
from tandem.model.metadata import read_metadata
from tandem.rpc.ending import end_process
from tandem.rpc.server import ServiceHost, service_main
from tandem.telemetry.metrics import GatewayMetrics, start_metrics_server

STOP_GRACE_S = 2.0  # for the last messages to reach clients that read
LEASE_ID_BITS = 63
SEED_BITS = 64
REQUEST_ID_BYTES = 16


class Process:
    """A gateway with its server and its replicas, from `start` to `stop`. Made on the running loop."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._draining = False
        self._discovering: asyncio.Task[None] | None = None
        self._listed = read_replicas(config.replicas, str(config.run_dir))
        self._running = RunningReplicas(replica_credentials(config))
        registry = CollectorRegistry()
        self._metrics_server = start_metrics_server(registry, config.metrics_port, config.metrics_host)
        self._host = ServiceHost(
            [SERVICE_NAME],
            [config.socket("gateway")],
            max_message_bytes=config.max_message_bytes,
            ports=gateway_port(config),
        )
        model = read_metadata(config.model, config.cache_dir)
        self._gateway = assemble(config, model, self._world(GatewayMetrics.create(registry)), self._on_ready)
        add_to_server(self._gateway.frontend, self._gateway.status, self._host.server)

    async def start(self) -> None:
        """Listens, NOT_SERVING until a replica is connected. ConfigError when an address is in use."""
        await self._host.start()
        await self._running.start()
        discovery = Discovery(self._listed, self._gateway.replicas, look_up, self._config.replica_dns_s)
        self._discovering = asyncio.create_task(discovery.run())

    async def drain(self) -> None:
        """Refuses what is new, lets what runs end, hands every lease back."""
        self._draining = True
        self._host.set_serving(False)
        await self._gateway.reception.drain(self._config.drain_timeout_s)
        await self._running.flush()

    async def stop(self) -> None:
        """Ends the server and every link; also after a start that failed."""
        await self._host.stop(STOP_GRACE_S)
        if self._discovering is not None:
            self._discovering.cancel()
            await asyncio.gather(self._discovering, return_exceptions=True)
        await self._running.stop()
        self._metrics_server.close()

    def _world(self, metrics: GatewayMetrics) -> World:
        clock, loop, entropy = MonotonicClock(), asyncio.get_running_loop(), Entropy()
        return World(
            replicas=self._listed.fixed,
            connect=self._running.connect,
            opened=self._running.opened,
            closed=self._running.closed,
            metrics=metrics,
            clock=clock,
            unix_ns=time.time_ns,
            timers=loop,
            wake=loop.call_soon,
            draw_lease_id=lambda: entropy.number(LEASE_ID_BITS),
            draws=Draws(lambda: entropy.number(SEED_BITS), lambda: entropy.take(REQUEST_ID_BYTES).hex()),
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
    end_process(main())
