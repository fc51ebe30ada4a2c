"""Deployments by name: started when entered, ended when left."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from bench.deployment.local import COLOCATED, SEMI_PD, LocalServices, Settings, run_dir, running
from bench.deployment.peers import PeerOptions, running_peer, served_model
from bench.deployment.replicas import metrics_ports, replicas_of, running_together
from bench.deployment.settings import parse_settings
from bench.load.endpoint import EndpointSpec, Protocols
from tandem.config.load import load_config
from tandem.errors import ConfigError


class DeploymentKind(StrEnum):
    """What may stand before a deployment's colon."""

    SEMI_PD = "semi-pd"  # SERVICE.KEY=VALUE,... after a colon are flags of this one alone, replicas=N its replicas
    STATIC = "static"  # static:PREFILL,DECODE in percent
    COLOCATED = "colocated"  # as semi-pd
    AT = "at"  # at:HOST:PORT, a Tandem that runs already
    LLAMA_SERVER = "llama-server"  # of peers, PATH after a colon is another model than the one in the options
    VLLM = "vllm"
    TRANSFORMERS = "transformers"
    OPENAI = "openai"  # openai:http://HOST:PORT, a server that runs already


PARAMETERS = {DeploymentKind.STATIC: "PREFILL,DECODE", DeploymentKind.AT: "HOST:PORT", DeploymentKind.OPENAI: "ADDRESS"}
SETTABLE_KINDS = frozenset({DeploymentKind.SEMI_PD, DeploymentKind.COLOCATED})
LOCAL_KINDS = SETTABLE_KINDS | {DeploymentKind.STATIC}
REPLICAS = "replicas="
PEER_KINDS = frozenset({DeploymentKind.LLAMA_SERVER, DeploymentKind.VLLM, DeploymentKind.TRANSFORMERS})


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """What the user named; `parameter` is what follows the colon."""

    kind: DeploymentKind
    parameter: str = ""

    @property
    def name(self) -> str:
        """As the user wrote it; of a peer's model the last part of its path."""
        if not self.parameter:
            return str(self.kind)
        return f"{self.kind}:{Path(self.parameter).name if self.kind in PEER_KINDS else self.parameter}"

    @property
    def num_replicas(self) -> int:
        """That its gateway has; of what is not started here, and of peers, 1."""
        return num_replicas(self.parameter) if self.kind in SETTABLE_KINDS else 1


@dataclass(frozen=True, slots=True)
class DeploymentOptions:
    """What deployments are started with, of whatever kind."""

    model: str
    settings: Settings = field(default_factory=dict)  # flags of Tandem's services
    peer: PeerOptions | None = None  # None: peers are not to be started


@dataclass(frozen=True, slots=True)
class Target:
    """A deployment that serves. What follows `endpoint` is of Tandem's services, where they were started here.

    Of several replicas `memd` and `controller` are the first one's.
    """

    name: str
    endpoint: EndpointSpec
    pids: Mapping[str, int] = field(default_factory=dict)
    memd: str = ""  # its address
    controller: str = ""
    max_wait_s: float | None = None  # the gateway's bound on waiting in its queue; None: not known
    prompt_metrics: tuple[int, ...] = ()  # metrics ports of each replica's prompt service, where there are several


def parse_deployment(text: str) -> DeploymentSpec:
    """ConfigError says what there is."""
    name, _, parameter = text.partition(":")
    if name not in set(DeploymentKind):
        raise ConfigError("deployment", f"{text!r} is none of {', '.join(DeploymentKind)}")
    spec = DeploymentSpec(DeploymentKind(name), parameter)
    if spec.kind in SETTABLE_KINDS:
        own_settings(parameter)
        num_replicas(parameter)
    elif spec.kind not in PEER_KINDS and bool(parameter) != (spec.kind in PARAMETERS):
        form = f"{name}:{PARAMETERS[spec.kind]}" if spec.kind in PARAMETERS else name
        raise ConfigError("deployment", f"{text!r}: write {form}")
    if spec.kind is DeploymentKind.STATIC:
        static_flags(parameter)
    return spec


def parse_local(text: str) -> DeploymentSpec:
    """One of Tandem's own that is started here. ConfigError."""
    spec = parse_deployment(text)
    if spec.kind not in LOCAL_KINDS:
        raise ConfigError(
            "deployment", f"{text!r}: its processes are watched; name one of {', '.join(sorted(LOCAL_KINDS))}"
        )
    return spec


def parse_deployments(texts: Sequence[str]) -> list[DeploymentSpec]:
    """To be measured side by side. ConfigError: two of them have one name."""
    specs = [parse_deployment(text) for text in texts]
    if len({spec.name for spec in specs}) < len(specs):
        raise ConfigError("deployment", f"two of {', '.join(texts)} have one name: there is nothing to compare")
    return specs


