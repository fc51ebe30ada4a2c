"""The planner that predicts: decode first, the rest to prefill, and no move that does not pay.

Of all splits on offer those count in which decode keeps its TPOT with a margin; the one with the least decode share is
planned when prefill keeps its TTFT under it. When no split keeps both, the objective is the share of requests that meet
both SLOs, and between equals the phase with the larger backlog. A phase that is alone gets all there is to give.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tandem.partition.forecast import Forecast, Models, forecast
from tandem.partition.load import Load, load_of
from tandem.partition.observations import Observations
from tandem.partition.planner import AdmissionAdvice, Plan, Prediction
from tandem.partition.slo import SloPolicy
from tandem.partition.step_times import StepLaws, calibrated
from tandem.types import Phase, Split

ENOUGH = 0.95  # a split keeps an SLO when that share of requests is predicted to meet it
TARGET = 0.9  # below it under every split, admission is advised
GAIN_OF_A_SWITCH = 0.1  # in predicted attainment: what one costs, and what forecasts err by
GAIN_OF_A_HASTY_SWITCH = 0.3  # right after another
CALM_WINDOWS = 5.0  # from a switch until the next is no longer hasty
EQUAL = 0.01
ADMISSION_STEPS = 5


@dataclass(frozen=True, slots=True)
class _Outlook:
    """A forecast in the light of the SLOs: shares of requests that meet them."""

    forecast: Forecast
    ttft_met: float
    tpot_met: float
    tpot_met_with_margin: float

    @property
    def both_met(self) -> float:
        """Both SLOs."""
        return self.ttft_met * self.tpot_met

    @property
    def split(self) -> Split:
        """Under which."""
        return self.forecast.split

    @property
    def words(self) -> str:
        """For the log."""
        shares = f"({self.split.prefill_percent}, {self.split.decode_percent})"
        return f"{shares}: TTFT met by {100 * self.ttft_met:.0f} %, TPOT by {100 * self.tpot_met:.0f} %"


@dataclass(frozen=True, slots=True)
class PredictivePlanner:
    """`margin`: what TPOT is kept below its SLO by, as a part of it."""

    slos: SloPolicy
    laws: StepLaws
    margin: float

    @property
    def name(self) -> str:
        """As in configuration and logs."""
        return "predictive"

    def plan(self, observations: Observations, current: Split) -> Plan:
        """See `Planner`."""
        splits = observations.splits
        if not splits:
            return Plan(current, "no other split is on offer")
        alone = _phase_alone(observations)
        if alone is not None:
            return Plan(_most_for(alone, splits), f"{alone} is alone")
        load = load_of(observations)
        if load is None:
            return Plan(current, "nothing was served lately")
        models = self._models(observations)
        offered = [self._outlook(forecast(split, load, models, observations.window_s)) for split in splits]
        return self._choose(offered, current, observations)

    def _models(self, observations: Observations) -> Models:
        return Models(
            prefill=calibrated(self.laws.prefill, observations.samples(Phase.PREFILL)),
            decode=calibrated(self.laws.decode, observations.samples(Phase.DECODE)),
        )

    def _outlook(self, made: Forecast) -> _Outlook:
        return _Outlook(
            forecast=made,
            ttft_met=made.ttft_attainment(self.slos),
            tpot_met=made.tpot_attainment(self.slos),
            tpot_met_with_margin=made.tpot_attainment(self.slos, 1.0 - self.margin),
        )

    def _choose(self, offered: Sequence[_Outlook], current: Split, observations: Observations) -> Plan:
        best = _decode_first(offered) or _best_objective(offered)
        now = next((each for each in offered if each.split == current), None)
        if now is None:
            return self._planned(best, f"no longer on offer -> {best.words}", offered)
        if best.both_met - now.both_met <= _needed_gain(observations):
            return self._planned(now, f"stays: {now.words}", offered)
        return self._planned(best, f"{now.words} -> {best.words}", offered)

    def _planned(self, chosen: _Outlook, reason: str, offered: Sequence[_Outlook]) -> Plan:
        made = chosen.forecast
        predicted = Prediction(made.ttft_p90_ms(), made.tpot_p90_ms(), chosen.both_met)
        return Plan(chosen.split, reason, predicted, self._advice(offered))

    def _advice(self, offered: Sequence[_Outlook]) -> AdmissionAdvice | None:
        """For the split that does best as it is."""
        best = max(offered, key=lambda each: each.both_met)
        if best.both_met >= TARGET:
            return None
        for step in range(ADMISSION_STEPS - 1, 0, -1):
            share = step / ADMISSION_STEPS
            if self._outlook(best.forecast.thinned(share)).both_met >= TARGET:
                return AdmissionAdvice(share, f"no split meets the SLOs; {100 * share:.0f} % of the load would fit")
        return AdmissionAdvice(0.0, "no split meets the SLOs before the backlog is gone")


def _decode_first(offered: Sequence[_Outlook]) -> _Outlook | None:
    """The least decode share that keeps TPOT, if prefill keeps TTFT beside it."""
    keeping = [each for each in offered if each.tpot_met_with_margin >= ENOUGH]
    least = min(keeping, key=lambda each: each.split.decode_percent, default=None)
    return least if least is not None and least.ttft_met >= ENOUGH else None


def _best_objective(offered: Sequence[_Outlook]) -> _Outlook:
    highest = max(each.both_met for each in offered)
    equals = [each for each in offered if each.both_met >= highest - EQUAL]
    needy = _needy_phase(equals[0].forecast.load)
    return max(equals, key=lambda each: each.split.percent(needy))


def _needed_gain(observations: Observations) -> float:
    """The longer ago the last switch, the less another has to bring."""
    age = min(1.0, observations.since_switch_s / (CALM_WINDOWS * observations.window_s))
    return GAIN_OF_A_HASTY_SWITCH + (GAIN_OF_A_SWITCH - GAIN_OF_A_HASTY_SWITCH) * age


def _phase_alone(observations: Observations) -> Phase | None:
    """The one that worked in a window in which the other had nothing to do."""
    idle = [phase for phase in Phase if not observations.samples(phase).window]
    if len(idle) != 1 or observations.samples(_other(idle[0])).observed_s < observations.window_s:
        return None
    return _other(idle[0])


def _other(phase: Phase) -> Phase:
    return Phase.DECODE if phase is Phase.PREFILL else Phase.PREFILL


def _most_for(phase: Phase, splits: Sequence[Split]) -> Split:
    return max(splits, key=lambda split: split.percent(phase))


def _needy_phase(load: Load) -> Phase:
    """Whose queue is longer, in sequences."""
    waiting_prompts = load.prefill.backlog_tokens / load.mean_prompt_tokens + load.num_queued
    return Phase.PREFILL if waiting_prompts >= load.decode.num_waiting else Phase.DECODE
