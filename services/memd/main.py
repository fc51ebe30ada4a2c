"""memd's process."""

import asyncio
import os
from contextlib import nullcontext
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from services.memd.daemon import Daemon, Storage, load_storage
from services.memd.depositing import Depositor
from services.memd.handles import HandleServer
from services.memd.resuming import resume_storage
from services.memd.service import SERVICE_NAMES, add_to_server
from services.memd.touching import touching
from services.memd.upkeep import keep_up
from tandem.clock import MonotonicClock
from tandem.config.settings import KEEPER_SOCKET, MemdConfig
from tandem.device.cuda.mps import ENV_PIPE_DIRECTORY
from tandem.device.memory import MemoryExporter
from tandem.device.memory_backends import choose_exporter
from tandem.rpc.ending import end_process
from tandem.rpc.listening import replica_ports
from tandem.rpc.server import ServiceHost, service_main
from tandem.telemetry.metrics import MemdMetrics, start_metrics_server

WITHOUT_MPS = {ENV_PIPE_DIRECTORY: "/nonexistent"}
"""For memd and its children: a client of MPS ends with whatever fault another client has."""
STOP_GRACE_S = 1.0  # attachments end at once, and calls are short

_log = structlog.get_logger()


async def serve(config: MemdConfig, stop: asyncio.Event) -> int:
    """Serves until `stop`; the exit status. Health says NOT_SERVING while the model loads."""
    registry = CollectorRegistry()
    metrics = MemdMetrics.create(registry)
    metrics_server = start_metrics_server(registry, config.metrics_port, config.metrics_host)
    daemon = Daemon()
    host = ServiceHost(SERVICE_NAMES, [config.socket("memd")], ports=replica_ports("memd", config))
    add_to_server(daemon, host.server)
    try:
        await host.start()
        storage = await open_storage(config, daemon, stop)
        if storage is not None:
            daemon.ready(storage)
            with touching(storage.segments.kv) if config.touch_kv else nullcontext():
                await serve_storage(storage, config.run_dir / KEEPER_SOCKET, host, metrics, stop)
    finally:
        await host.stop(STOP_GRACE_S)
        metrics_server.close()
    return 0


async def open_storage(config: MemdConfig, daemon: Daemon, stop: asyncio.Event) -> Storage | None:
    """The storage of the memd before, or a new one; None when `stop` came first."""
    storage = await resume_storage(config, MonotonicClock())
    if storage is not None:
        return storage
    daemon.begin_anew()
    return await load_unless_stopped(config, stop)


def make_exporter(config: MemdConfig, stop: asyncio.Event) -> MemoryExporter:
    """Of the backend that is configured; sets `stop` when what it created is lost, for then memd has nothing to own."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        _log.error("memory.lost")
        loop.call_soon_threadsafe(stop.set)

    choice = choose_exporter(config.memory_backend, end)
    _log.info("memory.chosen", memory=choice.exporter.kind.value, reason=choice.reason)
    return choice.exporter


async def load_unless_stopped(config: MemdConfig, stop: asyncio.Event) -> Storage | None:
    """The storage; None when `stop` came first, even if the loader was stopped with it."""
    exporter = make_exporter(config, stop)
    loading = asyncio.create_task(load_storage(config, exporter, MonotonicClock()))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([loading, stopping], return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            _log.info("model.loading_stopped")
            return None
        return await loading
    finally:
        stopping.cancel()
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)


async def serve_storage(
    storage: Storage, keeper: Path, host: ServiceHost, metrics: MemdMetrics, stop: asyncio.Event
) -> None:
    """Hands out, keeps up and serves until `stop`; then every attachment ends. `keeper`: the keeper's socket."""
    store, segments = storage.store, storage.segments
    handles = HandleServer(storage.handle_socket, (segments.weights, segments.kv), store.admit)
    depositor = Depositor(keeper, store.current_statistics().epoch, segments.all)
    depositing = asyncio.create_task(depositor.run())
    upkeep = asyncio.create_task(keep_up(store, metrics))
    try:
        handles.start()
        host.set_serving(True)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([upkeep, stopping], return_when=asyncio.FIRST_COMPLETED)
        if upkeep.done():
            upkeep.result()
    finally:
        host.set_serving(False)
        store.close()
        for task in (upkeep, depositing):
            task.cancel()
        await handles.close()


def main() -> int:
    """Runs the service; the exit status."""
    os.environ.update(WITHOUT_MPS)
    return service_main("memd", MemdConfig, serve)


if __name__ == "__main__":
    end_process(main())
