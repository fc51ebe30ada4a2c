"""How long a step takes under a share: a law from benchmarks as the prior, corrected by what is observed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tandem.partition.observations import PhaseSamples
from tandem.partition.samples import StepSample

WHOLE_PERCENT = 100
MIN_SAMPLES = 4  # of a share, before it has a correction of its own
MOSTLY_ALONE = 0.5


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
    """A law and its corrections: a factor for each share that has been in force, one for all others.

    `lends`: the phase has the whole device while the other one is idle.
    """

    law: StepLaw
    factor: float
    by_percent: Mapping[int, float]
    lends: bool = False

    def ms(self, percent: int, content: StepContent, beside: float = 1.0) -> float:
        """`beside`: in which part of the time the other phase is at work."""
        shared = self._ms(percent, content)
        if not self.lends or beside >= 1.0:
            return shared
        return 1.0 / (beside / shared + (1.0 - beside) / self._ms(WHOLE_PERCENT, content))

    def _ms(self, percent: int, content: StepContent) -> float:
        factor = self.by_percent.get(percent, self.factor)
        return factor * self.law.ms(percent, content.num_rows, content.num_keys, content.num_sequences)


def calibrated(law: StepLaw, samples: PhaseSamples, *, lends: bool = False) -> StepModel:
    """Medians of observed over expected: an outlier moves none of them. The law alone where nothing was observed.

    Where shares are lent, a step that was mostly alone says how fast the whole device is.
    """
    groups = _grouped(samples, lends=lends)
    measured = {
        percent: _factor(law, steps, lends=lends) for percent, steps in groups.items() if len(steps) >= MIN_SAMPLES
    }
    return StepModel(law, _general(measured, groups), measured, lends)


def _grouped(samples: PhaseSamples, *, lends: bool) -> dict[int, list[StepSample]]:
    groups: dict[int, list[StepSample]] = {}
    for percent, steps in samples.by_percent.items():
        for step in steps:
            share = WHOLE_PERCENT if lends and step.beside < MOSTLY_ALONE else percent
            groups.setdefault(share, []).append(step)
    return groups


def _factor(law: StepLaw, steps: Sequence[StepSample], *, lends: bool) -> float:
    plain = StepModel(law, 1.0, {}, lends)
    return median(step.duration_ms / plain.ms(step.percent, content_of(step), step.beside) for step in steps)


def content_of(step: StepSample) -> StepContent:
    """What it computed."""
    return StepContent(step.num_tokens, step.num_context_tokens, step.num_sequences)


def _general(measured: Mapping[int, float], groups: Mapping[int, Sequence[StepSample]]) -> float:
    """That of the share with the newest step."""
    newest = max(measured, key=lambda percent: max(step.at_s for step in groups[percent]), default=None)
    return 1.0 if newest is None else measured[newest]
