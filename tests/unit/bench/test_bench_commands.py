"""`tandem bench`: options, files, plots, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.commands.options import parse_slo
from bench.deployment.settings import parse_settings
from bench.goodput import Goodput, RateSample
from bench.load.metrics import Slo, summarise
from bench.load.records import RequestRecord
from bench.plots import cumulative, plot, pooled
from bench.reading import read_result
from bench.results import (
    CompareResult,
    DeploymentGoodput,
    GoodputResult,
    Latencies,
    Run,
    RunResult,
    WorkloadFacts,
    latencies_of,
    processor_name,
    provenance,
    write_result,
)
from tandem.cli.bench import MODULES
from tandem.cli.bench import bench as load_group
from tandem.cli.main import main
from tandem.errors import ConfigError

RECORDS = (
    RequestRecord(0, 0.0, 0.0, (0.1, 0.2), 0.2, 5, 2, 1, ""),
    RequestRecord(1, 1.0, 1.0, (1.3, 1.4), 1.4, 5, 2, 1, ""),
    RequestRecord(2, 2.0, 2.0, (), 2.1, 5, 2, None, "QueueFullError: full"),
)
FACTS = WorkloadFacts("sharegpt", "poisson", 3, 1.0, 0)
RUN = Run("semi-pd", FACTS, summarise(RECORDS, Slo(500, 500)), latencies_of(RECORDS))
GOODPUT = Goodput(2.0, 4.0, (RateSample(2.0, 0.95, (0.9, 1.0)), RateSample(4.0, 0.5, (0.4, 0.6))))
RESULTS = [
    RunResult(provenance(), (RUN,)),
    CompareResult(provenance(), (RUN, replace(RUN, deployment="colocated")), ()),
    GoodputResult(provenance(), Slo(500, 500), 0.9, (DeploymentGoodput("semi-pd", GOODPUT, (RUN, RUN)),)),
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.schema)
def test_a_result_is_read_as_it_was_written(result, tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_result(path, result, type(result))
    assert read_result(path) == result
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_the_schema_stands_in_the_file(tmp_path):
    write_result(tmp_path / "r.json", RESULTS[0], RunResult)
    assert '"tandem.bench.run/1"' in (tmp_path / "r.json").read_text()


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "tandem.bench.run/2"}', "[1]"])
def test_what_is_no_result_is_refused(text, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no result"):
        read_result(path)


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json: No such file"):
        read_result(tmp_path / "none.json")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="out: "):
        write_result(tmp_path / "file" / "r.json", RESULTS[0], RunResult)


@pytest.mark.parametrize(
    ("result", "name"), [(RESULTS[1], "r-latency.png"), (RESULTS[2], "r-attainment.png")], ids=["latency", "attainment"]
)
def test_plots_are_png_files(result, name, tmp_path):
    assert plot(result, tmp_path / "plots", "r") == (tmp_path / "plots" / name,)
    assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")


def test_a_plots_lines_hold_all_runs_of_a_deployment():
    other = replace(RUN, latencies=Latencies((50.0,), (), ()))
    assert pooled([RUN, other], "ttft_ms")["semi-pd"] == pytest.approx([50, 100, 300])
    assert cumulative(4) == [0.25, 0.5, 0.75, 1.0]


def test_the_processor_has_a_name():
    assert processor_name("processor\t: 0\nmodel name\t: A CPU\nmodel name\t: A CPU\n") == "A CPU"
    assert processor_name("") != ""


def test_settings_go_by_service():
    assert parse_settings(["memd.kv_bytes=5", "memd.dtype=float32", "gateway.max-waiting=9"]) == {
        "memd": {"kv-bytes": "5", "dtype": "float32"},
        "gateway": {"max-waiting": "9"},
    }


@pytest.mark.parametrize("text", ["memd", "kv=5", "memd.=5", ".x=5", "memo.x=5"])
def test_settings_of_another_form_are_refused(text):
    with pytest.raises(ConfigError, match="set"):
        parse_settings([text])


def test_an_slo_is_two_limits():
    assert parse_slo("750,100.5") == Slo(750, 100.5)


@pytest.mark.parametrize("text", ["1", "1,2,3", "a,b", "0,5", "5,-1"])
def test_an_slo_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="slo"):
        parse_slo(text)


def test_every_command_can_be_imported():
    answer = CliRunner().invoke(main, ["bench", "--help"])
    assert answer.exit_code == 0
    assert all(f"\n  {name} " in answer.output for name in MODULES)
    assert all(load_group.get_command(None, name).name == name for name in MODULES)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "fast"], "'fast' is none of semi-pd"),
        (["run", "--workload", "azure"], "pass --data PATH"),
        (["compare", "semi-pd"], "cannot be compared with itself"),
        (["compare", "semi-pd", "colocated", "semi-pd"], "have one name"),
        (["goodput", "semi-pd", "static:1"], "static:1 is not static:PREFILL,DECODE"),
        (["engines", "tandem", "onnx"], "'onnx' is none of tandem, llama.cpp, vllm"),
        (["engines", "llama.cpp:none.gguf"], "write llama.cpp:PATH"),
        (["engines", "tandem", "tandem"], "have one name"),
        (["goodput", "semi-pd", "--arrival", "closed:2"], "a closed loop has no rate"),
        (["plot", "none.json"], "none.json: No such file"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(arguments, says, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ["--model", str(tiny_model_dir("llama"))] if arguments[0] != "plot" else []
    answer = CliRunner().invoke(main, ["bench", *arguments, *model])
    assert answer.exit_code == 1
    assert says in answer.output
    assert list(Path.cwd().iterdir()) == []
