"""What is known of a partition backend before anything is measured: how steps follow a share, and who gets an idle one.

The default is that of a backend of which nothing is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tandem.partition.step_times import StepLaw, StepLaws


@dataclass(frozen=True, slots=True)
class BackendTraits:
    """`lends`: a phase computes on the whole device while the other has nothing to do.

    `respawns`: another share takes another process, and prefill anew of what is under way.
    """

    laws: StepLaws
    lends: bool = False
    respawns: bool = False


# SmolLM2-135M in bfloat16 on two cores of a Zen 5 server (docs/benchmarks.md: steps with one and with two threads).
CPU_LAWS = StepLaws(
    prefill=StepLaw(base_ms=6.0, row_ms=0.28, key_ms=0.0, pair_ms=1.1e-4, parallel=1.0),
    decode=StepLaw(base_ms=8.0, row_ms=0.25, key_ms=1.1e-3, pair_ms=0.0, parallel=0.75),
)
# An 8B model on an H200: plausible, measured by nobody here. Decode is bound by bandwidth, which few SMs draw.
GPU_LAWS = StepLaws(
    prefill=StepLaw(base_ms=2.0, row_ms=0.03, key_ms=0.0, pair_ms=1e-6, parallel=1.0),
    decode=StepLaw(base_ms=5.0, row_ms=0.02, key_ms=3e-5, pair_ms=0.0, parallel=0.1),
)
TIME_SLICED_LAWS = replace(GPU_LAWS, decode=replace(GPU_LAWS.decode, parallel=1.0))  # a share of the time
DEFAULT_TRAITS = BackendTraits(CPU_LAWS)
TRAITS: Mapping[str, BackendTraits] = {
    "cpu-affinity": BackendTraits(CPU_LAWS),
    "cpu-cadence": BackendTraits(CPU_LAWS, lends=True),
    "mps-green": BackendTraits(GPU_LAWS),
    "mps-percentage": BackendTraits(GPU_LAWS, respawns=True),
    "timeshare": BackendTraits(TIME_SLICED_LAWS, lends=True),
}


def traits_of(backend: str) -> BackendTraits:
    """By the backend's name."""
    return TRAITS.get(backend, DEFAULT_TRAITS)
