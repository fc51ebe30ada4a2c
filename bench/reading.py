"""Reads what benchmarks wrote."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from bench.approx.results import ApproxResult
from bench.endurance.results import EnduranceResult
from bench.engines.results import EnginesResult
from bench.micro.table import MicroResult
from bench.results import CompareResult, GoodputResult, RunResult
from bench.reuse.results import HitsResult, ReuseResult, SegmentsResult
from tandem.errors import ConfigError

AnyResult = (
    RunResult
    | CompareResult
    | GoodputResult
    | EnduranceResult
    | EnginesResult
    | MicroResult
    | ReuseResult
    | SegmentsResult
    | HitsResult
    | ApproxResult
)
_RESULTS: TypeAdapter[AnyResult] = TypeAdapter(AnyResult)


def read_result(path: Path) -> AnyResult:
    """A file of any command. ConfigError: not there, or not one of them, or of another version."""
    try:
        return _RESULTS.validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError("file", f"{path}: {error.strerror}") from error
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise ConfigError("file", f"{path} is no result of `tandem bench` in this version: {problem}") from error
