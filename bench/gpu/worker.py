"""One section, in its own process: ``python -m bench.gpu.worker MODULE:FUNCTION FILE UNTIL_S PACK [--dry]``."""

import sys
from importlib import import_module
from pathlib import Path

import torch

from bench.gpu.bench import Bench, SkippedError
from tandem.clock import MonotonicClock

DRY = "--dry"
SKIPPED = 3  # exit status


def main(arguments: list[str]) -> int:
    """The exit status. What a section raises is its failure; the last line of the output says why."""
    run, path, until_s, pack = arguments[:4]
    module, _, function = run.partition(":")
    bench = Bench(Path(path), MonotonicClock(), float(until_s), Path(pack), is_dry=DRY in arguments)
    if bench.is_dry:
        torch.set_num_threads(1)  # tiny shapes; more threads would wait for each other
    try:
        getattr(import_module(f"bench.gpu.parts.{module}"), function)(bench)
    except SkippedError as reason:
        sys.stdout.write(f"{reason}\n")
        return SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
