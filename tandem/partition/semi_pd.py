"""Algorithm 1 of the semi-PD paper (arXiv 2504.19867, section 5), with what is wrong in it put right.

What differs from the paper is said where it stands, after ``Corrected:``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tandem.partition.latency_fit import fit_tpot, fit_ttft
from tandem.partition.observations import Observations, WindowSummary
from tandem.partition.planner import Plan
from tandem.partition.slo import Slo
from tandem.types import Phase, Split

MAX_STEPS = 3  # as in the public code; a step is the next split on offer
FIT_WINDOWS = 16


@dataclass(frozen=True, slots=True)
class SemiPdPlanner:
    """Acts when a window has closed: the phase whose percentile misses its SLO gets more, as its fitted curve says.

    Corrected: the constants of equation 4 are fitted online, where the public code has them fixed offline.
    """

    slo: Slo

    @property
    def name(self) -> str:
        """As in configuration and logs."""
        return "semi-pd"

    def plan(self, observations: Observations, current: Split) -> Plan:
        """See `Planner`."""
        window = _just_closed(observations)
        if window is None:
            return Plan(current, "the window is open")
        ttft_miss = window.ttft_p90_ms / self.slo.ttft_ms
        tpot_miss = window.tpot_p90_ms / self.slo.tpot_ms
        if max(ttft_miss, tpot_miss) <= 1.0:
            return Plan(current, "both SLOs are met")
        # Corrected: with both missed, text and listing contradict each other; here the larger relative miss decides.
        phase = Phase.PREFILL if ttft_miss >= tpot_miss else Phase.DECODE
        return self._raised(phase, observations, current)

    def _raised(self, phase: Phase, observations: Observations, current: Split) -> Plan:
        """More for `phase`, and so less for the other, until its curve meets the SLO.

        Corrected: the steps are counted, so that `MAX_STEPS` bounds them; the share that the curve is asked for is that
        of the split being tried, not of one that is not set yet; no floor of 80 percent keeps splits out of reach.
        """
        ladder = _ladder(phase, observations.splits, current)
        chosen = current
        for split in ladder[:MAX_STEPS]:
            chosen = split
            if self._is_met(phase, split, observations.history):
                break
        if chosen == current:
            return Plan(current, f"{phase} misses its SLO and has all that is on offer")
        return Plan(chosen, f"{phase} misses its SLO: {chosen.percent(phase)} percent by the fitted curve")

    def _is_met(self, phase: Phase, split: Split, history: Sequence[WindowSummary]) -> bool:
        total = split.prefill_percent + split.decode_percent
        share = split.percent(phase) / total  # x' = x / (x + y)
        windows = _fit_windows(history)
        if phase is Phase.PREFILL:
            return fit_ttft([window for window in windows if window.ttft_p90_ms > 0]).at(share) <= self.slo.ttft_ms
        return fit_tpot([window for window in windows if window.tpot_p90_ms > 0]).at(share) <= self.slo.tpot_ms


def _just_closed(observations: Observations) -> WindowSummary | None:
    if not observations.history or observations.history[-1].closed_s != observations.now_s:
        return None
    return observations.history[-1]


def _fit_windows(history: Sequence[WindowSummary]) -> Sequence[WindowSummary]:
    """The newest, of one split each where there are such; the window that misses is always among them."""
    pure = [window for window in history[:-1] if not window.is_mixed]
    return (*pure[-FIT_WINDOWS + 1 :], history[-1])


def _ladder(phase: Phase, splits: Sequence[Split], current: Split) -> list[Split]:
    """The splits that give `phase` more than `current` does, least first."""
    more = [split for split in splits if _part(phase, split) > _part(phase, current)]
    return sorted(more, key=lambda split: _part(phase, split))


def _part(phase: Phase, split: Split) -> float:
    return split.percent(phase) / (split.prefill_percent + split.decode_percent)
