"""Reads measured step times: of a file of `tandem bench micro` the part that says how long steps take."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from tandem.errors import ConfigError
from tandem.types import Phase

SCHEMA = "tandem.bench.micro/1"
_Count = Annotated[int, Field(ge=1)]
_Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """A step of equal sequences, each with so many new rows and so many keys, the new ones included."""

    phase: Phase
    num_threads: int
    num_sequences: int
    num_new_tokens: int
    num_context_tokens: int
    ms: float


@dataclass(frozen=True, slots=True)
class _Shape:
    phase: Phase
    num_threads: _Count
    num_sequences: _Count
    num_new_tokens: _Count
    num_context_tokens: _Count


@dataclass(frozen=True, slots=True)
class _Step:
    shape: _Shape
    median_ms: _Milliseconds


_STEPS = TypeAdapter(list[_Step])


def read_step_times(path: Path, key: str) -> tuple[MeasuredStep, ...]:
    """ConfigError, which names `key`: not to be read, no such file, or steps that nobody can have measured."""
    remedy = f"write one with: tandem bench micro --out {path.name}"
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(key, f"{path}: {error.strerror}; {remedy}") from error
    except ValueError as error:
        raise ConfigError(key, f"{path} is no JSON; {remedy}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ConfigError(key, f"{path} is no {SCHEMA}; {remedy}")
    try:
        steps = _STEPS.validate_python(found.get("steps"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("steps", *first["loc"])))
        raise ConfigError(key, f"{path}: {place}: {first['msg']}; {remedy}") from error
    return tuple(_measured(step) for step in steps)


def _measured(step: _Step) -> MeasuredStep:
    shape = step.shape
    return MeasuredStep(
        phase=shape.phase,
        num_threads=shape.num_threads,
        num_sequences=shape.num_sequences,
        num_new_tokens=shape.num_new_tokens,
        num_context_tokens=shape.num_context_tokens,
        ms=step.median_ms,
    )
