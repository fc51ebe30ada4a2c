"""Which deployment a command is about: its run directory, its configuration file, and what `up` overrides."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from tandem.cli.programs import GATEWAY, Program
from tandem.client import Access, Client
from tandem.config.load import ENV_CONFIG_FILE, MAX_SOCKET_PATH_BYTES, load_config
from tandem.config.local_replicas import as_setting, replica_dir
from tandem.config.settings import MODES, SERVICES, CommonConfig, GatewayConfig, PhaseConfig, ReplicaConfig
from tandem.errors import ConfigError, NotReadyError
from tandem.types import Split

LONGEST_SOCKET_NAME = "supervisor.sock.1234567"
RANDOM_PREFIX = "random:"
MAX_REPLICAS = 64  # on one machine
METRICS_PORT_STRIDE = 10  # from one replica's to the next one's

_Command = TypeVar("_Command", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says over the file and the environment; None leaves it to them."""

    config_file: Path | None = None
    run_dir: Path | None = None
    model: str | None = None
    port: int | None = None
    mode: str | None = None
    num_replicas: int = 1
    has_gateway: bool = True


@dataclass(frozen=True, slots=True)
class Deployment:
    """Services under one supervisor: a gateway, and replicas of all else, the first of them in the run directory.

    Every path is absolute: the services run in another folder.
    """

    model: str
    cache_dir: Path
    config_file: Path | None
    port: int | None  # given on the command line
    gateway: GatewayConfig
    drain_timeouts_s: Mapping[str, float]  # by service
    memory_backend: str  # as configured, as are the partition backends, by service
    partition_backends: Mapping[str, str]
    initial_split: Split
    num_replicas: int
    has_gateway: bool  # False: a gateway elsewhere has the replicas
    metrics_ports: Mapping[str, int]  # of the first replica, by service; 0: none

    @property
    def services(self) -> tuple[str, ...]:
        """Those of its mode, in the order in which they should end."""
        return tuple(service for service in MODES[self.gateway.mode] if self.has_gateway or service != GATEWAY)

    @property
    def programs(self) -> tuple[Program, ...]:
        """The services' processes, in the order in which they should end."""
        return tuple(
            Program(service, replica)
            for service in self.services
            for replica in range(1 if service == GATEWAY else self.num_replicas)
        )

    @property
    def run_dir(self) -> Path:
        """Where the sockets and logs are."""
        return self.gateway.run_dir

    def address(self, service: str, replica: int = 0) -> str:
        """gRPC address of a service, over its unix socket."""
        return f"unix:{replica_dir(self.run_dir, replica) / service}.sock"

    def flags(self, service: str, replica: int = 0) -> list[str]:
        """What the service's process is started with."""
        config = ["--config", str(self.config_file)] if self.config_file else []
        paths = ["--run-dir", str(replica_dir(self.run_dir, replica)), "--cache-dir", str(self.cache_dir)]
        own = self._gateway_flags() if service == GATEWAY else self._replica_flags(service, replica)
        return [*config, *paths, "--model", self.model, *own]

    def _gateway_flags(self) -> list[str]:
        replicas = as_setting(self.run_dir, self.num_replicas)
        port = ["--port", str(self.port)] if self.port is not None else []
        mode = ["--mode", self.gateway.mode]  # phases that are one process end together, whoever of them is the cause
        return [*mode, *(["--replicas", replicas] if replicas else []), *port]

    def _replica_flags(self, service: str, replica: int) -> list[str]:
        port = self.metrics_ports[service]
        return ["--metrics-port", str(port + METRICS_PORT_STRIDE * replica)] if port and replica else []


def deployment_options(command: _Command) -> _Command:
    """``--config`` and ``--run-dir``, for every command that talks to a deployment."""
    config = click.option("--config", "config_file", type=click.Path(path_type=Path), help="Configuration file (TOML).")
    run_dir = click.option(
        "--run-dir", type=click.Path(path_type=Path), help="Sockets and logs; default: private to the user."
    )
    return config(run_dir(command))


def replica_option(command: _Command) -> _Command:
    """``--replica``, for the commands that are about one."""
    number = click.IntRange(0, MAX_REPLICAS - 1)
    return click.option("--replica", type=number, default=0, show_default=True, help="Of `up --replicas`, from 0.")(
        command
    )


def address_option(command: _Command) -> _Command:
    """``--address``, for the commands that talk to a gateway, wherever it is."""
    return click.option("--address", help="HOST:PORT of a gateway elsewhere; default: this machine's.")(command)


