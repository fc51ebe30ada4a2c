"""How long a step takes under a share: a law from benchmarks as the prior, corrected by what is observed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pvariance

from tandem.partition.observations import PhaseSamples
from tandem.partition.samples import StepSample, size_of

WHOLE_PERCENT = 100
MIN_SAMPLES = 4  # of a size or a share, before it has a correction of its own
MOSTLY_ALONE = 0.5
OUTLIER = 20.0  # times the median: no step under any share, rests included
LAW_ERROR = 0.3  # of a law, in what it says a share does to a step: a standard deviation


@dataclass(frozen=True, slots=True)
class StepLaw:
    """Milliseconds of a step on the whole device, and what a share does to them.

    ``(base + row * rows + key * keys + pair * rows * keys / sequences) * (1 - parallel + parallel * 100 / percent)``:
    Amdahl's law, which is also the paper's ``a / y + b`` (semi-PD, arXiv 2504.19867, equation 4).
    """

    base_ms: float
    row_ms: float
    key_ms: float
    pair_ms: float  # a row of a prompt reads the keys before it
    parallel: float  # in [0, 1]: the part of a step that a share slows down

    def ms(self, percent: float, num_rows: float, num_keys: float, num_sequences: float = 1.0) -> float:
        """`num_keys` is summed over the sequences."""
        pairs = num_rows * num_keys / max(num_sequences, 1.0)
        whole = self.base_ms + self.row_ms * num_rows + self.key_ms * num_keys + self.pair_ms * pairs
        return whole * (1.0 - self.parallel + self.parallel * WHOLE_PERCENT / percent)


@dataclass(frozen=True, slots=True)
class StepLaws:
    """The prior of both phases."""

    prefill: StepLaw
    decode: StepLaw


@dataclass(frozen=True, slots=True)
class StepContent:
    """What takes time: rows of the forward pass, keys summed over the sequences."""

    num_rows: float
    num_keys: float
    num_sequences: float = 1.0


@dataclass(frozen=True, slots=True)
class StepModel:
    """A law and its corrections: factors by a step's size, and by share and size where a share has been in force.

    Sizes are `size_of` its rows; of a size that was not seen the nearest counts. `lends`: the phase has the whole
    device while the other one is idle.
    """

    law: StepLaw
    by_size: Mapping[int, float]
    by_percent: Mapping[int, Mapping[int, float]]
    lends: bool = False

    def ms(self, percent: int, content: StepContent, beside: float = 1.0) -> float:
        """`beside`: in which part of the time the other phase is at work."""
        shared = self._ms(percent, content)
        if not self.lends or beside >= 1.0:
            return shared
        return 1.0 / (beside / shared + (1.0 - beside) / self._ms(WHOLE_PERCENT, content))

    def _ms(self, percent: int, content: StepContent) -> float:
        size = size_of(round(content.num_rows))
        factor = _nearest(self.by_size, size) * _nearest(self.by_percent.get(percent, {}), size)
        return factor * self.law.ms(percent, content.num_rows, content.num_keys, content.num_sequences)


@dataclass(frozen=True, slots=True)
class _Ratio:
    """A step, observed over expected."""

    size: int
    percent: int
    value: float


def calibrated(law: StepLaw, samples: PhaseSamples, *, lends: bool = False) -> StepModel:
    """Means of observed over expected, outliers left out. The law alone where nothing was observed.

    Means, because a share of the time is kept by resting in some steps, of which the median step knows nothing. Such
    steps vary: what a few of them say of a share counts as far as it is no chance.
    What differs is put down to steps' sizes first, and to the share only as far as steps of one size differ with it:
    different shares have seen different steps, and slow down large ones more than small ones. Where shares are lent, a
    step that was mostly alone says how fast the whole device is.
    """
    plain = StepModel(law, {}, {}, lends)
    ratios = [
        _Ratio(size_of(step.num_tokens), _share_of(step, lends=lends), _ratio(plain, step))
        for steps in samples.by_percent.values()
        for step in steps
    ]
    by_size = _by_size(((ratio.size, ratio.value) for ratio in ratios), fmean)
    by_percent = {
        percent: _by_size(
            (
                (ratio.size, ratio.value / by_size[ratio.size])
                for ratio in ratios
                if ratio.percent == percent and ratio.size in by_size
            ),
            _likely,
        )
        for percent in {ratio.percent for ratio in ratios}
    }
    return StepModel(law, by_size, by_percent, lends)


def content_of(step: StepSample) -> StepContent:
    """What it computed."""
    return StepContent(step.num_tokens, step.num_context_tokens, step.num_sequences)


def _share_of(step: StepSample, *, lends: bool) -> int:
    return WHOLE_PERCENT if lends and step.beside < MOSTLY_ALONE else step.percent


def _ratio(plain: StepModel, step: StepSample) -> float:
    return step.duration_ms / plain.ms(step.percent, content_of(step), step.beside)


def _nearest(factors: Mapping[int, float], size: int) -> float:
    """The factor of that size, or of the nearest one; 1 where there is none."""
    if size in factors:
        return factors[size]
    return factors[min(factors, key=lambda seen: abs(seen - size))] if factors else 1.0


def _by_size(pairs: Iterable[tuple[int, float]], estimate: Callable[[Sequence[float]], float]) -> dict[int, float]:
    """Where there are enough of a size; outliers are left out."""
    groups: dict[int, list[float]] = {}
    for size, value in pairs:
        groups.setdefault(size, []).append(value)
    return {size: estimate(_usual(values)) for size, values in groups.items() if len(values) >= MIN_SAMPLES}


def _usual(values: Sequence[float]) -> list[float]:
    highest = OUTLIER * median(values)
    return [value for value in values if value <= highest]


def _likely(values: Sequence[float]) -> float:
    """A factor that was expected to be 1 but for the law's error, after these have been seen: both taken as normal."""
    mean = fmean(values)
    chance = pvariance(values) / len(values) / mean**2
    return 1.0 + (mean - 1.0) * LAW_ERROR**2 / (LAW_ERROR**2 + chance)
