"""What a run writes: one JSON file, whole after every section."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

Value: TypeAlias = "bool | int | float | str | Sequence[Value] | Mapping[str, Value]"

SCHEMA = "tandem.bench.gpu/2"
LEFT_OUT = "left_out"  # among a section's values: what it did not come to, and why
NO_TIME = "no time was left"


class SectionStatus(StrEnum):
    """How a section ended. In each case what it had found by then is kept."""

    PASSED = "passed"
    CUT = "cut"  # passed as far as it came; it says what it left out
    FAILED = "failed"
    TIMED_OUT = "timed out"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class SectionResult:
    """`reason` says why it did not pass."""

    name: str
    question: str
    status: SectionStatus
    seconds: float
    limit_s: float
    reason: str = ""
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """`is_dry`: on a processor with tiny shapes; its figures say nothing."""

    unix_s: float
    is_dry: bool
    sections: tuple[SectionResult, ...] = ()
    schema: str = SCHEMA


def write_report(path: Path, report: Report) -> None:
    """Whole or not at all: whoever is killed leaves the sections before."""
    write_json(path, asdict(report))


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Likewise."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(values, indent=2))
    partial.replace(path)


def read_values(path: Path) -> dict[str, Value]:
    """What a section has written so far."""
    if not path.exists():
        return {}
    values: dict[str, Value] = json.loads(path.read_text())
    return values
