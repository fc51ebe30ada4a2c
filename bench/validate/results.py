"""What `tandem bench validate` writes and shows."""

from dataclasses import dataclass
from typing import Literal

from rich.table import Table

from bench.load.metrics import Summary
from bench.micro.table import ModelFacts, StepTime
from bench.results import Provenance
from bench.simulate.step_times import Contention
from bench.simulate.systems import Delays


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
class LoadCompared:
    """One load on the deployment and on its simulation, the same requests."""

    load: str
    rate_per_s: float
    measured: Summary
    predicted: Summary

    @property
    def ttft_p90_ms(self) -> Pair:
        """Of both."""
        return Pair(self.measured.ttft_ms.p90, self.predicted.ttft_ms.p90)

    @property
    def tpot_p90_ms(self) -> Pair:
        """Of both."""
        return Pair(self.measured.tpot_ms.p90, self.predicted.tpot_ms.p90)


@dataclass(frozen=True, slots=True)
class ValidateResult:
    """The file, with all that the prediction rests on."""

    provenance: Provenance
    deployment: str
    model: ModelFacts
    steps: tuple[StepTime, ...]
    contention: Contention
    alone: Delays
    beside: Delays | None
    loads: tuple[LoadCompared, ...]
    schema: Literal["tandem.bench.validate/1"] = "tandem.bench.validate/1"


def compared_table(result: ValidateResult) -> Table:
    """A row a load."""
    table = Table("load", "TTFT p90, ms", "predicted", "ratio", "TPOT p90, ms", "predicted", "ratio", "failed")
    for each in result.loads:
        cells = [
            cell
            for pair in (each.ttft_p90_ms, each.tpot_p90_ms)
            for cell in (f"{pair.measured:.1f}", f"{pair.predicted:.1f}", f"{pair.ratio:.2f}")
        ]
        failed = f"{each.measured.num_errors} of {each.measured.num_requests}"
        table.add_row(f"{each.load} {each.rate_per_s:g}/s", *cells, failed)
    return table
