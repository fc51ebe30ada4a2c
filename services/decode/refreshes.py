"""The decode stage of DHD: of running sequences' approximate KV, what their answers look at most is computed anew.

All of it is beside the step: the running rows are one pass with it as without it, so that no sequence's token depends
on another's refresh. One sequence asks at a time, the one that has waited longest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tandem.config.settings import DecodingConfig
from tandem.phase.refreshing import Refreshing
from tandem.phase.sequence import SequenceState, WorkingSequence
from tandem.phase.stepper import Beside, StepPart, StepResult
from tandem.reuse.refresh import RefreshPolicy
from tandem.runner.sampler import SampledToken
from tandem.types import DecodeResult

UNBOUNDED = 1 << 30


def policy_of(config: DecodingConfig) -> RefreshPolicy | None:
    """None: decode takes KV as prefill left it."""
    return RefreshPolicy(config.refresh_every, config.refresh_tokens) if config.refresh_every else None


@dataclass(frozen=True, slots=True)
class _Stale:
    """A sequence of the batch that has approximate KV."""

    sequence: WorkingSequence[DecodeResult]
    refreshing: Refreshing

    @property
    def num_overdue(self) -> int | None:
        """See `Refreshing`."""
        return self.refreshing.num_overdue(len(self.sequence.output_token_ids))


class Refreshes:
    """Of one engine. Touched on the loop only."""

    def __init__(self, policy: RefreshPolicy | None, step_tokens: int = UNBOUNDED) -> None:
        """It takes what the running rows leave of `step_tokens`. Without a policy nothing is refreshed."""
        self._policy = policy
        self._step_tokens = step_tokens
        self._asking: _Stale | None = None  # in the step under way

    def join(self, sequence: WorkingSequence[DecodeResult]) -> None:
        """It steps from now on."""
        if self._policy is not None and sequence.spec.approximate:
            sequence.refreshing = Refreshing(sequence.spec, self._policy)

    def prepare(self, batch: Sequence[WorkingSequence[DecodeResult]], num_rows: int) -> list[StepPart]:
        """What the step of `batch`, which has `num_rows` of its own, is to have beside them."""
        stale = [_Stale(each, each.refreshing) for each in batch if each.refreshing is not None]
        room = self._step_tokens - num_rows
        parts = list(_chosen(stale, room))
        room -= sum(len(part.rows.token_ids) for part in parts)
        self._asking = _longest_due(stale) if room > 0 else None
        if self._asking is not None:
            sequence = self._asking.sequence
            rows = self._asking.refreshing.asking(sequence.token_ids, sequence.block_ids, room)
            parts.append(StepPart(rows, None, beside=Beside.LOOK))
        return parts

    def finish(self, results: Sequence[StepResult]) -> None:
        """Of the parts that were prepared, before the step's tokens are taken in."""
        asking, self._asking = self._asking, None
        if asking is None or asking.sequence.state is not SequenceState.RUNNING:
            return
        scores = results[-1]
        if scores is not None and not isinstance(scores, SampledToken):
            asking.refreshing.choose(scores, len(asking.sequence.token_ids))


def _chosen(stale: Sequence[_Stale], room: int) -> Iterator[StepPart]:
    """Rows that are to be computed, as far as there is room."""
    for each in stale:
        if room > 0 and each.refreshing.has_chosen:
            rows = each.refreshing.take_rows(each.sequence.token_ids, each.sequence.block_ids, room)
            room -= len(rows.token_ids)
            yield StepPart(rows, None, beside=Beside.REFRESH)


def _longest_due(stale: Sequence[_Stale]) -> _Stale | None:
    due = [(num_overdue, each) for each in stale if (num_overdue := each.num_overdue) is not None]
    return max(due, key=lambda pair: pair[0])[1] if due else None
