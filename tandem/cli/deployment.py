"""Which deployment a command is about: its run directory, its configuration file, and what `up` overrides."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from tandem.client import Access, Client
from tandem.config.load import ENV_CONFIG_FILE, MAX_SOCKET_PATH_BYTES, load_config
from tandem.config.settings import MODES, SERVICES, GatewayConfig, PhaseConfig
from tandem.errors import ConfigError, NotReadyError
from tandem.types import Split

LONGEST_SOCKET_NAME = "supervisor.sock.1234567"
RANDOM_PREFIX = "random:"

_Command = TypeVar("_Command", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says over the file and the environment; None leaves it to them."""

    config_file: Path | None = None
    run_dir: Path | None = None
    model: str | None = None
    port: int | None = None
    mode: str | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """Services that share a run directory. Every path is absolute: the services run in another folder."""

    model: str
    cache_dir: Path
    config_file: Path | None
    port: int | None  # given on the command line
    gateway: GatewayConfig
    drain_timeouts_s: Mapping[str, float]  # by service
    memory_backend: str  # as configured, as are the partition backends, by service
    partition_backends: Mapping[str, str]
    initial_split: Split

    @property
    def services(self) -> tuple[str, ...]:
        """Those of its mode, in the order in which they should end."""
        return MODES[self.gateway.mode]

    @property
    def run_dir(self) -> Path:
        """Where the sockets and logs are."""
        return self.gateway.run_dir

    def address(self, service: str) -> str:
        """gRPC address of a service, over its unix socket."""
        return self.gateway.socket(service)

    def flags(self, service: str) -> list[str]:
        """What the service's process is started with."""
        config = ["--config", str(self.config_file)] if self.config_file else []
        port = ["--port", str(self.port)] if service == "gateway" and self.port is not None else []
        paths = ["--run-dir", str(self.run_dir), "--cache-dir", str(self.cache_dir)]
        return [*config, *paths, "--model", self.model, *port]


def deployment_options(command: _Command) -> _Command:
    """``--config`` and ``--run-dir``, for every command that talks to a deployment."""
    config = click.option("--config", "config_file", type=click.Path(path_type=Path), help="Configuration file (TOML).")
    run_dir = click.option(
        "--run-dir", type=click.Path(path_type=Path), help="Sockets and logs; default: private to the user."
    )
    return config(run_dir(command))


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
    _check_run_dir(gateway.run_dir)
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
    )


def make_run_dir(run_dir: Path) -> None:
    """Makes the run directory and its logs folder, open to this user alone. ConfigError when it is somebody else's."""
    try:
        (run_dir / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
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


def _absolute_model(model: str) -> str:
    if model == "default":
        return model
    prefix = RANDOM_PREFIX if model.startswith(RANDOM_PREFIX) else ""
    return prefix + str(_absolute(Path(model.removeprefix(prefix))))


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - symlinks stay as the user wrote them
