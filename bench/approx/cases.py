"""The ways to choose what is computed, all with as many tokens as DHD at the same ratio."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from bench.approx.item import Item
from tandem.reuse.plan import ReusePlan, Score, Scores

ALL = 1.0


class Method(StrEnum):
    """The last three compute each segment's first tokens, and then by score; the others spend all by theirs."""

    FLOOR = "other chunks"
    POSITION = "position-only"
    HEADS = "head-only"
    RANDOM = "random"
    DEVIATION = "deviation-only"
    DHD = "dhd"
    WEIGHTED = "dhd, weighted"  # by deviation
    ORACLE = "oracle"


SCORES: Mapping[Method, Score] = {
    Method.DEVIATION: Score.DEVIATION,
    Method.DHD: Score.ATTENTION,
    Method.WEIGHTED: Score.WEIGHTED,
}
WITH_HEADS = (Method.DHD, Method.WEIGHTED, Method.ORACLE)
AT_EACH_RATIO = (
    Method.HEADS,
    Method.RANDOM,
    Method.DEVIATION,
    Method.DHD,
    Method.WEIGHTED,
    Method.ORACLE,
)


@dataclass(frozen=True, slots=True)
class Case:
    """One way to prefill a prompt."""

    method: Method
    ratio: float


def cases_of(ratios: tuple[float, ...]) -> tuple[Case, ...]:
    """With ratio 0 nothing is chosen, with 1 everything: one case each, and without even the heads position-only."""
    between = [ratio for ratio in ratios if 0 < ratio < ALL]
    return (
        Case(Method.FLOOR, ALL),
        Case(Method.POSITION, 0.0),
        *([Case(Method.DHD, 0.0)] if 0.0 in ratios else []),
        *(Case(method, ratio) for ratio in between for method in AT_EACH_RATIO),
        *([Case(Method.DHD, ALL)] if ALL in ratios else []),
    )


def plan_of(case: Case, plan: ReusePlan) -> ReusePlan:
    """`plan` is DHD's at the case's ratio."""
    if case.method in WITH_HEADS:
        return plan
    budget = 0 if case.method is Method.POSITION else len(plan.heads) + plan.num_chosen
    return replace(plan, heads=(), num_chosen=budget)


def unscored(case: Case, plan: ReusePlan, item: Item) -> Scores:
    """Scores that look at nothing: the first tokens of each segment, or drawn ones; `item` is the seed."""
    if case.method is Method.RANDOM:
        return np.random.default_rng(zlib.crc32(item.name.encode())).random(plan.num_tokens, dtype=np.float32)
    scores = np.zeros(plan.num_tokens, dtype=np.float32)
    for placement in plan.placements:
        scores[placement.start : placement.start + placement.num_tokens] = -np.arange(placement.num_tokens)
    return scores
