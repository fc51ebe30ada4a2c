"""What a prompt reuses and what it computes: the prefill stage of DHD, before any score is known.

Exact prefix first; then segments from their canonical entries, turned to where they stand; everything else is computed,
and of the reused tokens the first of each segment (Hu et al. 2024, "EPIC") and those that a score finds most wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]  # [num_tokens] of the prompt; the higher, the more it pays to compute the token


class Score(StrEnum):
    """By what reused tokens are chosen to be computed."""

    ATTENTION = "attention"  # what the question looks at
    DEVIATION = "deviation"  # how wrong the reused values are
    WEIGHTED = "weighted"  # their product


@dataclass(frozen=True, slots=True)
class ReusePolicy:
    """`ratio` of the reused tokens are computed beside the first `head_tokens` of each segment.

    Prompts that reuse less than `min_reused_tokens`, or would compute more than `max_computed_share` of what is not an
    exact prefix, are computed whole: choosing costs something as well.
    """

    ratio: float = 0.15
    head_tokens: int = 16
    min_reused_tokens: int = 256
    max_computed_share: float = 0.5
    score: Score = Score.ATTENTION


@dataclass(frozen=True, slots=True)
class Placement:
    """`num_tokens` of an entry, after its first `skip`, go to the prompt's positions from `start` on."""

    key: bytes
    start: int
    skip: int
    num_tokens: int

    @property
    def positions(self) -> range:
        """In the prompt."""
        return range(self.start, self.start + self.num_tokens)


@dataclass(frozen=True, slots=True)
class ReusePlan:
    """Positions of a prompt by what happens to them. `num_exact` tokens at its start are reused as they are."""

    num_tokens: int
    num_exact: int
    placements: tuple[Placement, ...]
    fresh: tuple[int, ...]  # in nobody's cache, and the last token; rising
    heads: tuple[int, ...]  # first tokens of segments, computed anew; rising
    num_chosen: int  # of the other reused tokens

    @property
    def reused(self) -> tuple[int, ...]:
        """Positions that a score may choose from: reused and not computed in any case; rising."""
        computed = {*self.fresh, *self.heads}
        return tuple(p for placement in self.placements for p in placement.positions if p not in computed)

    @property
    def suffix(self) -> range:
        """What stands behind everything reused: the question. It has at least the last token."""
        last = max((placement.positions[-1] for placement in self.placements), default=self.num_exact - 1)
        return range(min(last + 1, self.num_tokens - 1), self.num_tokens)


@dataclass(frozen=True, slots=True)
class ReuseUsage:
    """A prompt's tokens by where their KV came from; the three are the whole prompt."""

    num_exact: int
    num_approximate: int
    num_computed: int


def place(key: bytes, start: int, num_tokens: int, num_exact: int) -> Placement | None:
    """A segment of `num_tokens` at `start`, as far as it is behind the exact prefix."""
    skip = max(0, num_exact - start)
    return Placement(key, start + skip, skip, num_tokens - skip) if skip < num_tokens else None


def plan_reuse(
    num_tokens: int, num_exact: int, placements: Sequence[Placement], policy: ReusePolicy
) -> ReusePlan | None:
    """`placements` in the order of the prompt, not overlapping, behind the exact prefix. None: compute it whole.

    Position 0 is never taken from an entry: attention rests on it in every layer (Xiao et al. 2023).
    """
    covered = {p for placement in placements for p in placement.positions} - {0, num_tokens - 1}
    fresh = tuple(p for p in range(num_exact, num_tokens) if p not in covered)
    heads = tuple(p for placement in placements for p in placement.positions[: policy.head_tokens] if p in covered)
    num_chosen = min(math.ceil(policy.ratio * len(covered)), len(covered) - len(heads))
    plan = ReusePlan(num_tokens, num_exact, tuple(placements), fresh, heads, num_chosen)
    num_computed = len(fresh) + len(heads) + num_chosen
    if len(covered) < policy.min_reused_tokens or num_computed > policy.max_computed_share * (num_tokens - num_exact):
        return None
    return plan


def choose(plan: ReusePlan, scores: Scores) -> tuple[int, ...]:
    """Positions to compute, rising: all that are forced, and the reused ones with the highest scores."""
    reused = np.asarray(plan.reused, dtype=np.int64)
    best_first = reused[np.argsort(-scores[reused], kind="stable")]
    return tuple(sorted((*plan.fresh, *plan.heads, *best_first[: plan.num_chosen].tolist())))


def usage(plan: ReusePlan, computed: Sequence[int]) -> ReuseUsage:
    """What a client is told; `computed` as of `choose`."""
    num_approximate = plan.num_tokens - plan.num_exact - len(computed)
    return ReuseUsage(plan.num_exact, num_approximate, len(computed))
