"""Prefills one item by its cases, one after another in the same blocks."""

from dataclasses import dataclass, replace

import torch

from bench.approx.answer import Prefilled
from bench.approx.cases import SCORES, Case, Method, plan_of, unscored
from bench.approx.model import ApproxModel
from bench.approx.prepared import Prepared, full_prefill
from bench.approx.timing import Stopwatch, Timed
from tandem.errors import ConfigError
from tandem.reuse.plan import ReusePlan, ReusePolicy, Score, Scores, choose, plan_reuse
from tandem.runner.selective import chosen_rows

# Whatever share is computed: every ratio is to be seen.
POLICY = ReusePolicy(min_reused_tokens=1, max_computed_share=1.0)


@dataclass(frozen=True, slots=True)
class CasePrefill:
    """`ttft_ms` is that of copying, scoring and computing."""

    prompt: Prefilled
    computed: tuple[int, ...]
    ttft_ms: float


class Prefills:
    """Scores are taken once, for they depend on no ratio; their time counts in every case that uses them."""

    def __init__(self, model: ApproxModel, prepared: Prepared, stopwatch: Stopwatch) -> None:
        self._model, self._prepared, self._stopwatch = model, prepared, stopwatch
        self._scores: dict[Score, Timed[Scores]] = {}
        self._oracle: Scores | None = None

    def plan(self, ratio: float) -> ReusePlan:
        """DHD's. ConfigError: the item has no documents."""
        prepared = self._prepared
        policy = replace(POLICY, ratio=ratio)
        plan = plan_reuse(len(prepared.item.token_ids), 0, prepared.placements, policy)
        if plan is None:
            raise ConfigError("items", f"{prepared.item.name}: its documents are too short to be reused")
        return plan

    def run(self, case: Case) -> CasePrefill:
        """One case."""
        if case.method is Method.FLOOR:
            prepared, num_tokens = self._prepared, len(self._prepared.item.token_ids)
            full = self._stopwatch.time(
                lambda: full_prefill(self._model, prepared.item, prepared.own_blocks, num_tokens)
            )
            return CasePrefill(full.value, tuple(range(num_tokens)), full.ms)
        plan = self.plan(case.ratio)
        return self.selective(plan_of(case, plan), case)

    def selective(self, plan: ReusePlan, case: Case) -> CasePrefill:
        """`plan` with the scores of the case's method."""
        placed = self._stopwatch.time(self._place)
        scores = self._scores_of(case, plan)
        chosen = choose(plan, scores.value)
        item, blocks = self._prepared.item, self._prepared.own_blocks
        logits = self._stopwatch.time(lambda: self._model.compute(item.token_ids, chosen, blocks))
        prompt = Prefilled(plan.num_tokens, blocks, logits.value)
        return CasePrefill(prompt, chosen, placed.ms + scores.ms + logits.ms)

    def _place(self) -> None:
        for entry in self._prepared.entries.value:
            self._model.place(entry.placement, entry.blocks, self._prepared.own_blocks)

    def _scores_of(self, case: Case, plan: ReusePlan) -> Timed[Scores]:
        if case.method is Method.ORACLE:
            return Timed(self._oracle_scores(plan), 0.0)
        if case.method not in SCORES or plan.num_chosen == 0:
            return Timed(unscored(case, plan, self._prepared.item), 0.0)
        score = SCORES[case.method]
        if score not in self._scores:
            self._scores[score] = self._stopwatch.time(lambda: self._probed(plan, score))
        return self._scores[score]

    def _probed(self, plan: ReusePlan, score: Score) -> Scores:
        item, blocks = self._prepared.item, self._prepared.own_blocks
        return self._model.probe.scores(item.token_ids, blocks, plan, score)

    def _oracle_scores(self, plan: ReusePlan) -> Scores:
        """What full recompute's question and answer look at, times how wrong the values of all layers are.

        Nobody who serves can know that.
        """
        if self._oracle is None:
            prepared, full = self._prepared, self._prepared.full.value
            token_ids = [*prepared.item.token_ids, *prepared.continuation.value]
            asking = range(plan.suffix.start, len(token_ids))
            mass = self._model.probe.attention(chosen_rows(token_ids, asking, full.blocks), len(asking))
            wrong = self._model.values(full.blocks) - self._model.values(prepared.own_blocks)
            distance = torch.linalg.vector_norm(wrong, dim=2).sum(0)
            self._oracle = (mass * distance[: len(mass)]).numpy()
        return self._oracle[: plan.num_tokens]
