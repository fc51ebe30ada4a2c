"""How far a model's next-token distributions are from the reference's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

P95 = 0.95


@dataclass(frozen=True, slots=True)
class Divergence:
    """Over all positions of all windows. KL (Kullback and Leibler 1951) in nats, of the variant from the reference."""

    kl_mean: float
    kl_p95: float
    kl_max: float
    top1_agreement: float
    perplexity: float  # of the windows' own next tokens


@dataclass(frozen=True, slots=True)
class WindowScore:
    """One window's positions, the last one left out: nothing follows it."""

    kl: torch.Tensor  # [num_positions]
    agrees: torch.Tensor  # [num_positions] bool
    loss: torch.Tensor  # [num_positions]


def score_window(reference: torch.Tensor, logits: torch.Tensor, token_ids: Sequence[int]) -> WindowScore:
    """`reference`, `logits`: ``[num_tokens, vocab_size]`` of the same window."""
    expected, found = reference[:-1].log_softmax(-1), logits[:-1].log_softmax(-1)
    following = torch.tensor(token_ids[1:])
    return WindowScore(
        kl=kl_divergence(expected, found),
        agrees=expected.argmax(-1) == found.argmax(-1),
        loss=-found.gather(1, following[:, None]).flatten(),
    )


def kl_divergence(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Of log probabilities ``[num_positions, vocab_size]``: ``[num_positions]``."""
    return (expected.exp() * (expected - found)).sum(-1).clamp(min=0.0)


def summarise(scores: Sequence[WindowScore]) -> Divergence:
    """All windows' positions count alike."""
    kl = torch.cat([score.kl for score in scores])
    return Divergence(
        kl_mean=float(kl.mean()),
        kl_p95=float(kl.quantile(P95)),
        kl_max=float(kl.max()),
        top1_agreement=float(torch.cat([score.agrees for score in scores]).float().mean()),
        perplexity=float(torch.cat([score.loss for score in scores]).mean().exp()),
    )
