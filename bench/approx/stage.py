"""The decode stage: refreshing reused tokens while the answer grows, against spending as many in prefill."""

from dataclasses import dataclass, replace
from functools import partial
from statistics import mean

import torch

from bench.approx.answer import Prefilled, difference
from bench.approx.cases import Case, Method
from bench.approx.model import ApproxModel
from bench.approx.prefills import Prefills
from bench.approx.prepared import Prepared
from bench.approx.record import Stage, StageOutcome
from bench.approx.settings import Settings
from bench.approx.timing import Stopwatch
from tandem.reuse.refresh import RefreshState, refresh
from tandem.runner.selective import last_rows


@dataclass(frozen=True, slots=True)
class StageRecord:
    """`refresh_ms`: a refresh's mean."""

    outcomes: tuple[StageOutcome, ...]
    refresh_ms: float


class StageTrial:
    """Teacher-forced continuations of one item in pieces of `every_tokens`."""

    def __init__(self, model: ApproxModel, prepared: Prepared, settings: Settings, stopwatch: Stopwatch) -> None:
        self._model, self._prepared, self._settings, self._stopwatch = model, prepared, settings, stopwatch
        self._refresh_ms: list[float] = []

    def run(self, prefills: Prefills) -> StageRecord:
        """All three ways, over the positions behind the first refresh."""
        policy, case = self._settings.refresh, Case(Method.DHD, self._settings.stage_ratio)
        plan = prefills.plan(case.ratio)
        num_more = min(policy.num_tokens * self._settings.num_refreshes, len(plan.reused) - plan.num_chosen)
        more = replace(plan, num_chosen=plan.num_chosen + num_more)
        expected = self._follow(self._prepared.full.value, None)
        outcomes = []
        for stage, chosen in ((Stage.NOTHING, plan), (Stage.IN_PREFILL, more), (Stage.IN_DECODE, plan)):
            prefill = prefills.selective(chosen, case)
            stale = tuple(sorted(set(chosen.reused) - set(prefill.computed)))
            state = RefreshState(stale) if stage is Stage.IN_DECODE else None
            seen = difference(expected, self._follow(prefill.prompt, state))
            outcomes.append(StageOutcome(stage, seen.kl, seen.agrees))
        return StageRecord(tuple(outcomes), mean(self._refresh_ms) if self._refresh_ms else 0.0)

    def _follow(self, prompt: Prefilled, state: RefreshState | None) -> torch.Tensor:
        """Logits of the continuation behind the first refresh; without a state nothing is refreshed."""
        policy, answer = self._settings.refresh, self._prepared.continuation.value
        pieces = []
        for done in range(0, policy.every_tokens * (self._settings.num_refreshes + 1), policy.every_tokens):
            if state is not None and state.is_due(done, policy):
                timed = self._stopwatch.time(partial(self._refresh, prompt, state, done))
                state = timed.value
                self._refresh_ms.append(timed.ms)
            piece = answer[done : done + policy.every_tokens]
            pieces.append(self._model.extend(piece, prompt.num_tokens + done, prompt.blocks))
        return torch.cat(pieces[1:])

    def _refresh(self, prompt: Prefilled, state: RefreshState, num_output_tokens: int) -> RefreshState:
        """The last piece asks; what it looks at most is computed."""
        policy = self._settings.refresh
        tokens = [*self._prepared.item.token_ids, *self._prepared.continuation.value]
        asking = last_rows(tokens[: prompt.num_tokens + num_output_tokens], policy.every_tokens, prompt.blocks)
        scores = self._model.probe.look(asking).numpy()
        wanted = refresh(state, scores, num_output_tokens, policy)
        self._model.compute(tokens, wanted.positions, prompt.blocks)
        return wanted.state
