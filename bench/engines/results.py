"""What `tandem bench engines` writes."""

from dataclasses import dataclass
from typing import Literal

from bench.engines.rounds import Speed, SpeedRatio
from bench.results import Provenance


@dataclass(frozen=True, slots=True)
class EnginesResult:
    """The file."""

    provenance: Provenance
    num_threads: int
    speeds: tuple[Speed, ...]
    ratios: tuple[SpeedRatio, ...]
    schema: Literal["tandem.bench.engines/1"] = "tandem.bench.engines/1"
