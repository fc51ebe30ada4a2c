"""Tandem's services as plain processes over a run directory of their own; the tests start their systems so as well.

There is no supervisor: a service that dies stays dead, and is seen to.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tandem.config.environment import SERVICE_ENVIRONMENT
from tandem.config.settings import KEEPER_SOCKET, MODES, sockets_of
from tandem.device.cpu.confinement import confined
from tandem.errors import NotReadyError
from tandem.rpc.health_probe import probe
from tandem.rpc.names import SERVICE_NAMES

SEMI_PD = MODES["semi-pd"]
COLOCATED = MODES["colocated"]
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 40.0
PROBE_DEADLINE_S = 2.0
POLL_S = 0.05
LAST_LOG_CHARS = 20_000

Settings = Mapping[str, Mapping[str, object]]


@dataclass
class LocalServices:
    """Processes over one run dir. `settings` maps a service to its flags (``{"memd": {"kv-bytes": 1 << 20}}``)."""

    run_dir: Path
    model: str
    settings: Settings = field(default_factory=dict)
    services: tuple[str, ...] = SEMI_PD
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    keeper: subprocess.Popen[bytes] | None = None
    cores: tuple[int, ...] = ()  # that all but the gateway are confined to; empty: to none

    @property
    def gateway(self) -> str:
        """The gateway's address for clients."""
        return self.socket("gateway")

    def socket(self, service: str) -> str:
        """gRPC address of a service."""
        return f"unix:{self.run_dir / service}.sock"

    def log(self, service: str) -> str:
        """All that the service has logged, over all its lives."""
        path = self.run_dir / f"{service}.log"
        return path.read_text() if path.exists() else ""

    def start(self, *services: str) -> None:
        """Starts the services named, or all; with the first of them the keeper."""
        if self.keeper is None:
            self.keeper = self._spawn("keeper", self._keeper_command())
        for service in services or self.services:
            self.processes[service] = self._spawn(service, self._command(service))

    def wait_serving(self, *services: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Waits until the services named, or all, say SERVING. NotReadyError, with the log: one ended, or is late."""
        deadline_s = time.monotonic() + timeout_s
        for service in services or self.services:
            for name in sockets_of(service):
                while not serving(self.socket(name), name):
                    self._check_alive(service)
                    if time.monotonic() > deadline_s:
                        raise NotReadyError(f"{service} is not serving after {timeout_s} s:\n{self.log(service)}")
                    time.sleep(POLL_S)

    def close(self) -> None:
        """Ends whatever is still running. A warning, with the end of its log: one had to be killed."""
        processes = {**self.processes, **({"keeper": self.keeper} if self.keeper else {})}
        for process in processes.values():
            if process.poll() is None:
                process.terminate()
        for name, process in processes.items():
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                last = self.log(name)[-LAST_LOG_CHARS:]
                warnings.warn(f"{name} has not ended {END_TIMEOUT_S:g} s after SIGTERM:\n{last}", stacklevel=2)
                process.kill()
                process.wait()

    def _spawn(self, name: str, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        own = confined(command, self.cores if name != "gateway" else ())
        with (self.run_dir / f"{name}.log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own services
                own, stdout=log, stderr=log, env={**os.environ, **SERVICE_ENVIRONMENT}
            )

    def _keeper_command(self) -> list[str]:
        return [sys.executable, "-m", "services.memd.keeper", "--socket", str(self.run_dir / KEEPER_SOCKET)]

    def _command(self, service: str) -> list[str]:
        given = {**({"port": 0} if service == "gateway" else {}), **self.settings.get(service, {})}
        flags = [part for key, value in given.items() for part in (f"--{key}", str(value))]
        command = [sys.executable, "-m", f"services.{service}.main", "--run-dir", str(self.run_dir)]
        return [*command, "--model", self.model, *flags]

    def _check_alive(self, service: str) -> None:
        status = self.processes[service].poll()
        if status is not None:
            raise NotReadyError(f"{service} ended with {status}:\n{self.log(service)}")


def serving(address: str, service: str) -> bool:
    """One probe of grpc.health.v1; `service` is one of `SERVICE_NAMES`."""
    return probe(address, SERVICE_NAMES[service], PROBE_DEADLINE_S) == "SERVING"


@contextlib.contextmanager
def run_dir() -> Iterator[Path]:
    """A short-named directory, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="tdm"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def running(services: LocalServices) -> Iterator[LocalServices]:
    """The services, serving; the block's end ends every process."""
    try:
        services.start()
        services.wait_serving()
        yield services
    finally:
        services.close()
