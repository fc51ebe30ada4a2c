"""A phase's step: rows in, tokens out; and how that is put together where logits and draws are two calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tandem.model.batch import SequenceRows
from tandem.reuse.plan import Placement, Scores
from tandem.runner.sampler import Draw, SampledToken


@dataclass(frozen=True, slots=True)
class TokenCopy:
    """KV of a block's first `num_tokens` tokens, to the same place in another block."""

    source_block_id: int
    target_block_id: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class EntryCopy:
    """KV of a segment, out of its entry's blocks and into the sequence's own, turned to where the sequence has it."""

    placement: Placement
    entry_block_ids: Sequence[int]
    block_ids: Sequence[int]


class SegmentRunner(Protocol):
    """What `tandem.runner.segment_steps.SegmentSteps` is to a step; in the same thread as a `StepRunner`."""

    def place(self, copies: Sequence[EntryCopy]) -> None:
        """Before the next step, for its rows."""
        ...

    def probe(self, rows: SequenceRows, num_asking: int) -> Scores:
        """Runs `rows` through as much of the model as scores need, storing KV that is computed again afterwards.

        Answers what the last `num_asking` of them look at, summed over them: ``[context_len]``. So the parts of a probe
        that takes several steps add up to the whole.
        """
        ...

    def look(self, rows: SequenceRows) -> Scores:
        """What `rows`, whose KV is in place, look at, the mean over them: ``[context_len]``. Nothing is stored."""
        ...


class StepRunner(Protocol):
    """One step at a time, all from one thread."""

    def copy_tokens(self, copies: Sequence[TokenCopy]) -> None:
        """Before the next step, for its rows."""
        ...

    def execute(self, rows: Sequence[SequenceRows], draws: Sequence[Draw | None]) -> list[SampledToken | None]:
        """Stores the rows' KV; a token for each sequence whose entry in `draws` is not None.

        ValueError as of `prepare_batch`.
        """
        ...


class RowsRunner(Protocol):
    """What `tandem.runner.model_runner.ModelRunner` is to a step."""

    def copy_tokens(self, copies: Sequence[TokenCopy]) -> None:
        """See `StepRunner`."""
        ...

    def execute(self, rows: Sequence[SequenceRows]) -> torch.Tensor:
        """Logits of each sequence's last row, ``[num_seqs, vocab_size]``."""
        ...


class Sampler(Protocol):
    """What `tandem.runner.sampler.sample` is to a step."""

    def __call__(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[SampledToken]:
        """One token a row of `logits` ``[num_rows, vocab_size]``."""
        ...


@dataclass(frozen=True, slots=True)
class LogitsThenDraws:
    """A `StepRunner` of two calls. Logits of a sequence without a draw are not looked at."""

    runner: RowsRunner
    sampler: Sampler

    def copy_tokens(self, copies: Sequence[TokenCopy]) -> None:
        """See `StepRunner`."""
        self.runner.copy_tokens(copies)

    def execute(self, rows: Sequence[SequenceRows], draws: Sequence[Draw | None]) -> list[SampledToken | None]:
        """See `StepRunner`."""
        logits = self.runner.execute(rows)
        drawing = [index for index, draw in enumerate(draws) if draw is not None]
        tokens: list[SampledToken | None] = [None] * len(rows)
        if not drawing:
            return tokens
        chosen = logits if len(drawing) == len(rows) else logits[drawing]
        drawn = self.sampler(chosen, [draw for draw in draws if draw is not None])
        for index, token in zip(drawing, drawn, strict=True):
            tokens[index] = token
        return tokens
