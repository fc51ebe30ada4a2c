"""Deployments by name: started when entered, ended when left."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from bench.deployment.local import COLOCATED, SEMI_PD, LocalServices, Settings, run_dir, running
from bench.deployment.peers import PeerOptions, running_peer, served_model
from bench.load.endpoint import EndpointSpec, Protocols
from tandem.errors import ConfigError


class DeploymentKind(StrEnum):
    """What may stand before a deployment's colon."""

    SEMI_PD = "semi-pd"
    STATIC = "static"  # static:PREFILL,DECODE in percent
    COLOCATED = "colocated"
    AT = "at"  # at:HOST:PORT, a Tandem that runs already
    LLAMA_SERVER = "llama-server"
    VLLM = "vllm"
    OPENAI = "openai"  # openai:http://HOST:PORT, a server that runs already


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """What the user named; `parameter` is what follows the colon."""

    kind: DeploymentKind
    parameter: str = ""

    @property
    def name(self) -> str:
        """As the user wrote it."""
        return f"{self.kind}:{self.parameter}" if self.parameter else str(self.kind)


@dataclass(frozen=True, slots=True)
class DeploymentOptions:
    """What deployments are started with, of whatever kind."""

    model: str
    settings: Settings = field(default_factory=dict)  # flags of Tandem's services
    peer: PeerOptions | None = None  # None: peers are not to be started


@dataclass(frozen=True, slots=True)
class Target:
    """A deployment that serves. `pids` are those of Tandem's services, where they are this machine's own."""

    name: str
    endpoint: EndpointSpec
    pids: Mapping[str, int] = field(default_factory=dict)


def parse_deployment(text: str) -> DeploymentSpec:
    """ConfigError says what there is."""
    name, _, parameter = text.partition(":")
    if name not in set(DeploymentKind):
        raise ConfigError("deployment", f"{text!r} is none of {', '.join(DeploymentKind)}")
    spec = DeploymentSpec(DeploymentKind(name), parameter)
    needs = {DeploymentKind.STATIC: "PREFILL,DECODE", DeploymentKind.AT: "HOST:PORT", DeploymentKind.OPENAI: "ADDRESS"}
    if bool(parameter) != (spec.kind in needs):
        raise ConfigError(
            "deployment", f"{text!r}: write {name}{':' if spec.kind in needs else ''}{needs.get(spec.kind, '')}"
        )
    return spec


@contextlib.contextmanager
def open_deployment(spec: DeploymentSpec, options: DeploymentOptions) -> Iterator[Target]:
    """Serving when entered. ConfigError, NotReadyError."""
    match spec.kind:
        case DeploymentKind.AT:
            yield Target(spec.name, EndpointSpec(Protocols.TANDEM, spec.parameter))
        case DeploymentKind.OPENAI:
            yield _http_target(spec, spec.parameter)
        case DeploymentKind.LLAMA_SERVER | DeploymentKind.VLLM:
            with run_dir() as path, running_peer(spec.kind, _peer_options(options), path / "peer.log") as address:
                yield _http_target(spec, address)
        case _:
            with run_dir() as path, running(local_services(spec, options, path)) as services:
                pids = {name: process.pid for name, process in services.processes.items()}
                yield Target(spec.name, EndpointSpec(Protocols.TANDEM, services.gateway), pids)


def local_services(spec: DeploymentSpec, options: DeploymentOptions, path: Path) -> LocalServices:
    """The services of one of Tandem's own kinds, not started."""
    services = COLOCATED if spec.kind is DeploymentKind.COLOCATED else SEMI_PD
    settings = dict(options.settings)
    if spec.kind is DeploymentKind.STATIC:
        settings["controller"] = {**settings.get("controller", {}), **static_flags(spec.parameter)}
    return LocalServices(path, options.model, settings, services)


def static_flags(parameter: str) -> dict[str, object]:
    """The controller's flags for a fixed split. ConfigError."""
    try:
        prefill, decode = (int(percent) for percent in parameter.split(","))
    except ValueError:
        raise ConfigError("deployment", f"static:{parameter} is not static:PREFILL,DECODE") from None
    return {"planner": "static", "prefill-percent": prefill, "decode-percent": decode}


def _peer_options(options: DeploymentOptions) -> PeerOptions:
    if options.peer is None:
        raise ConfigError("deployment", "a peer needs its options")
    return options.peer


def _http_target(spec: DeploymentSpec, address: str) -> Target:
    return Target(spec.name, EndpointSpec(Protocols.OPENAI, address, served_model(address)))
