"""A phase whose share is fixed when its process starts, on processors: what `mps-percentage` is on a GPU.

``python -m tests.support.fixed_share_phase PHASE FLAGS...`` is a worker, with ``steward`` before them its steward.
"""

import asyncio
import importlib
import os
import sys
from contextlib import AbstractContextManager, nullcontext

from tandem.cli.steward import attend
from tandem.device.partition import Applied, RestartRequired
from tandem.types import Phase, Split

ENV_PERCENT = "FIXED_SHARE_PERCENT"
CONFIGURED = "cpu-affinity"  # under whose name this backend is chosen
PERCENT_AT_FIRST = "50"
SPARE_TIMEOUT_S = 120.0


class FixedShareBackend:
    """Has the share of the environment, and no other."""

    name = "fixed-share"
    splits: tuple[Split, ...] = ()
    pause = None

    def __init__(self) -> None:
        self._percent = int(os.environ.get(ENV_PERCENT, PERCENT_AT_FIRST))

    def apply(self, phase: Phase, split: Split) -> Applied | RestartRequired:
        wanted = split.percent(phase)
        if wanted == self._percent:
            return Applied(f"started with {wanted}")
        return RestartRequired(f"has {self._percent}, not {wanted}", {ENV_PERCENT: str(wanted)})

    def turn(self) -> AbstractContextManager[None]:
        return nullcontext()


def main(argv: list[str]) -> int:
    if argv[0] == "steward":
        return asyncio.run(attend([sys.executable, "-m", __spec__.name, *argv[1:]], os.environ, SPARE_TIMEOUT_S))
    from tandem.device.partition_backends import PARTITION_BACKENDS

    PARTITION_BACKENDS[CONFIGURED] = lambda site: FixedShareBackend()
    phase, *flags = argv
    sys.argv = [phase, *flags, "--partition-backend", CONFIGURED]
    return int(importlib.import_module(f"services.{phase}.main").main())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
