"""The five services as real processes, for tests: started, watched, killed and restarted one by one."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE_NAMES = {
    "memd": "tandem.memd.v1.MemoryService",
    "prefill": "tandem.prefill.v1.PrefillService",
    "decode": "tandem.decode.v1.DecodeService",
    "controller": "tandem.controller.v1.ControllerService",
    "gateway": "tandem.gateway.v1.GatewayService",
}


@dataclass
class Deployment:
    """Processes over one run dir. `settings` maps a service to its flags (``{"memd": {"kv-bytes": 1 << 20}}``)."""

    run_dir: Path
    model: str
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

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
        """Starts the services named, or all."""
        for service in services or tuple(SERVICE_NAMES):
            flags = [
                part
                for key, value in {"port": 0, **self.settings.get(service, {})}.items()
                if key != "port" or service == "gateway"
                for part in (f"--{key}", str(value))
            ]
            command = [sys.executable, "-m", f"services.{service}.main", "--run-dir", str(self.run_dir)]
            with (self.run_dir / f"{service}.log").open("ab") as log:
                self.processes[service] = subprocess.Popen(
                    [*command, "--model", self.model, *flags],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "OMP_WAIT_POLICY": "passive"},
                )

    def wait_serving(self, *services: str, timeout_s: float = 120.0) -> None:
        """Waits until the services named, or all, say SERVING; fails with the log of one that has ended."""
        deadline = time.monotonic() + timeout_s
        for service in services or tuple(SERVICE_NAMES):
            while not serving(self.socket(service), SERVICE_NAMES[service]):
                process = self.processes[service]
                if process.poll() is not None:
                    raise AssertionError(f"{service} ended with {process.returncode}:\n{self.log(service)}")
                if time.monotonic() > deadline:
                    raise AssertionError(f"{service} is not serving after {timeout_s} s:\n{self.log(service)}")
                time.sleep(0.05)

    def kill(self, service: str) -> None:
        """``kill -9``, and waits for the end."""
        self.processes[service].kill()
        self.processes[service].wait()

    def terminate(self, service: str, timeout_s: float = 60.0) -> int:
        """SIGTERM; returns the exit status."""
        self.processes[service].send_signal(signal.SIGTERM)
        return self.processes[service].wait(timeout_s)

    def close(self) -> None:
        """Ends whatever is still running."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def serving(address: str, service_name: str) -> bool:
    """One probe of grpc.health.v1."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service_name), timeout=2)
        except grpc.RpcError:
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING


@contextlib.contextmanager
def deployment(model: str, settings: Mapping[str, Mapping[str, object]] | None = None) -> Iterator[Deployment]:
    """A running deployment in a short-named directory of its own; its end ends every process."""
    run_dir = Path(tempfile.mkdtemp(prefix="tdm"))
    system = Deployment(run_dir, model, settings or {})
    try:
        system.start()
        system.wait_serving()
        yield system
    finally:
        system.close()
        shutil.rmtree(run_dir, ignore_errors=True)
