"""What `tandem bench approx` writes."""

from dataclasses import dataclass
from typing import Literal

from bench.approx.settings import Settings
from bench.approx.summary import SetSummary
from bench.results import Provenance


@dataclass(frozen=True, slots=True)
class ApproxResult:
    """The file."""

    provenance: Provenance
    model: str
    kernels: str
    settings: Settings
    sets: tuple[SetSummary, ...]
    schema: Literal["tandem.bench.approx/1"] = "tandem.bench.approx/1"
