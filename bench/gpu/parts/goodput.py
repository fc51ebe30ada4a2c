"""The rates that both modes sustain on the device, of the same model: as many probes as there is time for."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import ceil, inf

from bench.deployment.local import run_dir
from bench.deployment.open import DeploymentOptions, Target, open_deployment, parse_deployments
from bench.experiment import Experiment, lone_slo, run_once
from bench.goodput import TARGET_ATTAINMENT, Bounds, RateSample, bounds_of
from bench.gpu.bench import Bench
from bench.gpu.extract_trace import EXTRACT, count_requests
from bench.gpu.model_files import random_model
from bench.gpu.subject import MODELS, SMALLEST
from bench.load.process import Progress
from bench.results import Run
from bench.workloads.arrivals import Arrival, ArrivalKind
from bench.workloads.build import WorkloadSpec
from bench.workloads.request import ModelLimits
from tandem.model.config import ModelConfig

NAMES = ("colocated", "semi-pd")
SHAPE = replace(MODELS["llama-3-8b"], num_layers=8, vocab_size=32_000)  # random weights that a loader draws in seconds
KV_BYTES, DRY_KV_BYTES = 8 << 30, 64 << 20
PROBE_S = 5.0
DRY_SCALE = 0.05  # of lengths
DRAIN_S = 8.0  # then an answer is cut off, and has failed
LOAD_STARTS_S = 3.0  # the load generator's process, and its warm-up
CLOSE_S = 5.0  # of both deployments
MIN_REQUESTS = 20
SHAREGPT_REQUESTS = 2000  # at most in a probe, where no trace was brought along
NUM_USERS, USERS_REQUESTS = 64, 192  # of the closed loop that says where to begin
MAX_RATES, TOLERANCE = 20, 0.05
START_PART = 0.7  # of the closed loop's rate
BISECTED = "bounds_within_5_percent"

RunOnce = Callable[[Experiment, Target, str, Callable[[Progress], None]], Run]


def goodput(bench: Bench) -> None:
    """Of both at once on the device, in turn: the rates at which 90 % of requests meet both SLOs."""
    bench.expect(("workload", "slo", "closed_loop_requests_per_s", "requests_per_s", BISECTED))
    with run_dir() as folder:
        config = SMALLEST if bench.is_dry else SHAPE
        spec = workload_for(bench, config)
        bench.record("workload", {"name": spec.name, "arrival": spec.arrival.text, "requests": spec.num_requests})
        kv_bytes = DRY_KV_BYTES if bench.is_dry else KV_BYTES
        options = DeploymentOptions(random_model(folder, config), {"memd": {"kv-bytes": kv_bytes}})
        with _both(options) as targets:
            _search(bench, Experiment(spec, 2, DRAIN_S), targets)


class Probes:
    """Runs both at a rate; what they say so far is always in the results."""

    def __init__(
        self, bench: Bench, experiment: Experiment, targets: Sequence[Target], run: RunOnce = run_once
    ) -> None:
        """`experiment`: with an SLO, and as many requests as a probe may have."""
        self._run = run
        self._bench, self._experiment = bench, experiment
        self._targets = {target.name: target for target in targets}
        self._samples: dict[str, list[RateSample]] = {name: [] for name in self._targets}
        self._longest_s = PROBE_S + LOAD_STARTS_S  # of a probe so far

    def search(self, start_rate_per_s: float, max_rates: int) -> None:
        """Next is what whoever is least known wants, for all to whom it says something; until there is no time."""
        rate_per_s = start_rate_per_s
        for _ in range(max_rates):
            open_to = [name for name, each in self._bounds().items() if each.leaves_open(rate_per_s)]
            if not self._bench.has_time(self._longest_s * len(open_to) + CLOSE_S):
                return
            for name in open_to:
                self._probe(name, rate_per_s)
            least_known = max(self._bounds().values(), key=_width)
            if least_known.is_within(TOLERANCE):
                self._bench.record(BISECTED, True)
                return
            rate_per_s = least_known.next_rate()
        self._bench.leave_out(BISECTED, f"after {max_rates} rates")

    def _probe(self, name: str, rate_per_s: float) -> None:
        spec = self._experiment.spec
        count = min(spec.num_requests, max(MIN_REQUESTS, ceil(PROBE_S * rate_per_s)))
        at = replace(spec, rate_per_s=rate_per_s, num_requests=count)
        began_s = self._bench.clock.now()
        run = self._run(replace(self._experiment, spec=at), self._targets[name], f"rate {rate_per_s}", _ignore)
        self._longest_s = max(self._longest_s, self._bench.clock.now() - began_s)
        self._samples[name].append(RateSample(rate_per_s, run.summary.attainment or 0.0))
        self._record()

    def _bounds(self) -> dict[str, Bounds]:
        return {name: bounds_of(samples, TARGET_ATTAINMENT) for name, samples in self._samples.items()}

    def _record(self) -> None:
        bounds = self._bounds()
        found = {name: {"passing": each.passing, "failing": each.failing or "none"} for name, each in bounds.items()}
        self._bench.record("requests_per_s", found)
        probed = {name: [[each.rate_per_s, each.attainment] for each in of] for name, of in self._samples.items()}
        self._bench.record("rates_and_attainments", probed)
        if all(each.passing for each in bounds.values()):
            ratio = bounds["semi-pd"].passing / bounds["colocated"].passing
            self._bench.record("semi_pd_over_colocated", ratio)


def _width(bounds: Bounds) -> float:
    """How far apart they are, of the lower one."""
    return bounds.failing / bounds.passing - 1 if bounds.failing and bounds.passing else inf


def _search(bench: Bench, experiment: Experiment, targets: Sequence[Target]) -> None:
    """From a part of what a closed loop sustains on: an SLO never lets all of that through."""
    slo = lone_slo(experiment, targets[0], _ignore)
    bench.record("slo", {"ttft_ms": slo.ttft_ms, "tpot_ms": slo.tpot_ms})
    bound = replace(experiment, slo=slo)
    rate_per_s = _closed_loop_rate(bench, bound, targets[0])
    bench.record("closed_loop_requests_per_s", rate_per_s)
    Probes(bench, bound, targets).search(START_PART * rate_per_s, bench.pick(MAX_RATES, 1))


def _closed_loop_rate(bench: Bench, experiment: Experiment, target: Target) -> float:
    users = Arrival(ArrivalKind.CLOSED, bench.pick(NUM_USERS, 2))
    num_requests = min(experiment.spec.num_requests, bench.pick(USERS_REQUESTS, 4))
    spec = replace(experiment.spec, arrival=users, num_requests=num_requests)
    return run_once(replace(experiment, spec=spec), target, "closed", _ignore).summary.requests_per_s


def workload_for(bench: Bench, config: ModelConfig) -> WorkloadSpec:
    """The extract of the Azure trace, with its own gaps, where it was brought along; else ShareGPT's lengths."""
    limits, scale = ModelLimits(config.vocab_size, config.max_position_embeddings), DRY_SCALE if bench.is_dry else None
    extract = bench.pack / EXTRACT
    if extract.exists():
        num_requests, trace = count_requests(extract), Arrival(ArrivalKind.TRACE)
        return WorkloadSpec("azure", num_requests, 1.0, trace, limits, data=extract, length_scale=scale)
    poisson = Arrival(ArrivalKind.POISSON)
    return WorkloadSpec("sharegpt", SHAREGPT_REQUESTS, 1.0, poisson, limits, length_scale=scale)


@contextmanager
def _both(options: DeploymentOptions) -> Iterator[list[Target]]:
    """Started at once."""
    with ExitStack() as opened:
        with ThreadPoolExecutor() as pool:
            deployments = [open_deployment(spec, options) for spec in parse_deployments(NAMES)]
            starting = [pool.submit(opened.enter_context, each) for each in deployments]
        yield [each.result() for each in starting]


def _ignore(_: Progress) -> None:
    """Nobody watches."""
