"""One deployment at the highest rate that it sustains, and at a multiple of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

from bench.deployment.open import Target
from bench.experiment import Experiment, run_workload
from bench.goodput import Goodput, Search, find_goodputs
from bench.load.metrics import Slo
from bench.load.process import Progress
from bench.overload.results import LoadedRun, loaded_run
from bench.workloads.build import at_rate, build_workload
from tandem.errors import NotReadyError

Advance = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Overload:
    """`experiment` but for its rate and number of requests."""

    experiment: Experiment
    slo: Slo
    target: Target

    def run(self, rate_per_s: float, duration_s: float, on_progress: Advance) -> LoadedRun:
        """NotReadyError when the deployment does not answer."""
        spec = at_rate(self.experiment.spec, rate_per_s)
        workload = build_workload(replace(spec, num_requests=num_due(rate_per_s, duration_s)))
        run = run_workload(self.experiment, self.target, workload, f"{rate_per_s} for {duration_s}", on_progress)
        return loaded_run(run.records, self.slo, rate_per_s, duration_s)


def num_due(rate_per_s: float, duration_s: float) -> int:
    """Requests."""
    return ceil(rate_per_s * duration_s)


def capacity(measure: Callable[[float], LoadedRun], search: Search, name: str) -> float:
    """The highest rate at which enough requests meet both SLOs. NotReadyError: none that was tried."""

    def attainments(names: object, rate_per_s: float) -> dict[str, list[float]]:
        run = measure(rate_per_s)
        return {name: [run.num_met / run.num_requests]}

    found: Goodput = find_goodputs([name], attainments, search)[name]
    if not found.rate_per_s:
        lowest = min(sample.rate_per_s for sample in found.samples)
        raise NotReadyError(f"{name} does not meet the SLOs at {lowest:.3f} requests a second either; give --slo")
    return found.rate_per_s
