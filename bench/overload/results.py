"""What `tandem bench overload` writes and shows, and how it comes from records."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table

from bench.load.metrics import Distribution, Slo, distribution, meets, tpots_ms
from bench.load.records import RequestRecord
from bench.results import Provenance, WorkloadFacts
from tandem.errors import QueueFullError

REFUSED = QueueFullError.__name__


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """One rate for some time. Latencies are of the requests that were answered whole.

    A refusal's time counts from when its request was due, and from when it was sent; what the first has beyond the
    second is the load generator's own delay.
    """

    rate_per_s: float
    duration_s: float
    num_requests: int
    num_met: int  # both SLOs
    num_refused: int
    failures: dict[str, int]  # others that failed, by kind
    ttft_ms: Distribution
    tpot_ms: Distribution
    refused_since_due_ms: Distribution
    refused_since_sent_ms: Distribution
    send_delay_ms: Distribution

    @property
    def goodput_per_s(self) -> float:
        """Requests a second that met both SLOs."""
        return self.num_met / self.duration_s


@dataclass(frozen=True, slots=True)
class OverloadResult:
    """The file. `peak` is the run at the highest rate that the system sustains."""

    provenance: Provenance
    deployment: str
    workload: WorkloadFacts
    slo: Slo
    factor: float
    peak: LoadedRun
    overload: LoadedRun
    schema: Literal["tandem.bench.overload/1"] = "tandem.bench.overload/1"

    @property
    def share_of_peak(self) -> float:
        """Goodput under overload over its peak; 0 where there was none."""
        peak = self.peak.goodput_per_s
        return self.overload.goodput_per_s / peak if peak else 0.0


def loaded_run(records: Sequence[RequestRecord], slo: Slo, rate_per_s: float, duration_s: float) -> LoadedRun:
    """See `LoadedRun`; requests were due for `duration_s`."""
    good = [record for record in records if record.ok]
    kinds = Counter(record.error.partition(":")[0] for record in records if not record.ok)
    refused = [record for record in records if record.error.startswith(REFUSED)]
    return LoadedRun(
        rate_per_s=rate_per_s,
        duration_s=duration_s,
        num_requests=len(records),
        num_met=sum(meets(record, slo) for record in records),
        num_refused=len(refused),
        failures={kind: count for kind, count in kinds.items() if kind != REFUSED},
        ttft_ms=distribution([record.ttft_ms for record in good]),
        tpot_ms=distribution(tpots_ms(good)),
        refused_since_due_ms=distribution([record.e2e_ms for record in refused]),
        refused_since_sent_ms=distribution([record.e2e_ms - record.send_delay_ms for record in refused]),
        send_delay_ms=distribution([record.send_delay_ms for record in records]),
    )


def overload_table(result: OverloadResult) -> Table:
    """A column a run."""
    table = Table("", "at its peak", f"at {result.factor:g} times that")
    runs = (result.peak, result.overload)
    table.add_row("rate, requests/s", *(f"{run.rate_per_s:.3f}" for run in runs))
    table.add_row("met both SLOs, requests/s", *(f"{run.goodput_per_s:.3f}" for run in runs))
    table.add_row("requests: met / answered / refused / failed", *(_counts(run) for run in runs))
    rows = ("ttft_ms", "tpot_ms", "refused_since_due_ms", "refused_since_sent_ms", "send_delay_ms")
    for name in rows:
        label = f"{name.removesuffix('_ms').replace('_', ' ')}, ms: p50 / p90 / p99"
        table.add_row(label, *(_percentiles(getattr(run, name)) for run in runs))
    table.caption = f"goodput under overload over its peak: {100 * result.share_of_peak:.1f} %"
    return table


def _counts(run: LoadedRun) -> str:
    return f"{run.num_met} / {run.ttft_ms.count} / {run.num_refused} / {sum(run.failures.values())}"


def _percentiles(values: Distribution) -> str:
    return f"{values.p50:.1f} / {values.p90:.1f} / {values.p99:.1f}" if values.count else "none"
