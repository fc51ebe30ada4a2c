"""Some requests of the Azure LLM inference trace, for a machine that has not the whole of it.

``python bench/gpu/extract_trace.py TRACE OUT``; needs nothing but Python.
"""

import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

EXTRACT = "azure_extract.csv"
NUM_REQUESTS = 800  # neighbours, so that they come as unevenly as in the trace
COLUMNS = "TIMESTAMP,ContextTokens,GeneratedTokens"


def extract(lines: Sequence[str]) -> list[str]:
    """The header and the first requests. ValueError: another header, or no requests."""
    if not lines or lines[0].strip() != COLUMNS:
        raise ValueError(f"its first line is not {COLUMNS}")
    if len(lines) == 1:
        raise ValueError("it has no requests")
    return list(lines[: 1 + NUM_REQUESTS])


def count_requests(path: Path) -> int:
    """Of an extract."""
    return len(path.read_text(encoding="utf-8").splitlines()) - 1


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    trace, out = map(Path, arguments)
    with trace.open(encoding="utf-8") as file:
        lines = list(islice(file, 1 + NUM_REQUESTS))
    try:
        out.write_text("".join(extract(lines)), encoding="utf-8")
    except ValueError as error:
        sys.stderr.write(f"{trace}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
