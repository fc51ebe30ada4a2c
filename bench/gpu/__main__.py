"""``python -m bench.gpu --out DIR``: what a GPU is asked, in one run of a few minutes (docs/gpu-bench.md)."""

import argparse
import sys
import time
from pathlib import Path

from bench.gpu.display import result_lines, summary_lines
from bench.gpu.record import Report, SectionResult
from bench.gpu.runner import Run, run_sections
from bench.gpu.sections import SECTIONS
from tandem.clock import MonotonicClock


def main(arguments: list[str]) -> int:
    """The exit status: 0 whatever the sections came to, since each says so for itself."""
    given = _parsed(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    names = given.only.split(",") if given.only else [section.name for section in SECTIONS]
    run = Run(given.out, given.minutes * 60, MonotonicClock(), given.dry)
    chosen = [section for section in SECTIONS if section.name in names]
    report = run_sections(chosen, run, Report(time.time(), given.dry), _tell)
    _write(*summary_lines(report))
    return 0


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="gets results.json and sections.log")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all sections")
    parser.add_argument("--only", default="", help="sections, comma-separated: " + ", ".join(s.name for s in SECTIONS))
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the processor")
    return parser.parse_args(arguments)


def _tell(result: SectionResult) -> None:
    _write(*result_lines(result))


def _write(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
