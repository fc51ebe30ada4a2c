"""The simulated machine that a validation rests on: as it is measured, and as its file gives it back."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from bench.micro.table import MicroResult, ModelFacts, StepTime
from bench.simulate.pace import CadenceSteps
from bench.simulate.step_times import Contention
from bench.simulate.systems import Delays, EngineLimits, Several, System, cpu_system, measured_table
from bench.validate.results import Calibration, ValidateResult
from tandem.errors import ConfigError

DEFAULT_KV_BYTES = 1 << 30
REMEDY = "give a file that tandem bench validate or tandem bench micro has written"

_Numbers = TypeVar("_Numbers", Contention, Delays)
_FILE: TypeAdapter[MicroResult | ValidateResult] = TypeAdapter(
    Annotated[MicroResult | ValidateResult, Field(discriminator="schema")]
)


def measured_system(
    label: str, model: ModelFacts, steps: tuple[StepTime, ...], cadence: CadenceSteps | None = None
) -> System:
    """The documented CPU with this model's steps and blocks. `cadence` None: the default model's. ConfigError."""
    known = cpu_system()
    num_blocks = DEFAULT_KV_BYTES // (model.block_size * model.kv_token_bytes)
    return replace(
        known,
        table=measured_table(label, steps),
        limits=replace(known.limits, num_blocks=num_blocks),
        cadence=cadence or known.cadence,
    )


def read_system(path: Path) -> System:
    """Step times of micro's file; of validate's, contention and delays too. ConfigError names what is wrong with it."""
    result = _read(path)
    label = f"{result.model.name} on {result.provenance.processor}, measured: {path}"
    if isinstance(result, MicroResult):
        return measured_system(label, result.model, result.steps)
    system = measured_system(label, result.model, result.steps, result.cadence)
    return calibrated_system(system, [load.calibration for load in result.loads if load.calibration is not None])


def calibrated_system(system: System, calibrations: Sequence[Calibration]) -> System:
    """With the mean of what was found around each load: the machine as it was in the middle. ConfigError: none."""
    besides = [each.beside for each in calibrations if each.beside is not None]
    several = [each.several for each in calibrations if each.several is not None]
    if not besides or not several:
        raise ConfigError("table", f"loads[].calibration: of no load there are beside and several; {REMEDY}")
    limits = with_alone(system.limits, _mean([each.alone for each in calibrations]))
    return replace(
        system,
        contention=_mean([each.contention for each in calibrations]),
        limits=replace(limits, beside=_mean(besides), several=_mean_several(several)),
    )


def with_alone(limits: EngineLimits, delays: Delays) -> EngineLimits:
    """`delays` are those while the other phase has nothing to do."""
    return replace(
        limits,
        between_steps_ms=delays.between_steps_ms,
        handover_ms=delays.handover_ms,
        join_ms=delays.join_ms,
    )


def _read(path: Path) -> MicroResult | ValidateResult:
    try:
        return _FILE.validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError("table", f"{path}: {error.strerror}; {REMEDY}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "schema"
        raise ConfigError("table", f"{path}: {where}: {problem['msg']}; {REMEDY}") from error


def _mean(each: Sequence[_Numbers]) -> _Numbers:
    """Field by field."""
    names = [field.name for field in fields(each[0])]
    return replace(each[0], **{name: fmean(getattr(one, name) for one in each) for name in names})


def _mean_several(each: Sequence[Several]) -> Several:
    """All were made with the same number of answers."""
    return replace(
        each[0],
        between_steps_ms=fmean(one.between_steps_ms for one in each),
        beside=_mean([one.beside for one in each]),
    )
