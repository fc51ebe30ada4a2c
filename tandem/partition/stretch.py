"""How far back the past is like the present: a longer stretch says more of a steady load, and lies about a changed one.

The newest window is held against stretches that reach further back. What differs by more than chance lets expect ends
the stretch: the tokens of prompts that came, as a compound Poisson count, and lengths, by their mean logarithms.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, pstdev

from tandem.partition.load import Load, load_of, prefill_load
from tandem.partition.observations import MEMORY_WINDOWS, Observations
from tandem.partition.samples import RequestSample
from tandem.types import Phase

BY_CHANCE = 3.0  # standard deviations
FEWEST = 4  # requests that lengths are judged by
FEWEST_WINDOWS = 3  # that a spread is known by
LEAST_SPREAD, MOST_SPREAD = 0.2, 1.0


def expected_loads(observations: Observations) -> tuple[Load, Load] | None:
    """What comes, and as much more as comes now and then. None while nothing was served lately.

    How much more: what windows differed by while the load was steady; when it has just changed, what chance does.
    """
    memory_s = observations.window_s * MEMORY_WINDOWS
    stretch_s = steady_stretch_s(observations)
    load = load_of(observations, stretch_s) or load_of(observations, memory_s)
    if load is None:
        return None
    spread = _chance_spread(load, observations.window_s)
    if stretch_s >= memory_s:
        spread = max(spread, _seen_spread(observations))
    return load, load.scaled(1.0 + min(max(spread, LEAST_SPREAD), MOST_SPREAD))


def steady_stretch_s(observations: Observations) -> float:
    """The longest of 1, 2, 4, ... windows that the newest one does not contradict."""
    stretch_s = observations.window_s
    while stretch_s < observations.window_s * MEMORY_WINDOWS and _agrees(observations, 2 * stretch_s):
        stretch_s *= 2
    return stretch_s


def _agrees(observations: Observations, stretch_s: float) -> bool:
    served = observations.served_since(observations.now_s - stretch_s)
    newest = observations.served_since(observations.now_s - observations.window_s)
    return (
        _same_mean(newest, served, lambda sample: math.log(sample.num_prompt_tokens))
        and _same_mean(newest, served, lambda sample: math.log(sample.num_output_tokens))
        and _same_rate(observations, served, stretch_s)
    )


def _same_mean(
    newest: Sequence[RequestSample], served: Sequence[RequestSample], of: Callable[[RequestSample], float]
) -> bool:
    if len(newest) < FEWEST:
        return True
    all_values = [of(sample) for sample in served]
    allowed = BY_CHANCE * pstdev(all_values) / math.sqrt(len(newest))
    return abs(fmean(of(sample) for sample in newest) - fmean(all_values)) <= allowed + 1e-9


def _same_rate(observations: Observations, served: Sequence[RequestSample], stretch_s: float) -> bool:
    if not served:
        return True
    samples, window_s = observations.samples(Phase.PREFILL), observations.window_s
    arrived = prefill_load(samples, observations.now_s, window_s).arriving_tokens_per_s * window_s
    expected = prefill_load(samples, observations.now_s, stretch_s).arriving_tokens_per_s * window_s
    mean = fmean(sample.num_prompt_tokens for sample in served)
    square = fmean(sample.num_prompt_tokens**2 for sample in served)
    return abs(arrived - expected) <= BY_CHANCE * math.sqrt(max(expected, mean) / mean * square)


def _chance_spread(load: Load, window_s: float) -> float:
    """Of a compound Poisson count of tokens: its standard deviation in a window over its mean."""
    lengths = [shape.num_prompt_tokens for shape in load.shapes]
    num_requests = max(load.requests_per_s * window_s, 1.0)
    return math.sqrt(fmean(length**2 for length in lengths) / num_requests) / fmean(lengths)


def _seen_spread(observations: Observations) -> float:
    """How much windows differed in what came: their standard deviation over their mean."""
    samples, window_s = observations.samples(Phase.PREFILL), observations.window_s
    num_windows = int(min(samples.observed_s, window_s * MEMORY_WINDOWS) / window_s)
    if num_windows < FEWEST_WINDOWS:
        return 0.0
    arrived = [0.0] * num_windows
    for step in samples.since(observations.now_s - num_windows * window_s):
        arrived[min(int((observations.now_s - step.at_s) / window_s), num_windows - 1)] += step.num_tokens
    mean = fmean(arrived)
    return pstdev(arrived) / mean if mean else 0.0
