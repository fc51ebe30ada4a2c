"""`tandem bench goodput`."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench.commands.options import deployment_options, experiment_of, measuring_options
from bench.deployment.open import Target, open_all, parse_deployments
from bench.display import goodput_table, new_console, request_bar
from bench.experiment import NUM_LONE_REQUESTS, Experiment, lone_slo, run_once
from bench.goodput import TARGET_ATTAINMENT, Goodput, Search, find_goodputs
from bench.load.metrics import Slo
from bench.results import DeploymentGoodput, GoodputResult, Run, provenance, write_result
from bench.workloads.arrivals import ArrivalKind
from bench.workloads.build import at_rate
from tandem.errors import ConfigError

MIN_REQUESTS = 10


@click.command()
@click.argument("deployments", nargs=-1, required=True)
@click.option("--target", default=TARGET_ATTAINMENT, show_default=True, type=click.FloatRange(0, 1, min_open=True))
@click.option("--max-probes", default=12, show_default=True, type=click.IntRange(1), help="Rates for a deployment.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Runs of a probe, from --seed on.")
@click.option("--tolerance", default=0.05, show_default=True, type=float, help="Of the bounds found, relative.")
@click.option("--probe-s", type=click.FloatRange(0, min_open=True), help="Instead of --num-requests: seconds a run.")
@measuring_options
def goodput(
    *,
    deployments: Sequence[str],
    target: float,
    max_probes: int,
    seeds: int,
    tolerance: float,
    probe_s: float | None,
    out: Path,
    **given: Any,
) -> None:
    """Find the highest rate at which enough requests meet both SLOs, for each of the DEPLOYMENTS, side by side.

    All are started, then probed in turn at each rate; the search starts at --rate. Without --slo it is 7.5 times the
    TTFT and 10 times the TPOT of a lone request to the first deployment, for all of them.
    """
    console = new_console()
    specs = parse_deployments(deployments)
    experiment, options = experiment_of(given), deployment_options(given)
    if experiment.spec.arrival.kind is ArrivalKind.CLOSED:
        raise ConfigError("arrival", "a closed loop has no rate")
    search = Search(experiment.spec.rate_per_s, target, tolerance, max_probes)
    with open_all(specs, options) as targets:
        slo = experiment.slo or _lone_slo(console, experiment, targets[0])
        probes = Probes(console, replace(experiment, slo=slo), targets, seeds, probe_s)
        found = find_goodputs([target.name for target in targets], probes.measure, search)
    result = GoodputResult(provenance(), slo, target, probes.results(found))
    write_result(out, result, GoodputResult)
    console.print(goodput_table(result))
    console.print(f"written to {out}; plot it with: tandem bench plot {out}")


class Probes:
    """Runs deployments in turn, and keeps the runs."""

    def __init__(
        self,
        console: Console,
        experiment: Experiment,
        targets: Sequence[Target],
        num_seeds: int,
        probe_s: float | None,
    ) -> None:
        self._console = console
        self._experiment = experiment
        self._targets = {target.name: target for target in targets}
        self._num_seeds = num_seeds
        self._probe_s = probe_s
        self._runs: dict[str, list[Run]] = {target.name: [] for target in targets}

    def measure(self, names: Sequence[str], rate_per_s: float) -> dict[str, list[float]]:
        """As of `bench.goodput.Measure`; who goes first changes with every seed."""
        found: dict[str, list[float]] = {name: [] for name in names}
        for number in range(self._num_seeds):
            start = number % len(names)
            for name in (*names[start:], *names[:start]):
                found[name].append(self._attainment(self._targets[name], self._at(rate_per_s, number)))
        return found

    def results(self, found: dict[str, Goodput]) -> tuple[DeploymentGoodput, ...]:
        """With the runs, a probe's seeds one after another."""
        return tuple(DeploymentGoodput(name, goodput, tuple(self._runs[name])) for name, goodput in found.items())

    def _at(self, rate_per_s: float, number: int) -> Experiment:
        spec = self._experiment.spec
        num_requests = spec.num_requests
        if self._probe_s is not None:
            num_requests = max(MIN_REQUESTS, ceil(self._probe_s * rate_per_s))
        at = replace(at_rate(spec, rate_per_s), num_requests=num_requests, seed=spec.seed + number)
        return replace(self._experiment, spec=at)

    def _attainment(self, target: Target, experiment: Experiment) -> float:
        spec = experiment.spec
        title = f"{target.name} at {spec.rate_per_s:.3f}/s, seed {spec.seed}"
        with request_bar(self._console, title, spec.num_requests) as advance:
            run = run_once(experiment, target, f"rate {spec.rate_per_s}", advance)
        self._runs[target.name].append(run)
        return run.summary.attainment or 0.0


def _lone_slo(console: Console, experiment: Experiment, target: Target) -> Slo:
    with request_bar(console, f"{target.name}, requests alone", NUM_LONE_REQUESTS) as advance:
        slo = lone_slo(experiment, target, advance)
    console.print(f"SLO: TTFT {slo.ttft_ms:.0f} ms, TPOT {slo.tpot_ms:.1f} ms")
    return slo
