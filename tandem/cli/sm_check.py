"""Whether the two phases really have SMs of their own: two processes take their shares and are probed together."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from kernels.gpu.sm_use import SmUse, share_faults
from tandem.cli.probes import Probe
from tandem.types import Phase, Split

READY = "ready"
PROBE = (sys.executable, "-P", "-m", "tandem.phase.sm_probe")


@dataclass(frozen=True, slots=True)
class SmReport:
    """What each phase should have, what it used, and what is wrong with that; no faults where shares are disjoint."""

    quotas: Mapping[Phase, int]
    uses: Mapping[Phase, SmUse]

    @property
    def faults(self) -> tuple[str, ...]:
        """In words; prefill's share is the first."""
        prefill, decode = Phase.PREFILL, Phase.DECODE
        return share_faults(
            self.uses[prefill], self.uses[decode],
            first_quota=self.quotas[prefill], second_quota=self.quotas[decode],
        )  # fmt: skip


def check_sms(split: Split, environ: Mapping[str, str], probe: Sequence[str] = PROBE) -> SmReport:
    """`environ`: what the phases are started with. DeviceError with what a probe said when it failed."""
    shares = (str(split.prefill_percent), str(split.decode_percent))
    with ExitStack() as stack:
        probes = {phase: stack.enter_context(Probe("SM probe", [*probe, phase, *shares], environ)) for phase in Phase}
        for each in probes.values():
            each.wait_for(READY)
        for each in probes.values():
            each.release()
        answers = {phase: each.answer() for phase, each in probes.items()}
    return SmReport(
        {phase: answer["quota"] for phase, answer in answers.items()},
        {phase: SmUse(frozenset(a["sm_ids"]), a["from_ns"], a["to_ns"]) for phase, a in answers.items()},
    )
