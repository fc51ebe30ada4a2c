"""Published request traces, read from files that the user has: their text is not part of them, only its shape."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from bench.workloads.lengths import RequestLength
from tandem.errors import ConfigError

AZURE_HINT = "the CSV of the Azure LLM inference trace 2023 (TIMESTAMP,ContextTokens,GeneratedTokens)"
MOONCAKE_HINT = "the JSONL of a Mooncake trace (timestamp, input_length, output_length, hash_ids)"
MOONCAKE_BLOCK_TOKENS = 512
_MICROSECOND_DIGITS = 26  # datetime reads no more of "2023-11-16 18:15:46.6805900"


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace. `block_ids` names its prompt's blocks, where the trace has them."""

    at_s: float
    length: RequestLength
    block_ids: tuple[int, ...] = ()


def read_azure(path: Path | None, first: int, count: int) -> tuple[TraceRow, ...]:
    """`count` requests from number `first` on. ConfigError: no path, no file, not this format, or too short."""
    with _opened(path, AZURE_HINT) as lines:
        return _taken(_azure_rows(lines), first, count, f"{path} is not {AZURE_HINT}")


def read_mooncake(path: Path | None, first: int, count: int) -> tuple[TraceRow, ...]:
    """As `read_azure`."""
    with _opened(path, MOONCAKE_HINT) as lines:
        return _taken(_mooncake_rows(lines), first, count, f"{path} is not {MOONCAKE_HINT}")


def _opened(path: Path | None, hint: str) -> Any:
    if path is None:
        raise ConfigError("data", f"pass --data PATH, {hint}")
    try:
        return path.open(encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError("data", f"{path}: {error.strerror}; pass --data PATH, {hint}") from error


def _azure_rows(lines: Iterable[str]) -> Iterable[TraceRow]:
    start: datetime | None = None
    for row in csv.DictReader(lines):
        at = datetime.fromisoformat(row["TIMESTAMP"][:_MICROSECOND_DIGITS])
        start = start or at
        length = RequestLength(int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        yield TraceRow((at - start).total_seconds(), length)


def _mooncake_rows(lines: Iterable[str]) -> Iterable[TraceRow]:
    for line in lines:
        row = json.loads(line)
        length = RequestLength(int(row["input_length"]), int(row["output_length"]))
        yield TraceRow(float(row["timestamp"]) / 1e3, length, tuple(int(block) for block in row["hash_ids"]))


def _taken(rows: Iterable[TraceRow], first: int, count: int, otherwise: str) -> tuple[TraceRow, ...]:
    try:
        taken = tuple(islice(rows, first, first + count))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("data", f"{otherwise}: {error!r}") from error
    if len(taken) < count:
        raise ConfigError("data", f"the trace has {len(taken)} requests from number {first} on, {count} are asked for")
    return taken
