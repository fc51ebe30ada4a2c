"""What reusing documents gains, from samples: pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.reuse.sights import Case, Sight, SightSample


@dataclass(frozen=True, slots=True)
class Gain:
    """TTFT of the exact prompt over this one's, round by round."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class SightSeries:
    """One case on one deployment, round by round. Of its prompts' tokens the server says where their KV came from."""

    deployment: str
    case: Case
    ttft_ms: tuple[float, ...]
    num_exact: tuple[int, ...]
    num_approximate: tuple[int, ...]
    num_computed: tuple[int, ...]
    gain: Gain


def gains(samples: Mapping[str, Sequence[SightSample]]) -> tuple[SightSeries, ...]:
    """By deployment; each has every case once a round."""
    return tuple(
        _series(name, case, found)
        for name, found in samples.items()
        for case in sorted({sample.case for sample in found}, key=_place)
    )


def _place(case: Case) -> tuple[int, float]:
    return list(Sight).index(case.sight), case.ratio or 0.0


def _series(deployment: str, case: Case, samples: Sequence[SightSample]) -> SightSeries:
    exact = {each.number: each.reply.ttft_ms for each in samples if each.case.sight is Sight.EXACT}
    own = sorted((each for each in samples if each.case == case), key=lambda each: each.number)
    ratios = [exact[each.number] / each.reply.ttft_ms for each in own]
    replies = [each.reply for each in own]
    return SightSeries(
        deployment=deployment,
        case=case,
        ttft_ms=tuple(reply.ttft_ms for reply in replies),
        num_exact=tuple(reply.num_cached_tokens for reply in replies),
        num_approximate=tuple(reply.num_approximate_tokens for reply in replies),
        num_computed=tuple(
            each.num_prompt_tokens - each.reply.num_cached_tokens - each.reply.num_approximate_tokens for each in own
        ),
        gain=Gain(median(ratios), min(ratios), max(ratios)),
    )