def gateway_address(deployment: Deployment, address: str | None) -> str:
    """`address`, or the deployment's unix socket, or its port where no socket is (a gateway in a container)."""
    if address is not None:
        return address
    gateway = deployment.gateway
    if gateway.port == 0 or (deployment.run_dir / "gateway.sock").exists():
        return deployment.address("gateway")
    return f"{gateway.host}:{gateway.port}"


@contextlib.contextmanager
def connected(deployment: Deployment, address: str | None, access: Access | None = None) -> Iterator[Client]:
    """A client at `gateway_address`. NotReadyError, for the user's own deployment with what to do."""
    with Client(gateway_address(deployment, address), access=access) as client:
        try:
            yield client
        except NotReadyError as error:
            if address is not None:
                raise
            raise NotReadyError(f"{error} (`tandem status` shows what runs, `tandem up` starts it)") from error


def resolve(overrides: Overrides, environ: Mapping[str, str]) -> Deployment:
    """The deployment as all services will see it. ConfigError names the key that any of them would refuse."""
    configs = {service: load_config(service, _argv(service, overrides), environ) for service in SERVICES}
    gateway = load_config("gateway", _argv("gateway", overrides), environ)
    controller = load_config("controller", _argv("controller", overrides), environ)
    memd = load_config("memd", _argv("memd", overrides), environ)
    config_file = overrides.config_file or environ.get(ENV_CONFIG_FILE)
    _check_run_dir(replica_dir(gateway.run_dir, overrides.num_replicas - 1))
    if overrides.num_replicas > 1:
        _check_replicas(gateway, configs)
    return Deployment(
        model=_absolute_model(gateway.model),
        cache_dir=_absolute(gateway.cache_dir),
        config_file=_absolute(Path(config_file)) if config_file else None,
        port=overrides.port,
        gateway=gateway,
        drain_timeouts_s={service: config.drain_timeout_s for service, config in configs.items()},
        memory_backend=memd.memory_backend,
        partition_backends={
            service: config.partition_backend for service, config in configs.items() if isinstance(config, PhaseConfig)
        },
        initial_split=Split(controller.prefill_percent, controller.decode_percent),
        num_replicas=overrides.num_replicas,
        has_gateway=overrides.has_gateway,
        metrics_ports={service: config.model_dump()["metrics_port"] for service, config in configs.items()},
    )


def make_run_dir(run_dir: Path, num_replicas: int = 1) -> None:
    """Makes the run directory, its logs folder and the other replicas' folders, open to this user alone.

    ConfigError when it is somebody else's.
    """
    try:
        (run_dir / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
        for replica in range(1, num_replicas):
            replica_dir(run_dir, replica).mkdir(mode=0o700, exist_ok=True)
        owner = run_dir.stat().st_uid
        if owner == os.geteuid():
            run_dir.chmod(0o700)
            return
    except OSError as error:
        raise ConfigError("run_dir", f"cannot make {run_dir}: {error.strerror}") from error
    raise ConfigError("run_dir", f"{run_dir} belongs to user {owner}; choose another")


def _argv(service: str, overrides: Overrides) -> list[str]:
    given: dict[str, object] = {
        "--config": overrides.config_file,
        "--run-dir": overrides.run_dir,
        "--model": overrides.model,
        "--mode": overrides.mode,
        "--port": overrides.port if service == "gateway" else None,
    }
    return [part for flag, value in given.items() if value is not None for part in (flag, str(value))]


def _check_run_dir(run_dir: Path) -> None:
    if any(sign in str(run_dir) for sign in "%#?\n"):
        raise ConfigError("run_dir", f"{run_dir} holds a sign that socket addresses cannot: one of % # ?")
    if len(os.fsencode(run_dir / LONGEST_SOCKET_NAME)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError("run_dir", f"{run_dir} is too long for unix sockets; choose a shorter one")


def _check_replicas(gateway: GatewayConfig, configs: Mapping[str, CommonConfig]) -> None:
    if gateway.replicas:
        raise ConfigError("gateway.replicas", "names replicas already; leave it out, or start them without --replicas")
    if "," in str(gateway.run_dir):
        raise ConfigError("run_dir", f"{gateway.run_dir} holds a comma, which separates replicas; choose another")
    for service, config in configs.items():
        if isinstance(config, ReplicaConfig) and config.listen:
            raise ConfigError(f"{service}.listen", f"{config.listen} is for one replica; leave it out with --replicas")


def _absolute_model(model: str) -> str:
    if model == "default":
        return model
    prefix = RANDOM_PREFIX if model.startswith(RANDOM_PREFIX) else ""
    return prefix + str(_absolute(Path(model.removeprefix(prefix))))


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - symlinks stay as the user wrote them
