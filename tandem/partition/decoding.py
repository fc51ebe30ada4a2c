"""How fast answers come under a split: decode's mean time a token, and how it differs between answers. Pure.

Answers differ by the batches they meet, and by how much of their time prefill is at work: to a short answer it is so
all the time or never, to one much longer than prefill works or rests at a stretch for the same part as to every other.
"""

import math
from dataclasses import dataclass
from statistics import fmean

from tandem.partition.load import Load
from tandem.partition.step_times import StepContent, StepModel
from tandem.types import Split

DEVIATION = 0.7
LEAST_SPREAD = 0.03  # of the time
MOST_BUSY = 0.97
MOST_SEQUENCES = 4096.0


@dataclass(frozen=True, slots=True)
class Prefill:
    """What decode has beside it: prefill works in the part `busy` of the time, on prompts that take a residual time.

    `residual_s`: what is left of the service that one finds under way, ``E[S^2] / 2 E[S]``.
    """

    busy: float
    residual_s: float

    def alike(self, answer_s: float) -> float:
        """How much answers of that length differ in what is beside them: 1, all the time or never; 0, not at all.

        Of a process that is on and off, the variance of the mean over a stretch of time, over that of one moment. Its
        correlation is taken to decay with one time. The work of prompts that come at random, ``E[S^2]`` a prompt, gives
        the variance over long stretches, and so that time: the residual service over the idle part.
        """
        decay_s = self.residual_s / (1.0 - min(self.busy, MOST_BUSY))
        stretch = answer_s / max(decay_s, 1e-6)
        if stretch < 1e-3:
            return 1.0
        return 2.0 / stretch * (1.0 - (1.0 - math.exp(-stretch)) / stretch)


@dataclass(frozen=True, slots=True)
class Tpot:
    """A part of the answers: the time a token is normal around `middle_ms`."""

    weight: float
    middle_ms: float
    spread_ms: float

    def met(self, limit_ms: float) -> float:
        """The share of all answers that are of this part and within the limit."""
        return self.weight * 0.5 * (1.0 + math.erf((limit_ms - self.middle_ms) / (self.spread_ms * math.sqrt(2.0))))


@dataclass(frozen=True, slots=True)
class Decoding:
    """Decode under a split."""

    split: Split
    load: Load
    model: StepModel

    def tpot_ms(self, num_sequences: float, prefill_busy: float) -> float:
        """The mean time a token while so many are here: those beyond the batch's bound wait for a place in turn."""
        batch = min(max(num_sequences, 1.0), self._batch_bound)
        content = StepContent(batch, batch * max(self.load.decode.keys_per_sequence, 1.0), batch)
        step_ms = self.model.ms(self.split.decode_percent, content, prefill_busy)
        return step_ms * max(num_sequences, 1.0) / batch

    def answer_s(self, num_sequences: float, prefill_busy: float) -> float:
        """Of a whole answer."""
        return self.tpot_ms(num_sequences, prefill_busy) / 1e3 * self.load.work_per_request

    def tpots(self, num_sequences: float, prefill: Prefill) -> tuple[Tpot, ...]:
        """Of all answers; the weights add up to 1."""
        if not self.model.lends:
            return (self._around(1.0, num_sequences, 1.0),)
        mean_s = self.answer_s(num_sequences, prefill.busy)
        alike = fmean(prefill.alike(mean_s * length) for length in self.load.answers)
        return (
            self._around(alike * prefill.busy, num_sequences, 1.0),
            self._around(alike * (1.0 - prefill.busy), num_sequences, 0.0),
            self._around(1.0 - alike, num_sequences, prefill.busy),
        )

    def _around(self, weight: float, num_sequences: float, prefill_busy: float) -> Tpot:
        """Sequences in decode vary like arrivals do: the deviation is about the root of their number."""
        deviation = math.sqrt(max(num_sequences, 1.0)) * DEVIATION
        lower = self.tpot_ms(max(num_sequences - deviation, 1.0), prefill_busy)
        upper = self.tpot_ms(num_sequences + deviation, prefill_busy)
        return Tpot(weight, (lower + upper) / 2, max((upper - lower) / 2, LEAST_SPREAD * upper))

    @property
    def _batch_bound(self) -> float:
        """How many run at once, known only while others wait for a place."""
        return max(self.load.decode.num_running, 1.0) if self.load.decode.num_waiting >= 1 else MOST_SEQUENCES
