"""A deployment's simulation under the same requests as the deployment. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.load.metrics import Slo, summarise
from bench.load.records import RequestRecord
from bench.simulate.contest import Contest, control_of
from bench.simulate.deployment import Setting, simulate
from bench.simulate.loads import LoadSpec, requests_of
from bench.simulate.systems import System
from bench.validate.results import Calibration, LoadCompared, Pair, RequestCompared
from bench.workloads.request import PlannedRequest, Workload
from tandem.partition.monitor import WindowLimits
from tandem.types import Split

NOT_JUDGED = Slo(1e9, 1e9)


@dataclass(frozen=True, slots=True)
class LoadAsked:
    """One load of the simulator's, at a rate."""

    spec: LoadSpec
    rate_per_s: float

    @property
    def requests(self) -> tuple[PlannedRequest, ...]:
        """ConfigError when it cannot be had."""
        return requests_of(self.spec, self.rate_per_s)

    @property
    def workload(self) -> Workload:
        """Of them."""
        return Workload(f"{self.spec.name} {self.rate_per_s:g}/s", self.requests)


@dataclass(frozen=True, slots=True)
class Twin:
    """A deployment's simulation: `mode` is ``colocated`` or ``static:X,Y``; `seed` is of the steps' noise."""

    system: System
    mode: str
    seed: int
    drain_s: float

    def records(self, requests: Sequence[PlannedRequest]) -> Sequence[RequestRecord]:
        """Of the simulated requests."""
        unused = LoadSpec("", duration_s=0.0, seed=self.seed, period_s=0.0)
        contest = Contest(
            self.system, unused, NOT_JUDGED, WindowLimits(10.0, 400), 1.0, 0.1, initial=Split(50, 50), warm_up_s=0.0
        )
        setting = Setting(self.system, control_of(contest, self.mode), self.seed, self.drain_s)
        return simulate(setting, requests).records


def compared(
    twin: Twin, load: LoadAsked, measured: Sequence[RequestRecord], calibration: Calibration | None = None
) -> LoadCompared:
    """`measured`: what became of the load's requests on the deployment; `calibration` is the twin's."""
    predicted = twin.records(load.requests)
    return LoadCompared(
        load=load.spec.name,
        rate_per_s=load.rate_per_s,
        measured=summarise(measured, None),
        predicted=summarise(predicted, None),
        calibration=calibration,
        requests=_paired(measured, predicted),
    )


def _paired(measured: Sequence[RequestRecord], predicted: Sequence[RequestRecord]) -> tuple[RequestCompared, ...]:
    """Those that succeeded on both sides."""
    made = {record.number: record for record in predicted if record.ok}
    return tuple(_pair(real, made[real.number]) for real in measured if real.ok and real.number in made)


def _pair(real: RequestRecord, made: RequestRecord) -> RequestCompared:
    has_tpot = real.tpot_ms is not None and made.tpot_ms is not None
    return RequestCompared(
        number=real.number,
        at_s=real.intended_s,
        num_prompt_tokens=real.num_prompt_tokens,
        num_output_tokens=real.num_output_tokens,
        ttft_ms=Pair(real.ttft_ms, made.ttft_ms),
        tpot_ms=Pair(real.tpot_ms or 0.0, made.tpot_ms or 0.0) if has_tpot else None,
        send_delay_ms=real.send_delay_ms,
        queue_ms=real.queue_ms,
    )
