"""The options that the measuring commands share, and what they become."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from bench.deployment.open import DeploymentOptions
from bench.deployment.peers import PeerOptions
from bench.deployment.settings import parse_settings
from bench.experiment import Experiment
from bench.load.metrics import Slo
from bench.workloads.arrivals import parse_arrival
from bench.workloads.build import WORKLOADS, WorkloadSpec, build_workload
from bench.workloads.request import ModelLimits
from tandem.config.settings import default_cache_dir
from tandem.errors import ConfigError
from tandem.model.location import locate
from tandem.model.metadata import read_metadata

_Command = TypeVar("_Command", bound=Callable[..., object])
_PATH = click.Path(path_type=Path)

_WORKLOAD: tuple[Callable[[Any], Any], ...] = (
    click.option("--workload", default="sharegpt", show_default=True, help=f"One of {', '.join(WORKLOADS)}."),
    click.option("--data", type=_PATH, help="The trace's file, for azure and mooncake."),
    click.option("--arrival", default="poisson", show_default=True, help="trace, poisson, gamma:CV or closed:USERS."),
    click.option("--rate", default=1.0, show_default=True, help="Requests a second."),
    click.option("--seed", default=0, show_default=True),
    click.option("--length-scale", type=float, help="Of mixes' and traces' lengths; default: what fits the context."),
    click.option("--warm-up", default=4, show_default=True, help="Requests before the run, not recorded."),
    click.option(
        "--drain-s",
        default=120.0,
        show_default=True,
        help="After the last send, or of an answer in a closed loop; then it is cut off.",
    ),
    click.option("--slo", help="TTFT_MS,TPOT_MS that a request has to meet."),
)
_NUM_REQUESTS = click.option("--num-requests", default=100, show_default=True)
_TANDEM: tuple[Callable[[Any], Any], ...] = (
    click.option("--model", default="default", show_default=True, help="As for tandem up."),
    click.option("--max-context", type=int, help="Tokens; default: the model's own."),
    click.option("--set", "settings", multiple=True, metavar="SERVICE.KEY=VALUE", help="A flag of a Tandem service."),
    click.option("--out", type=_PATH, default=Path("bench-result.json"), show_default=True, help="The JSON file."),
)
_PEERS: tuple[Callable[[Any], Any], ...] = (
    click.option("--peer-model", help="What peers load; default: the model's own file or folder."),
    click.option("--llama-server", default="llama-server", show_default=True, help="llama.cpp's server."),
    click.option("--peer-python", default="python3", show_default=True, help="Of the environment that has vLLM."),
    click.option("--peer-args", default="", help="More arguments for the peer."),
    click.option("--peer-threads", type=int, help="Default: every processor that this command may use."),
    click.option("--peer-slots", default=16, show_default=True, help="Sequences at once."),
)


def measuring_options(command: _Command) -> _Command:
    """Adds all of them; the command takes them as keyword arguments and hands them to the functions below."""
    return _with(command, (_NUM_REQUESTS, *_WORKLOAD, *_TANDEM, *_PEERS))


def lasting_options(command: _Command) -> _Command:
    """Those of a load that is as long as the command says, on one of Tandem's own deployments."""
    return _with(command, (*_WORKLOAD, *_TANDEM))


def tandem_options(command: _Command) -> _Command:
    """Those of Tandem's own deployments alone."""
    return _with(command, _TANDEM)


def experiment_of(given: Mapping[str, Any]) -> Experiment:
    """What is run. ConfigError names the option that is wrong, before anything is started."""
    spec = WorkloadSpec(
        name=given["workload"],
        num_requests=given["num_requests"],
        rate_per_s=given["rate"],
        arrival=parse_arrival(given["arrival"]),
        limits=model_limits(given["model"], given["max_context"]),
        seed=given["seed"],
        data=given["data"],
        length_scale=given["length_scale"],
    )
    build_workload(spec)
    return Experiment(spec, given["warm_up"], given["drain_s"], parse_slo(given["slo"]) if given["slo"] else None)


def deployment_options(given: Mapping[str, Any]) -> DeploymentOptions:
    """What deployments of any kind are started with. ConfigError, ModelNotFoundError."""
    peer = PeerOptions(
        model=given["peer_model"] or str(locate(given["model"], default_cache_dir()).path),
        num_threads=given["peer_threads"] or len(os.sched_getaffinity(0)),
        num_slots=given["peer_slots"],
        max_context_tokens=model_limits(given["model"], given["max_context"]).max_context_tokens,
        llama_server=given["llama_server"],
        python=given["peer_python"],
        extra_args=tuple(shlex.split(given["peer_args"])),
    )
    return DeploymentOptions(given["model"], parse_settings(given["settings"]), peer)


def model_limits(model: str, max_context: int | None) -> ModelLimits:
    """The model's, from its files. ModelNotFoundError, ModelFormatError, UnsupportedModelError."""
    config = read_metadata(model, default_cache_dir()).config
    return ModelLimits(config.vocab_size, max_context or config.max_position_embeddings)


def parse_slo(text: str) -> Slo:
    """``TTFT_MS,TPOT_MS``. ConfigError."""
    try:
        ttft_ms, tpot_ms = (float(number) for number in text.split(","))
    except ValueError:
        raise ConfigError("slo", f"{text!r} is not TTFT_MS,TPOT_MS") from None
    if min(ttft_ms, tpot_ms) <= 0:
        raise ConfigError("slo", f"{text!r} has a limit that nothing can meet")
    return Slo(ttft_ms, tpot_ms)


def numbers(option: str, text: str) -> list[float]:
    """Comma-separated. ConfigError."""
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(option, f"{text!r} is not a list of numbers with commas between them") from None


def _with(command: _Command, options: Sequence[Callable[[Any], Any]]) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command
