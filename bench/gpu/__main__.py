"""``python -m bench.gpu --out DIR``: what a GPU is asked, in one run of a few minutes (docs/gpu-bench.md)."""

import argparse
import sys
import time
from pathlib import Path

from bench.gpu.display import result_lines, summary_lines
from bench.gpu.record import Report, SectionResult
from bench.gpu.runner import Run, run_stages
from bench.gpu.sections import NAMES, stages_of
from tandem.clock import MonotonicClock

MINUTES = 8.9
PACK = Path(".whl")


def main(arguments: list[str]) -> int:
    """The exit status: 0 whatever the sections came to, since each says so for itself."""
    parser = _parser()
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        stages = stages_of(given.only.split(",") if given.only else NAMES)
    except ValueError as error:
        parser.error(str(error))
    run = Run(given.out, given.minutes * 60, MonotonicClock(), given.dry, given.pack)
    report = run_stages(stages, run, Report(time.time(), given.dry), _tell)
    _write(*summary_lines(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="gets results.json, sections.log and findings")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for everything, divided among the sections")
    parser.add_argument("--only", default="", help="these alone, in all of the time: " + ",".join(NAMES))
    parser.add_argument("--pack", type=Path, default=PACK, help="the folder that pack.sh made")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the processor")
    return parser


def _tell(result: SectionResult) -> None:
    _write(*result_lines(result))


def _write(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
