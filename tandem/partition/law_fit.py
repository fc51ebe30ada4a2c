"""Laws of step times from measured steps. Pure.

Terms are fitted to the steps on the whole device by least squares of the relative error, none below 0. What a share
does follows from the same steps on a part of it.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from statistics import median

import numpy as np

from tandem.config.step_times import MeasuredStep
from tandem.errors import ConfigError
from tandem.partition.step_times import StepLaw, StepLaws
from tandem.types import Phase

NUM_TERMS = 4  # base, row, key, pair
TERMS = {Phase.PREFILL: (0, 1, 3), Phase.DECODE: (0, 1, 2)}  # that a phase's steps depend on


def fit_laws(steps: Sequence[MeasuredStep], known: StepLaws, key: str) -> StepLaws:
    """`known` says what a share does where one number of threads was measured alone.

    ConfigError, which names `key`: too few different steps of a phase.
    """
    return StepLaws(
        prefill=_law(Phase.PREFILL, steps, known.prefill, key), decode=_law(Phase.DECODE, steps, known.decode, key)
    )


def _law(phase: Phase, steps: Sequence[MeasuredStep], known: StepLaw, key: str) -> StepLaw:
    own = [step for step in steps if step.phase is phase]
    most = max((step.num_threads for step in own), default=0)
    whole = [step for step in own if step.num_threads == most]
    if len({_terms(step) for step in whole}) < len(TERMS[phase]):
        raise ConfigError(key, f"has {len(whole)} steps of {phase} on the whole device; {len(TERMS[phase])} are needed")
    base, row, key_ms, pair = _coefficients(phase, whole)
    law = StepLaw(base, row, key_ms, pair, parallel=0.0)
    parallels = [_parallel(step, law, most) for step in own if step.num_threads < most]
    return replace(law, parallel=median(parallels) if parallels else known.parallel)


def _terms(step: MeasuredStep) -> tuple[float, float, float, float]:
    """What the law multiplies its coefficients by."""
    rows = step.num_sequences * step.num_new_tokens
    keys = step.num_sequences * step.num_context_tokens
    return 1.0, float(rows), float(keys), rows * keys / step.num_sequences


def _coefficients(phase: Phase, steps: Sequence[MeasuredStep]) -> list[float]:
    """The best of all subsets of terms whose coefficients come out positive; a constant always does."""
    terms = np.array([_terms(step) for step in steps]) / np.array([[step.ms] for step in steps])
    best, least = [0.0] * NUM_TERMS, np.inf
    for count in range(1, len(TERMS[phase]) + 1):
        for chosen in combinations(TERMS[phase], count):
            values = np.linalg.lstsq(terms[:, chosen], np.ones(len(steps)), rcond=None)[0]
            error = float(np.sum((terms[:, chosen] @ values - 1.0) ** 2))
            if values.min() >= 0 and error < least:
                least = error
                best = [float(values[chosen.index(term)]) if term in chosen else 0.0 for term in range(NUM_TERMS)]
    return best


def _parallel(step: MeasuredStep, law: StepLaw, most_threads: int) -> float:
    """From one step on a part of the device: the part of it that the missing threads made longer."""
    rows, keys = step.num_sequences * step.num_new_tokens, step.num_sequences * step.num_context_tokens
    slowdown = step.ms / law.ms(100.0, rows, keys, step.num_sequences)
    return min(1.0, max(0.0, (slowdown - 1.0) / (most_threads / step.num_threads - 1.0)))
