"""`mps-percentage`: MPS bounds a process's SMs from its start on; another share needs another process."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from tandem.device.cuda.gpu import ENV_PERCENTAGE, GpuFacts, running_percentage
from tandem.device.partition import Applied, RestartRequired
from tandem.errors import DeviceError
from tandem.types import Phase, Split

SPLITS = tuple(Split(percent, 100 - percent) for percent in (20, 35, 50, 65, 80))


class PercentageBackend:
    """Compares what this process was started with to what it should have; a cap, not a reservation."""

    def __init__(self, gpu: GpuFacts, environ: Mapping[str, str], *, has_steward: bool = False) -> None:
        """DeviceError without MPS, which alone looks at the percentage.

        With a steward another process takes over while this one serves: then splits are on offer.
        """
        if not gpu.has_mps:
            raise DeviceError("mps-percentage: this process is no client of MPS; see `tandem doctor`")
        self._percent = running_percentage(environ)
        self._has_steward = has_steward

    @property
    def name(self) -> str:
        """As in configuration and logs."""
        return "mps-percentage"

    @property
    def splits(self) -> tuple[Split, ...]:
        """Each needs a new process; without a steward nobody would serve until that one does."""
        return SPLITS if self._has_steward else ()

    @property
    def pause(self) -> None:
        """Both phases run at once."""

    def apply(self, phase: Phase, split: Split) -> Applied | RestartRequired:
        """Never changes anything."""
        wanted = split.percent(phase)
        if self._percent == wanted:
            return Applied(f"{ENV_PERCENTAGE}={wanted}")
        detail = f"started with {self._percent:g} %; a new process needs {ENV_PERCENTAGE}={wanted}"
        return RestartRequired(detail, {ENV_PERCENTAGE: str(wanted)})

    def turn(self) -> AbstractContextManager[None]:
        """Both phases run at once."""
        return nullcontext()
