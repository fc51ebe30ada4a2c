"""What a model says after a prompt, and how far that is from what it says after full recompute."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.accuracy.divergence import kl_divergence
from bench.approx.model import ApproxModel


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt whose KV is in `blocks`; `logits`: its last token's, ``[vocab_size]``."""

    num_tokens: int
    blocks: range
    logits: torch.Tensor


@dataclass(frozen=True, slots=True)
class Difference:
    """By position."""

    kl: tuple[float, ...]
    agrees: tuple[bool, ...]


def follow(model: ApproxModel, prompt: Prefilled, continuation: Sequence[int]) -> torch.Tensor:
    """Logits for each token of a given continuation: ``[len(continuation), vocab_size]``."""
    rows = [prompt.logits[None]]
    if len(continuation) > 1:
        rows.append(model.extend(continuation[:-1], prompt.num_tokens, prompt.blocks))
    return torch.cat(rows)


def greedy(model: ApproxModel, prompt: Prefilled, num_tokens: int) -> list[int]:
    """The likeliest tokens, one after another."""
    tokens = [int(prompt.logits.argmax())]
    while len(tokens) < num_tokens:
        logits = model.extend(tokens[-1:], prompt.num_tokens + len(tokens) - 1, prompt.blocks)
        tokens.append(int(logits[0].argmax()))
    return tokens


def difference(reference: torch.Tensor, logits: torch.Tensor) -> Difference:
    """Of ``[num_positions, vocab_size]``."""
    kl = kl_divergence(reference.log_softmax(-1), logits.log_softmax(-1))
    agrees = reference.argmax(-1) == logits.argmax(-1)
    return Difference(tuple(kl.tolist()), tuple(agrees.tolist()))


def pick(model: ApproxModel, prompt: Prefilled, choices: Sequence[Sequence[int]]) -> int:
    """The choice whose tokens are likeliest on average."""
    means = [_mean_logprob(follow(model, prompt, choice), choice) for choice in choices]
    return means.index(max(means))


def _mean_logprob(logits: torch.Tensor, choice: Sequence[int]) -> float:
    logprobs = logits.log_softmax(-1)
    return float(logprobs[torch.arange(len(choice)), torch.tensor(choice)].mean())
