"""What `tandem bench validate` writes and shows."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rich.table import Table

from bench.load.metrics import Summary
from bench.micro.table import ModelFacts, StepTime
from bench.results import Provenance
from bench.simulate.pace import CadenceSteps
from bench.simulate.step_times import Contention
from bench.simulate.systems import Delays, Several
from bench.validate.probes import Seen


@dataclass(frozen=True, slots=True)
class Pair:
    """One number, as it was and as it was predicted."""

    measured: float
    predicted: float

    @property
    def ratio(self) -> float:
        """Predicted over measured; 0 of nothing."""
        return self.predicted / self.measured if self.measured else 0.0


@dataclass(frozen=True, slots=True)
class RequestCompared:
    """One request, by its number in the load."""

    number: int
    at_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    ttft_ms: Pair
    tpot_ms: Pair | None  # None: it has a single token
    send_delay_ms: float  # of `ttft_ms`, measured: the load generator was late
    queue_ms: float | None  # of `ttft_ms`, measured: in the gateway


@dataclass(frozen=True, slots=True)
class ProbeCompared:
    """Requests that calibrate, as they were, and as the calibrated simulation has them."""

    name: str
    measured: Seen  # before and after a load, the mean
    predicted: Seen


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a load's prediction rests on beside the steps' table."""

    contention: Contention
    alone: Delays
    beside: Delays | None
    several: Several | None
    probes: tuple[ProbeCompared, ...]


@dataclass(frozen=True, slots=True)
class LoadCompared:
    """One load on the deployment and on its simulation, the same requests."""

    load: str
    rate_per_s: float
    measured: Summary
    predicted: Summary
    calibration: Calibration | None  # None: the prediction was not calibrated by this deployment
    requests: tuple[RequestCompared, ...]  # that succeeded on both sides

    @property
    def ttft_p90_ms(self) -> Pair:
        """Of both."""
        return Pair(self.measured.ttft_ms.p90, self.predicted.ttft_ms.p90)

    @property
    def tpot_p90_ms(self) -> Pair:
        """Of both."""
        return Pair(self.measured.tpot_ms.p90, self.predicted.tpot_ms.p90)

    @property
    def ttft_each(self) -> float:
        """How far a request's TTFT lies from its prediction, as a factor: in the middle of all requests."""
        return _middle_factor(request.ttft_ms for request in self.requests)

    @property
    def tpot_each(self) -> float:
        """As `ttft_each`."""
        return _middle_factor(request.tpot_ms for request in self.requests if request.tpot_ms is not None)


@dataclass(frozen=True, slots=True)
class ValidateResult:
    """The file, with all that the predictions rest on."""

    provenance: Provenance
    deployment: str
    model: ModelFacts
    steps: tuple[StepTime, ...]
    loads: tuple[LoadCompared, ...]
    cadence: CadenceSteps | None = None  # None: the default model's
    schema: Literal["tandem.bench.validate/2"] = "tandem.bench.validate/2"


def compared_table(result: ValidateResult) -> Table:
    """A row a load."""
    table = Table("load", "TTFT p90, ms", "predicted", "ratio", "each", "TPOT p90, ms", "predicted", "ratio", "each")
    for each in result.loads:
        ttft, tpot = _cells(each.ttft_p90_ms, each.ttft_each), _cells(each.tpot_p90_ms, each.tpot_each)
        table.add_row(f"{each.load} {each.rate_per_s:g}/s", *ttft, *tpot)
    return table


def failed_lines(result: ValidateResult) -> list[str]:
    """Of the loads in which requests failed."""
    return [
        f"{each.load}: {each.measured.num_errors} of {each.measured.num_requests} failed"
        for each in result.loads
        if each.measured.num_errors
    ]


def _cells(p90_ms: Pair, each: float) -> tuple[str, ...]:
    return f"{p90_ms.measured:.1f}", f"{p90_ms.predicted:.1f}", f"{p90_ms.ratio:.2f}", f"{each:.2f}"


def _middle_factor(pairs: Iterable[Pair]) -> float:
    factors = sorted(max(pair.ratio, 1.0 / pair.ratio) for pair in pairs if pair.ratio)
    return factors[len(factors) // 2] if factors else 0.0
