"""The system as `tandem up` starts it, under its supervisord, in a folder of its own; and what its processes have."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from bench.deployment.local import serving
from tandem.config.settings import MODES
from tests.chaos.between import Redirection
from tests.chaos.growth import Sample
from tests.chaos.links import Link
from tests.chaos.log_disk import FILLER, LogDisk
from tests.support.sockets import free_port

SERVICES = MODES["semi-pd"]
PHASES = ("prefill", "decode")
KEEPER = "keeper"
SUPERVISOR = "supervisord"
COMMAND_TIMEOUT_S = 300
POLL_S = 0.05
_MODULES = {"services.memd.keeper": KEEPER, "tandem.cli.watchdog": "watchdog"} | {
    f"services.{service}.main": service for service in SERVICES
}


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """What is started. Float32, so that the shape of a batch cannot turn a near tie; few spare blocks and a small pool,
    so that blocks are short."""

    model: str
    kv_bytes: int
    hang_timeout_s: float
    lease_ttl_s: float = 10.0
    spare_blocks: int = 16
    reserve_blocks: int = 8


@dataclass(frozen=True, slots=True)
class Life:
    """One process. Its pid alone may be another's some minutes later."""

    pid: int
    began_s: float  # unix time


class System:
    """Owns the run directory and everything that runs in it.

    `disk`: of the logs, where one could be mounted. `between`: the links between its services, where there can be any;
    who opens them before `up` has every service connect through them.
    """

    def __init__(
        self, spec: SystemSpec, folder: Path, disk: LogDisk | None, redirection: Redirection | None = None
    ) -> None:
        self.run_dir = folder / "run"
        self.disk = disk
        self.between: Mapping[str, Link] = redirection.links(self.run_dir) if redirection else {}
        self._environment = redirection.environment if redirection else {}
        self._port = free_port()
        self._spec = spec
        self._config = folder / "tandem.toml"
        self._metrics_ports = {phase: free_port() for phase in PHASES}

    @property
    def gateway_socket(self) -> Path:
        """Where the gateway listens."""
        return self.run_dir / "gateway.sock"

    def address(self, service: str) -> str:
        """gRPC address of a service."""
        return f"unix:{self.run_dir / service}.sock"

    def up(self) -> None:
        """Returns when everything serves. CalledProcessError, with what was printed."""
        self._config.write_text(self._configuration())
        self._tandem("up", "--model", self._spec.model, "--port", str(self._port))

    def down(self) -> None:
        """Ends everything."""
        self._tandem("down")

    def lives(self) -> dict[str, Life]:
        """Of the supervisor's programs that run now."""
        found: dict[str, Life] = {}
        for role, process in self._processes():
            with contextlib.suppress(psutil.Error):
                found[role] = Life(process.pid, process.create_time())
        found.pop(SUPERVISOR, None)
        return found

    def pids(self) -> dict[str, int]:
        """Of the supervisor's programs that run now."""
        return {role: life.pid for role, life in self.lives().items()}

    def samples(self, now_s: float) -> list[Sample]:
        """What each process has now."""
        found = (_sample(role, process, now_s) for role, process in self._processes())
        return [sample for sample in found if sample is not None]

    def is_serving(self, service: str) -> bool:
        """By its own health service."""
        return serving(self.address(service), service)

    def wait_serving(self, timeout_s: float) -> bool:
        """Until all serve at one look; whether they came to."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if all(self.is_serving(service) for service in SERVICES):
                return True
            time.sleep(POLL_S)
        return False

    def spare_blocks(self) -> dict[str, int]:
        """By phase, as it counts them itself."""
        return {phase: _gauge(port, "tandem:num_spare_blocks") for phase, port in self._metrics_ports.items()}

    def save_logs(self, folder: Path) -> None:
        """Copies of all of them."""
        shutil.copytree(self.run_dir / "logs", folder, ignore=shutil.ignore_patterns(FILLER), dirs_exist_ok=True)

    def requeues(self) -> dict[str, int]:
        """How many sequences the gateways have put back into the queue, by reason; what a full disk took is missing."""
        reasons: Counter[str] = Counter()
        for path in (self.run_dir / "logs").glob("gateway.log*"):
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    event = json.loads(line)
                    if event.get("event") == "sequence.requeued":
                        reasons[event["reason"]] += 1
        return dict(reasons)

    def _configuration(self) -> str:
        spec = self._spec
        phases = "".join(
            f"[{phase}]\nspare_blocks = {spec.spare_blocks}\nmetrics_port = {port}\n"
            for phase, port in self._metrics_ports.items()
        )
        return (
            f"[common]\nhang_timeout_s = {spec.hang_timeout_s}\n"
            f'[memd]\ndtype = "float32"\nkv_bytes = {spec.kv_bytes}\nlease_ttl_s = {spec.lease_ttl_s}\n'
            f"reserve_blocks = {spec.reserve_blocks}\n{phases}"
        )

    def _processes(self) -> Iterator[tuple[str, psutil.Process]]:
        with contextlib.suppress(psutil.NoSuchProcess, OSError, ValueError):
            supervisor = psutil.Process(int((self.run_dir / "supervisord.pid").read_text()))
            yield SUPERVISOR, supervisor
            for child in supervisor.children():
                role = _role_of(child)
                if role is not None:
                    yield role, child

    def _tandem(self, command: str, *words: str) -> None:
        flags = ("--config", str(self._config), "--run-dir", str(self.run_dir))
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("TANDEM_")}
        environ = {**inherited, **self._environment}
        done = subprocess.run(
            [sys.executable, "-m", "tandem.cli.main", command, *flags, *words],
            env=environ, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"tandem {command} failed:\n{done.stdout}\n{done.stderr}")


@contextlib.contextmanager
def running(spec: SystemSpec) -> Iterator[System]:
    """A system that is not up yet; the block's end ends it, and removes what it left."""
    with tempfile.TemporaryDirectory(prefix="tdm") as name, LogDisk.mounted(Path(name) / "run" / "logs") as disk:
        system = System(spec, Path(name), disk, Redirection.built(Path(name) / "links"))
        try:
            yield system
        finally:
            system.down()


def _role_of(process: psutil.Process) -> str | None:
    """None: it is gone, or has not become anything yet."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    if words and words[0].startswith("tandem-"):
        return words[0].removeprefix("tandem-")
    return next((_MODULES[word] for word in words if word in _MODULES), None)


def _sample(role: str, process: psutil.Process, now_s: float) -> Sample | None:
    try:
        age_s = time.time() - process.create_time()
        status = Path(f"/proc/{process.pid}/status").read_text()
        return Sample(now_s, role, process.pid, age_s, _field_bytes(status, "RssAnon"), process.num_fds())
    except (psutil.Error, OSError):
        return None


def _field_bytes(status: str, name: str) -> int:
    """Of /proc/PID/status."""
    words: Mapping[str, str] = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(words.get(name, "0 kB").split()[0]) * 1024


def _gauge(port: int, name: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return int(next(sample.value for family in families for sample in family.samples if sample.name == name))
