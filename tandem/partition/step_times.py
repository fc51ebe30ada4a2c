"""How long a step takes under a share: a law from benchmarks as the prior, corrected by what is observed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tandem.partition.observations import PhaseSamples
from tandem.partition.samples import StepSample

WHOLE_PERCENT = 100.0
MIN_SAMPLES = 4  # of a share, before it has a correction of its own


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


# SmolLM2-135M in bfloat16 on two cores of a Zen 5 server (docs/benchmarks.md: steps with one and with two threads).
CPU_LAWS = StepLaws(
    prefill=StepLaw(base_ms=6.0, row_ms=0.28, key_ms=0.0, pair_ms=1.1e-4, parallel=1.0),
    decode=StepLaw(base_ms=8.0, row_ms=0.25, key_ms=1.1e-3, pair_ms=0.0, parallel=0.75),
)


@dataclass(frozen=True, slots=True)
class StepModel:
    """A law and its corrections: a factor for each share that has been in force, one for all others."""

    law: StepLaw
    factor: float
    by_percent: Mapping[int, float]

    def ms(self, percent: int, num_rows: float, num_keys: float, num_sequences: float = 1.0) -> float:
        """As `StepLaw.ms`, corrected."""
        factor = self.by_percent.get(percent, self.factor)
        return factor * self.law.ms(percent, num_rows, num_keys, num_sequences)


def calibrated(law: StepLaw, samples: PhaseSamples) -> StepModel:
    """Medians of observed over expected: an outlier moves none of them. The law alone where nothing was observed."""
    measured = {
        percent: _factor(law, steps) for percent, steps in samples.by_percent.items() if len(steps) >= MIN_SAMPLES
    }
    recent = samples.window[-MIN_SAMPLES * 8 :]
    general = _factor(law, recent) if len(recent) >= MIN_SAMPLES else _middle(measured)
    return StepModel(law, general, measured)


def _factor(law: StepLaw, steps: Sequence[StepSample]) -> float:
    return median(step.duration_ms / _expected_ms(law, step) for step in steps)


def _expected_ms(law: StepLaw, step: StepSample) -> float:
    return law.ms(step.percent, step.num_tokens, step.num_context_tokens, step.num_sequences)


def _middle(measured: Mapping[int, float]) -> float:
    return median(measured.values()) if measured else 1.0
