"""The planner that predicts: decode first, the rest to prefill, and no move that does not pay.

Of all splits on offer those count in which decode keeps its TPOT with a margin; the one with the least decode share is
planned when prefill keeps its TTFT under it. When no split keeps both, the objective is the share of requests that meet
both SLOs, and between equals the phase with the larger backlog. A phase that is alone gets all there is to give, by a
switch only where the backend does not lend it anyway. A switch has to pay, the more so after others or when it takes a
new process; to a split that gives prefill more and keeps both SLOs it may also come for nothing, when there was none
for long.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tandem.partition.forecast import Forecast, Models, forecast
from tandem.partition.load import Load
from tandem.partition.observations import Observations
from tandem.partition.planner import AdmissionAdvice, Plan, Prediction
from tandem.partition.slo import SloPolicy
from tandem.partition.step_times import StepLaws, calibrated
from tandem.partition.stretch import expected_loads
from tandem.partition.traits import BackendTraits, traits_of
from tandem.types import Phase, Split

ENOUGH = 0.95  # a split keeps an SLO when that share of requests is predicted to meet it
TARGET = 0.9  # below it under every split, admission is advised
GAIN_OF_A_SWITCH = 0.02  # in predicted attainment: what one costs, and what forecasts err by
GAIN_OF_A_RESPAWN = 0.1  # where a switch takes another process
GAIN_AFTER_A_SWITCH = 0.12  # more, for each switch lately
CALM_WINDOWS = 10.0  # from a switch until it is forgotten
EQUAL = 0.01
LASTING_WINDOWS = 6.0  # a load that is not what it seems is followed for so long: batches grow for many answers' time
ADMISSION_STEPS = 5


@dataclass(frozen=True, slots=True)
class _Outlook:
    """A forecast in the light of the SLOs: shares of requests that meet them."""

    forecast: Forecast
    otherwise_met: float  # both SLOs, when the load is not what it seems, and lasts
    ttft_met: float
    tpot_met: float
    tpot_met_with_margin: float

    @property
    def both_met(self) -> float:
        """Both SLOs."""
        return self.ttft_met * self.tpot_met

    @property
    def keeps_both(self) -> bool:
        """Both SLOs, TPOT's with the margin."""
        return min(self.tpot_met_with_margin, self.ttft_met) >= ENOUGH

    @property
    def worth(self) -> float:
        """What splits are compared by."""
        return (self.both_met + self.otherwise_met) / 2

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
    laws: StepLaws | None  # None: what is known of the backend
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
        traits = traits_of(observations.backend)
        alone = _phase_alone(observations)
        if alone is not None:
            return Plan(current if traits.lends else _most_for(alone, splits), f"{alone} is alone")
        loads = expected_loads(observations)
        if loads is None:
            return Plan(current, "nothing was served lately")
        models = self._models(observations, traits)
        offered = [self._outlook(split, loads, models, observations.window_s) for split in splits]
        return self._choose(offered, current, observations)

    def _models(self, observations: Observations, traits: BackendTraits) -> Models:
        laws = self.laws or traits.laws
        return Models(
            prefill=calibrated(laws.prefill, observations.samples(Phase.PREFILL), lends=traits.lends),
            decode=calibrated(laws.decode, observations.samples(Phase.DECODE), lends=traits.lends),
        )

    def _outlook(self, split: Split, loads: tuple[Load, Load], models: Models, window_s: float) -> _Outlook:
        expected, more = loads
        made = forecast(split, expected, models, window_s)
        otherwise = forecast(split, more, models, window_s * LASTING_WINDOWS)
        return _Outlook(
            forecast=made,
            otherwise_met=otherwise.ttft_attainment(self.slos) * otherwise.tpot_attainment(self.slos),
            ttft_met=made.ttft_attainment(self.slos),
            tpot_met=made.tpot_attainment(self.slos),
            tpot_met_with_margin=made.tpot_attainment(self.slos, 1.0 - self.margin),
        )

    def _choose(self, offered: Sequence[_Outlook], current: Split, observations: Observations) -> Plan:
        best = _best(offered)
        now = next((each for each in offered if each.split == current), None)
        if now is None:
            return self._planned(best, f"no longer on offer -> {best.words}", offered)
        restlessness, respawns = _restlessness(observations), traits_of(observations.backend).respawns
        needed = (GAIN_OF_A_RESPAWN if respawns else GAIN_OF_A_SWITCH) + GAIN_AFTER_A_SWITCH * restlessness
        gives_more = best.split.decode_percent < now.split.decode_percent
        is_free = gives_more and best.keeps_both and not restlessness and not respawns
        if is_free or best.worth - now.worth > needed:
            return self._planned(best, f"{now.words} -> {best.words}", offered)
        return self._planned(now, f"stays: {now.words}", offered)

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
            thinned = best.forecast.thinned(share)
            if thinned.ttft_attainment(self.slos) * thinned.tpot_attainment(self.slos) >= TARGET:
                return AdmissionAdvice(share, f"no split meets the SLOs; {100 * share:.0f} % of the load would fit")
        return AdmissionAdvice(0.0, "no split meets the SLOs before the backlog is gone")


def _best(offered: Sequence[_Outlook]) -> _Outlook:
    """Between equals the least decode share that keeps both SLOs, or else the phase with the larger backlog."""
    highest = max(each.worth for each in offered)
    equals = [each for each in offered if each.worth >= highest - EQUAL]
    keeping = [each for each in equals if each.keeps_both]
    if keeping:
        return min(keeping, key=lambda each: each.split.decode_percent)
    needy = _needy_phase(equals[0].forecast.load)
    return max(equals, key=lambda each: each.split.percent(needy))


def _restlessness(observations: Observations) -> float:
    """The more switches lately, and the less long ago, the higher; 0 when all are forgotten."""
    calm_s = CALM_WINDOWS * observations.window_s
    return sum(max(0.0, 1.0 - age_s / calm_s) for age_s in observations.switch_ages_s)


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
