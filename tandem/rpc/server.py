"""What every service's process and gRPC server have in common."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import grpc
import setproctitle
import structlog
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tandem.config.load import load_config
from tandem.config.settings import CommonConfig
from tandem.errors import ConfigError, TandemError
from tandem.rpc.ending import EndWatch
from tandem.rpc.listening import TcpPorts
from tandem.rpc.sockets import Entry, SocketPlace
from tandem.rpc.status import StatusInterceptor
from tandem.telemetry.logs import configure_logging

UNIX_PREFIX = "unix:"
KEEPALIVE_TIME_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 10_000
MIN_CLIENT_PING_INTERVAL_MS = 5_000
CLAIM_POLL_S = 0.05
LATE_S = 8.0  # beyond the time to drain, handing back and saying farewell take less

EXIT_USAGE = 2
NO_PORTS = TcpPorts()

_Config = TypeVar("_Config", bound=CommonConfig)
_log = structlog.get_logger()


class ServiceHost:
    """A gRPC server with health by service name, reflection, and addresses that it alone serves.

    Made on the running loop. Add servicers to `server`, then `start`. Whoever started it awaits `stop`, also on
    failure: an asyncio loop that ends under a running grpc server hangs.
    """

    def __init__(
        self,
        service_names: Sequence[str],
        addresses: Sequence[str],
        *,
        max_message_bytes: int = 16 << 20,
        entry: Entry = Entry.ALONE,
        ports: TcpPorts = NO_PORTS,
    ) -> None:
        """`addresses` are sockets', `ports` on TCP.

        As a successor it takes the sockets of a process that still serves, which keeps the streams that it has.
        """
        options = _server_options(max_message_bytes, are_shared=ports.are_shared)
        self.server = grpc.aio.server(interceptors=[StatusInterceptor()], options=options)
        self.bound_port = 0
        self._addresses = tuple(addresses)
        self._health_names = ("", *service_names)
        self._health = health.aio.HealthServicer()
        self._serving = False
        self._publishing: set[asyncio.Task[None]] = set()
        self._entry = entry
        self._ports = ports
        self._places: list[SocketPlace] = []
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        reflection.enable_server_reflection((*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME), self.server)

    async def start(self) -> None:
        """Binds and serves, NOT_SERVING at first. ConfigError when a port or socket is in use."""
        try:
            await self._publish()
            for address in self._addresses:
                self._bind_socket(address)
            for address in self._ports.addresses:
                self.bound_port = self._add_port(self._ports.key, address, self._ports.credentials)
            await self.server.start()
            for place in self._places:
                place.occupy()
        except BaseException:
            await self.stop(0)
            raise

    def set_serving(self, serving: bool) -> None:
        """What health says of every service name and of the whole; told to watchers soon after."""
        self._serving = serving
        task = asyncio.get_running_loop().create_task(self._publish())
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def settled(self) -> None:
        """Returns when whoever served at these addresses before has ended."""
        for place in self._places:
            while True:
                if place.try_claim():
                    break
                await asyncio.sleep(CLAIM_POLL_S)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets running ones end for `grace_s` seconds, cancels the rest, frees the addresses."""
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_s)
        for task in self._publishing:
            task.cancel()
        for place in self._places:
            place.release()
        self._places.clear()

    async def _publish(self) -> None:
        for name in self._health_names:
            await self._health.set(name, _serving_status(self._serving))

    def _bind_socket(self, address: str) -> None:
        place = SocketPlace(Path(address.removeprefix(UNIX_PREFIX)), self._entry)
        self._places.append(place)
        self._add_port("run_dir", f"{UNIX_PREFIX}{place.binding}", None)

    def _add_port(self, key: str, address: str, credentials: grpc.ServerCredentials | None) -> int:
        try:
            if credentials is not None:
                return self.server.add_secure_port(address, credentials)
            return self.server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(key, f"cannot listen on {address}; is it in use?") from error


def service_main(service: str, kind: type[_Config], amain: Callable[[_Config, asyncio.Event], Awaitable[int]]) -> int:
    """The whole `main` of a service: configuration from this process's flags and environment, then `run_service`.

    The exit status: that of `run_service`, or 2 for a configuration that is refused, with the reason on stderr.
    """
    try:
        config = load_config(service, sys.argv[1:], os.environ)
    except ConfigError as error:
        sys.stderr.write(f"tandem-{service}: {error}\n")
        return EXIT_USAGE
    assert isinstance(config, kind)
    return run_service(service, config, lambda stop: amain(config, stop))


def run_service(service: str, config: CommonConfig, amain: Callable[[asyncio.Event], Awaitable[int]]) -> int:
    """Runs a service until `amain` returns its exit status; SIGTERM and SIGINT set the event it is handed.

    A TandemError ends with status 1 and an event that says why, as does any other exception, with its trace.
    """
    configure_logging(service, config.log_level)
    setproctitle.setproctitle(f"tandem-{service}")
    _log.info("service.starting", config=config.model_dump(mode="json"))
    status = 1
    try:
        status = uvloop.run(_with_signals(amain, config.drain_timeout_s + LATE_S))
    except TandemError as error:
        _log.error("service.failed", error=type(error).__name__, message=str(error))
    except Exception:
        _log.exception("service.crashed")
    _log.info("service.stopped", status=status)
    return status


async def _with_signals(amain: Callable[[asyncio.Event], Awaitable[int]], late_s: float) -> int:
    stop, watch = asyncio.Event(), EndWatch(late_s)
    loop = asyncio.get_running_loop()

    def end() -> None:
        watch.begin()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    return await amain(stop)


def _server_options(max_message_bytes: int, *, are_shared: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", int(are_shared)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),  # grpc's own is a minute, also for keepalive's pings
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_CLIENT_PING_INTERVAL_MS),
    ]


def _serving_status(serving: bool) -> health_pb2.HealthCheckResponse.ServingStatus:
    status = health_pb2.HealthCheckResponse
    return status.SERVING if serving else status.NOT_SERVING
