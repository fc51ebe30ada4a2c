"""The simulated machine that `tandem bench simulate --table` takes from the file of a measurement."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.load.metrics import summarise
from bench.micro.table import Floor, MicroResult, ModelFacts
from bench.results import provenance, write_result
from bench.simulate.pace import CadenceSteps
from bench.simulate.step_times import Contention, StepContent
from bench.simulate.systems import Delays, Several, cpu_system
from bench.validate.results import Calibration, LoadCompared, ValidateResult
from bench.validate.system import read_system
from tandem.cli.main import main
from tandem.errors import ConfigError
from tests.support.measured_steps import STEPS

FACTS = ModelFacts("tiny", "bfloat16", 1000, kv_token_bytes=1024, flops_per_token=1000, block_size=16)
CADENCE = CadenceSteps(num_layers=12, short_rows=32)
NOTHING = summarise((), None)


def calibrated(number: float) -> Calibration:
    """All of it is the number, or twice as much."""
    several = Several(4, number, Delays(number, number, number, 2 * number))
    return Calibration(
        contention=Contention(number, 2 * number, 0.05, 2 * number, number),
        alone=Delays(-number, number, number),
        beside=Delays(number, 2 * number, number, -number),
        several=several,
        probes=(),
    )


def validated(*calibrations: Calibration | None, cadence: CadenceSteps | None = CADENCE) -> ValidateResult:
    loads = tuple(LoadCompared("sharegpt", 1.0, NOTHING, NOTHING, each, ()) for each in calibrations)
    return ValidateResult(provenance(), "static:50,50", FACTS, STEPS, loads, cadence)


def written(tmp_path: Path, result: ValidateResult) -> Path:
    path = tmp_path / "validate.json"
    write_result(path, result, ValidateResult)
    return path


def test_a_validation_gives_its_steps_and_the_mean_of_what_lay_around_each_load(tmp_path):
    system = read_system(written(tmp_path, validated(calibrated(1.0), None, calibrated(3.0))))
    assert system.table.ms(StepContent(num_decode_rows=8, num_decode_keys=8 * 128), 50.0) == pytest.approx(80.0)
    assert system.contention == Contention(2.0, 4.0, 0.05, 4.0, 2.0)
    assert system.limits.alone == Delays(-2.0, 2.0, 2.0)
    assert system.limits.beside == Delays(2.0, 4.0, 2.0, -2.0)
    assert system.limits.several == Several(4, 2.0, Delays(2.0, 2.0, 2.0, 4.0))
    assert system.limits.num_blocks == (1 << 30) // (16 * 1024)
    assert system.cadence == CADENCE
    assert system.table.label.startswith("tiny on ")


def test_a_file_that_does_not_say_how_steps_wait_is_of_the_default_model(tmp_path):
    path = written(tmp_path, validated(calibrated(1.0)))
    told = json.loads(path.read_text())
    del told["cadence"]
    path.write_text(json.dumps(told))
    assert read_system(path).cadence == cpu_system().cadence


def test_of_micro_there_are_steps_alone(tmp_path):
    path = tmp_path / "micro.json"
    write_result(path, MicroResult(provenance(), FACTS, (Floor(1, 1.0, 1.0),), STEPS, (), (), ()), MicroResult)
    system, documented = read_system(path), cpu_system()
    assert system.table.ms(StepContent(num_prompt_rows=128), 100.0) == pytest.approx(640.0)
    assert system.contention == documented.contention
    assert system.limits == replace(documented.limits, num_blocks=(1 << 30) // (16 * 1024))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"schema": "tandem.bench.run/1"}, "schema"),
        ({"schema": "tandem.bench.validate/1"}, "schema"),
        ({"steps": [{**asdict(STEPS[0]), "median_ms": "soon"}]}, "steps.0.median_ms"),
        ({"steps": [{**asdict(each), "median_ms": 0.0} for each in STEPS]}, "steps.0.median_ms"),
        ({"steps": [asdict(STEPS[0])]}, "steps"),
        ({"model": None}, "model"),
        ({"loads": []}, "loads"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_and_so_is_what_to_do(change, field, tmp_path):
    path = written(tmp_path, validated(calibrated(1.0)))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=r"give a file that|measure") as raised:
        read_system(path)
    assert raised.value.key == "table"
    assert field in str(raised.value)


@pytest.mark.parametrize("text", [None, "", "not json", "[]"])
def test_another_file_is_refused(text, tmp_path):
    path = tmp_path / "f.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match="give a file that tandem bench validate"):
        read_system(path)


def test_the_command_simulates_the_machine_of_the_file(tmp_path):
    path, out = written(tmp_path, validated(calibrated(1.0))), tmp_path / "r.json"
    words = ["bench", "simulate", "colocated", "--load", "shift", "--duration", "10", "--warm-up", "1", "--rate", "1"]
    result = CliRunner().invoke(main, [*words, "--slo", "1000,100", "--table", str(path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["device"].startswith("tiny on ")
    refused = CliRunner().invoke(main, [*words, "--table", str(out), "--out", str(tmp_path / "s.json")])
    assert refused.exit_code != 0
    assert "schema" in refused.output