@contextlib.contextmanager
def open_all(specs: Sequence[DeploymentSpec], options: DeploymentOptions) -> Iterator[list[Target]]:
    """All of them serving when entered, each idle unless it has requests."""
    with contextlib.ExitStack() as opened:
        yield [opened.enter_context(open_deployment(spec, options)) for spec in specs]


@contextlib.contextmanager
def open_deployment(spec: DeploymentSpec, options: DeploymentOptions) -> Iterator[Target]:
    """Serving when entered. ConfigError, NotReadyError."""
    match spec.kind:
        case DeploymentKind.AT:
            yield Target(spec.name, EndpointSpec(Protocols.TANDEM, spec.parameter))
        case DeploymentKind.OPENAI:
            yield _http_target(spec, spec.parameter)
        case DeploymentKind.LLAMA_SERVER | DeploymentKind.VLLM | DeploymentKind.TRANSFORMERS:
            with run_dir() as path, running_peer(spec.kind, _peer_options(spec, options), path / "peer.log") as address:
                yield _http_target(spec, address)
        case _:
            with run_dir() as path:
                services = local_services(spec, options, path)
                with _replicated(spec, services) if spec.num_replicas > 1 else _single(spec, services) as target:
                    yield target


def local_services(spec: DeploymentSpec, options: DeploymentOptions, path: Path) -> LocalServices:
    """The services of one of Tandem's own kinds, not started."""
    services = COLOCATED if spec.kind is DeploymentKind.COLOCATED else SEMI_PD
    is_static = spec.kind is DeploymentKind.STATIC
    own = {"controller": static_flags(spec.parameter)} if is_static else own_settings(spec.parameter)
    shared = options.settings
    settings = {name: {**shared.get(name, {}), **own.get(name, {})} for name in (*shared, *own)}
    return LocalServices(path, options.model, settings, services)


@contextlib.contextmanager
def _single(spec: DeploymentSpec, services: LocalServices) -> Iterator[Target]:
    with running(services):
        yield _local_target(spec, services, _pids(services))


@contextlib.contextmanager
def _replicated(spec: DeploymentSpec, single: LocalServices) -> Iterator[Target]:
    replicas = replicas_of(single, spec.num_replicas)
    with running_together(replicas):
        pids = _pids(replicas[0])
        for number, each in enumerate(replicas[1:], start=1):
            pids |= {f"{name}-{number}": pid for name, pid in _pids(each).items()}
        yield replace(_local_target(spec, replicas[0], pids), prompt_metrics=metrics_ports(replicas))


def _local_target(spec: DeploymentSpec, services: LocalServices, pids: Mapping[str, int]) -> Target:
    endpoint = EndpointSpec(Protocols.TANDEM, services.gateway)
    bound_s = max_wait_s(services.settings)
    return Target(spec.name, endpoint, pids, services.socket("memd"), services.socket("controller"), bound_s)


def max_wait_s(settings: Settings) -> float:
    """The bound of a gateway that is started with these flags. ConfigError."""
    flags = [part for key, value in settings.get("gateway", {}).items() for part in (f"--{key}", str(value))]
    return load_config("gateway", flags, os.environ).max_wait_s


def _pids(services: LocalServices) -> dict[str, int]:
    pids = {name: process.pid for name, process in services.processes.items()}
    return {**pids, "keeper": services.keeper.pid} if services.keeper else pids


def own_settings(parameter: str) -> dict[str, dict[str, object]]:
    """Flags by service of one deployment. ConfigError."""
    try:
        return parse_settings([part for part in _parts(parameter) if not part.startswith(REPLICAS)])
    except ConfigError as error:
        raise ConfigError("deployment", f"{parameter!r}: write SERVICE.KEY=VALUE after the colon, or none") from error


def num_replicas(parameter: str) -> int:
    """Of one deployment; 1 where it does not say. ConfigError."""
    numbers = [part.removeprefix(REPLICAS) for part in _parts(parameter) if part.startswith(REPLICAS)]
    if not numbers:
        return 1
    if len(numbers) > 1 or not numbers[0].isdecimal() or int(numbers[0]) < 1:
        raise ConfigError("deployment", f"{parameter!r}: write {REPLICAS}N once, N at least 1")
    return int(numbers[0])


def _parts(parameter: str) -> list[str]:
    return parameter.split(",") if parameter else []


def static_flags(parameter: str) -> dict[str, object]:
    """The controller's flags for a fixed split. ConfigError."""
    try:
        prefill, decode = (int(percent) for percent in parameter.split(","))
    except ValueError:
        raise ConfigError("deployment", f"static:{parameter} is not static:PREFILL,DECODE") from None
    return {"planner": "static", "prefill-percent": prefill, "decode-percent": decode}


def _peer_options(spec: DeploymentSpec, options: DeploymentOptions) -> PeerOptions:
    if options.peer is None:
        raise ConfigError("deployment", "a peer needs its options")
    return replace(options.peer, model=spec.parameter or options.peer.model)


def _http_target(spec: DeploymentSpec, address: str) -> Target:
    return Target(spec.name, EndpointSpec(Protocols.OPENAI, address, served_model(address)))
