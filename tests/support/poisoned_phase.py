"""A phase that dies of one token: ``python -m tests.support.poisoned_phase PHASE FLAGS...``"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence

import torch

from tandem.model.batch import SequenceRows
from tandem.runner.model_runner import ModelRunner

POISON = 199  # in the vocabulary of the tiny models

Execute = Callable[[ModelRunner, Sequence[SequenceRows]], torch.Tensor]


def dying(execute: Execute) -> Execute:
    """As if a kernel went wrong."""

    def executed(runner: ModelRunner, rows: Sequence[SequenceRows]) -> torch.Tensor:
        if any(POISON in each.token_ids for each in rows):
            os.abort()
        return execute(runner, rows)

    return executed


if __name__ == "__main__":
    setattr(ModelRunner, "execute", dying(ModelRunner.execute))  # noqa: B010 - a program of its own
    sys.exit(importlib.import_module(f"services.{sys.argv.pop(1)}.main").main())
