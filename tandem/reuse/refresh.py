"""The decode stage of DHD: while an answer grows, the reused tokens that it looks at most are computed anew."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tandem.reuse.plan import Scores
from tandem.types import Span


@dataclass(frozen=True, slots=True)
class RefreshPolicy:
    """After every `every_tokens` of the answer, which are asked what they look at, `num_tokens` of what was reused."""

    every_tokens: int = 32
    num_tokens: int = 16


@dataclass(frozen=True, slots=True)
class RefreshState:
    """Of a sequence: reused positions that were not computed yet, rising; the answer's length at the last time."""

    stale: tuple[int, ...]
    done_at: int = 0

    def is_due(self, num_output_tokens: int, policy: RefreshPolicy) -> bool:
        """Whether it is time, and there is something left."""
        return bool(self.stale) and num_output_tokens - self.done_at >= policy.every_tokens

    @classmethod
    def of(cls, spans: Iterable[Span], done_at: int) -> "RefreshState":
        """`spans` of the prompt, in order."""
        return cls(tuple(position for span in spans for position in range(span.start, span.end)), done_at)


@dataclass(frozen=True, slots=True)
class Refresh:
    """`positions`, rising, are computed as rows of the next step; `state` is what holds after it."""

    positions: tuple[int, ...]
    state: RefreshState


def refresh(state: RefreshState, scores: Scores, num_output_tokens: int, policy: RefreshPolicy) -> Refresh:
    """The stale tokens with the highest scores; `scores` are of what the answer's last tokens look at."""
    stale = np.asarray(state.stale, dtype=np.int64)
    best_first = stale[np.argsort(-scores[stale], kind="stable")]
    chosen = set(best_first[: policy.num_tokens].tolist())
    left = tuple(p for p in state.stale if p not in chosen)
    return Refresh(tuple(sorted(chosen)), RefreshState(left, num_output_tokens))


def spans_of(positions: Iterable[int]) -> tuple[Span, ...]:
    """Rising positions as `RefreshState.of` takes them."""
    spans: list[Span] = []
    for position in positions:
        if spans and spans[-1].end == position:
            spans[-1] = Span(spans[-1].start, position + 1)
        else:
            spans.append(Span(position, position + 1))
    return tuple(spans)
