"""A sequence's approximate KV while its answer grows: when it asks what is looked at, and what is computed anew.

The rows are of its own blocks behind all that was published, which no other sequence has.
"""

from collections.abc import Sequence

from tandem.model.batch import SequenceRows
from tandem.reuse.plan import Scores
from tandem.reuse.refresh import RefreshPolicy, RefreshState, refresh
from tandem.runner.selective import chosen_rows, last_rows
from tandem.types import SequenceSpec


class Refreshing:
    """Touched on the loop only, between two steps. One that comes from prefill counts from there."""

    def __init__(self, spec: SequenceSpec, policy: RefreshPolicy) -> None:
        """`spec` ends with the token that prefill drew."""
        self._policy = policy
        self._num_prompt_tokens = spec.num_prompt_tokens
        self._state = RefreshState.of(spec.approximate, done_at=spec.num_output_tokens - 1)
        self._chosen: tuple[int, ...] = ()
        self._num_untold = 0

    def num_overdue(self, num_output_tokens: int) -> int | None:
        """How many tokens ago it was time to ask; None: it is not."""
        if self._chosen or not self._state.is_due(num_output_tokens, self._policy):
            return None
        return num_output_tokens - self._state.done_at - self._policy.every_tokens

    def asking(self, token_ids: Sequence[int], block_ids: Sequence[int], max_rows: int) -> SequenceRows:
        """The answer's last tokens; `max_rows` is at least one."""
        return last_rows(token_ids, min(self._policy.every_tokens, max_rows), block_ids)

    def choose(self, scores: Scores, num_tokens: int) -> None:
        """By what was looked at when the sequence had so many tokens."""
        chosen = refresh(self._state, scores, num_tokens - self._num_prompt_tokens, self._policy)
        self._chosen, self._state = chosen.positions, chosen.state

    @property
    def has_chosen(self) -> bool:
        """Whether there are rows to compute."""
        return bool(self._chosen)

    def take_rows(self, token_ids: Sequence[int], block_ids: Sequence[int], max_rows: int) -> SequenceRows:
        """The next of the chosen, for the step that is being prepared."""
        positions, self._chosen = self._chosen[:max_rows], self._chosen[max_rows:]
        self._num_untold += len(positions)
        return chosen_rows(token_ids, positions, block_ids)

    def take_num_refreshed(self) -> int:
        """Rows that were computed since the last call; between two steps."""
        num_refreshed, self._num_untold = self._num_untold, 0
        return num_refreshed
