"""What `tandem bench accuracy` writes and shows."""

from dataclasses import dataclass
from typing import Literal

from rich.table import Table

from bench.accuracy.divergence import Divergence
from bench.results import Provenance


@dataclass(frozen=True, slots=True)
class VariantAccuracy:
    """One way to store and compute, against float32 by torch."""

    dtype: str  # as the fingerprint names it
    kernels: str
    weight_bytes: int
    divergence: Divergence


@dataclass(frozen=True, slots=True)
class AccuracyResult:
    """The file."""

    provenance: Provenance
    model: str
    text: str
    num_windows: int
    window_tokens: int
    variants: tuple[VariantAccuracy, ...]
    schema: Literal["tandem.bench.accuracy/1"] = "tandem.bench.accuracy/1"


def accuracy_table(result: AccuracyResult) -> Table:
    """A row a variant."""
    title = f"{result.model}; {result.num_windows} x {result.window_tokens} tokens, {result.text}"
    table = Table("weights", "kernels", "MB", "KL mean", "p95", "max", "top-1", "perplexity", title=title)
    for variant in result.variants:
        seen = variant.divergence
        table.add_row(
            variant.dtype,
            variant.kernels,
            f"{variant.weight_bytes / 1e6:.0f}",
            *(f"{value:.5f}" for value in (seen.kl_mean, seen.kl_p95, seen.kl_max)),
            f"{seen.top1_agreement:.4f}",
            f"{seen.perplexity:.3f}",
        )
    return table
