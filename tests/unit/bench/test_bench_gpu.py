"""The GPU benchmark's pure parts, and its sections' processes, without a GPU."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.gpu import __main__ as command
from bench.gpu import runner
from bench.gpu.bench import Bench, SkippedError
from bench.gpu.budget import KEPT_BACK_S, LEAST_S, allowance_s
from bench.gpu.display import result_lines, summary_lines, text_of
from bench.gpu.floors import Rates, attention_bytes, decode_bytes, decode_floor_ms, prefill_flop
from bench.gpu.load import DECODE_PERCENTS, split_of
from bench.gpu.parts import device
from bench.gpu.record import Report, SectionResult, SectionStatus
from bench.gpu.runner import LOG, RESULTS, Run, command_of, run_section, run_sections, status_of
from bench.gpu.sections import SECTIONS, Section, Surroundings
from bench.gpu.subject import MODELS
from tandem.clock import ManualClock, MonotonicClock
from tandem.device.cuda.gpu import GpuFacts, GpuSearch
from tandem.device.cuda.mps import ENV_PIPE_DIRECTORY
from tandem.device.cuda.sm_split import SmGroups, plan_share, shares_of
from tandem.types import Phase
from tests.support import fake_mps_control
from tests.support.fake_cuda.host import fake_driver

TESTS = Section("tests", "?", "tests/gpu/none", 10.0)
PROGRAM = Section("program", "?", "device:floors", 10.0)


# --- the budget


@given(st.floats(0, 600), st.floats(0, 600), st.floats(10, 600))
def test_no_section_runs_into_what_is_kept_back(limit_s: float, elapsed_s: float, total_s: float) -> None:
    allowed_s = allowance_s(limit_s, elapsed_s, total_s)
    assert 0 <= allowed_s <= limit_s
    assert allowed_s == 0 or elapsed_s + allowed_s <= total_s - KEPT_BACK_S + 1e-9  # sums of floats round


def test_a_section_gets_its_limit_or_what_is_left_or_nothing() -> None:
    assert allowance_s(60, 0, 540) == 60
    assert allowance_s(60, 500, 540) == 540 - 500 - KEPT_BACK_S
    assert allowance_s(60, 540 - KEPT_BACK_S - LEAST_S + 0.1, 540) == 0


# --- floors


def test_a_decode_step_of_llama_3_8b_reads_what_is_known_of_it() -> None:
    config = MODELS["llama-3-8b"]
    embedding = 128256 * 4096
    parameters = 8_030_261_248  # of the published model
    assert decode_bytes(config, 1, 0) == 2 * (parameters - embedding + 4096)
    assert decode_bytes(config, 2, 100) - decode_bytes(config, 2, 0) == 2 * 100 * 128 * 1024  # 128 KiB a token
    assert decode_floor_ms(config, 1, 0, Rates(4000.0, 1.0)) == pytest.approx(3.752, abs=0.002)


def test_qwen_s_biases_and_head_are_counted() -> None:
    config = MODELS["qwen2.5-7b"]
    assert decode_bytes(config, 0, 0) == 2 * (7_615_616_512 - 152064 * 3584)
    tied = replace(config, tie_word_embeddings=True)
    assert decode_bytes(tied, 0, 0) == decode_bytes(config, 0, 0)


def test_prefill_is_two_flop_a_weight_and_token_and_attention_s() -> None:
    config = MODELS["llama-3-8b"]
    layers = 8_030_261_248 - 2 * 128256 * 4096 - (2 * 32 + 1) * 4096
    head = 128256 * 4096
    pairs = 2 * (3 * 4 // 2)
    assert prefill_flop(config, [3, 3]) == 2 * layers * 6 + 2 * head * 2 + 4 * 32 * 32 * 128 * pairs
    assert attention_bytes(config, 64, 1024) == 64 * 1024 * 4096


# --- shares


def test_each_percentage_is_another_share_of_16_groups() -> None:
    device = SmGroups(132, 8, 16)
    for phase in Phase:
        had = {plan_share(phase, split_of(percent), device) for percent in DECODE_PERCENTS}
        assert len(had) == len(DECODE_PERCENTS) == len(shares_of(phase, device))


# --- sections


def test_every_section_has_a_name_of_its_own_and_something_to_run() -> None:
    assert len({section.name for section in SECTIONS}) == len(SECTIONS)
    for section in SECTIONS:
        if section.is_tests:
            assert Path(section.run).exists()
            continue
        module, _, function = section.run.partition(":")
        path = Path(runner.__file__).parent / "parts" / f"{module}.py"
        assert f"def {function}(bench: Bench)" in path.read_text(), section


def test_what_needs_mps_has_a_daemon() -> None:
    by_surroundings = {kind: {each.name for each in SECTIONS if each.surroundings is kind} for kind in Surroundings}
    assert by_surroundings[Surroundings.MPS] == {"shares-together", "faults-with-mps"}
    assert by_surroundings[Surroundings.MPS_OR_ALONE] == {
        "graphs-keep-sms", "repartition", "shares-alone", "deployment", "goodput",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("section", "exit_status", "last_line", "status"),
    [
        (TESTS, 0, "3 passed in 1s", SectionStatus.PASSED),
        (TESTS, 0, "3 skipped in 1s", SectionStatus.SKIPPED),
        (TESTS, 5, "no tests ran", SectionStatus.SKIPPED),
        (TESTS, 1, "1 failed, 2 passed in 1s", SectionStatus.FAILED),
        (PROGRAM, 0, "", SectionStatus.PASSED),
        (PROGRAM, 3, "needs a GPU", SectionStatus.SKIPPED),
        (PROGRAM, -9, "", SectionStatus.FAILED),
    ],
)
def test_how_a_process_ended_is_the_section_s_status(
    section: Section, exit_status: int, last_line: str, status: SectionStatus
) -> None:
    assert status_of(section, exit_status, last_line) is status


def test_tests_are_run_by_pytest_and_programs_by_the_worker() -> None:
    assert command_of(TESTS, Path("v"), is_dry=False)[1:3] == ["-m", "pytest"]
    assert command_of(PROGRAM, Path("v"), is_dry=True)[2:] == ["bench.gpu.worker", "device:floors", "v", "--dry"]


FINDS = """
import json, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(json.dumps({"found": 1}))
print("out of luck")
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, int]]:
    """What sections do by name: seconds, exit status."""
    planned: dict[str, tuple[float, int]] = {}

    def command(section: Section, values: Path, *, is_dry: bool) -> Sequence[str]:
        seconds, exit_status = planned[section.name]
        return [sys.executable, "-c", FINDS, str(values), str(seconds), str(exit_status)]

    monkeypatch.setattr(runner, "command_of", command)
    return planned


def a_run(folder: Path, total_s: float = 60.0) -> Run:
    return Run(folder, total_s, MonotonicClock(), is_dry=False)


def test_one_that_fails_or_takes_too_long_keeps_what_it_found_and_the_next_goes_on(
    tmp_path: Path, programs: dict[str, tuple[float, int]]
) -> None:
    programs |= {"bad": (0, 1), "slow": (600, 0), "good": (0, 0), "skip": (0, 3)}
    limits = {"bad": 30.0, "slow": 1.0, "good": 30.0, "skip": 30.0}
    sections = [Section(name, "?", "a:b", limits[name]) for name in programs]
    seen: list[str] = []
    report = run_sections(sections, a_run(tmp_path), Report(0.0, False), lambda result: seen.append(result.name))
    statuses = [result.status for result in report.sections]
    assert statuses == [SectionStatus.FAILED, SectionStatus.TIMED_OUT, SectionStatus.PASSED, SectionStatus.SKIPPED]
    assert [result.reason for result in report.sections] == ["out of luck", "after 1 s", "", "out of luck"]
    assert all(result.values == {"found": 1} for result in report.sections)
    assert seen == list(programs)
    written = json.loads((tmp_path / RESULTS).read_text())
    assert [each["status"] for each in written["sections"]] == ["failed", "timed out", "passed", "skipped"]
    assert (tmp_path / LOG).read_text().count("out of luck") == 4


def test_results_are_whole_after_every_section(tmp_path: Path, programs: dict[str, tuple[float, int]]) -> None:
    programs |= {"one": (0, 0), "two": (0, 0)}
    counts: list[int] = []

    def tell(_: SectionResult) -> None:
        counts.append(len(json.loads((tmp_path / RESULTS).read_text())["sections"]))

    run_sections([Section(name, "?", "a:b", 30.0) for name in programs], a_run(tmp_path), Report(0.0, False), tell)
    assert counts == [1, 2]


def test_without_time_left_sections_are_skipped_and_said_to_be(tmp_path: Path) -> None:
    run = Run(tmp_path, 1.0, ManualClock(), is_dry=False)
    report = run_sections([PROGRAM], run, Report(0.0, False), lambda _: None)
    assert [(each.status, each.reason) for each in report.sections] == [(SectionStatus.SKIPPED, "no time was left")]


def test_a_section_that_needs_mps_is_skipped_where_no_daemon_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run_section(replace(PROGRAM, surroundings=Surroundings.MPS), a_run(tmp_path), 10.0)
    assert result.status is SectionStatus.SKIPPED
    assert "MPS" in result.reason


def test_a_section_that_can_do_without_mps_runs_alone_where_no_daemon_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, tuple[float, int]]
) -> None:
    programs |= {"program": (0, 0)}
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run_section(replace(PROGRAM, surroundings=Surroundings.MPS_OR_ALONE), a_run(tmp_path), 30.0)
    assert result.status is SectionStatus.PASSED


@pytest.mark.parametrize(
    ("surroundings", "has_mps"),
    [(Surroundings.MPS, True), (Surroundings.MPS, False), (Surroundings.MPS_OR_ALONE, False)],
)
def test_a_daemon_that_serves_nobody_is_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    programs: dict[str, tuple[float, int]],
    surroundings: Surroundings,
    has_mps: bool,
) -> None:
    programs |= {"program": (0, 0)}
    seen: list[str] = []

    def look(environ: Mapping[str, str]) -> GpuSearch:
        seen.append(environ[ENV_PIPE_DIRECTORY])
        return GpuSearch(GpuFacts("H200", (13, 0), (9, 0), 132, 1 << 37, has_mps))

    monkeypatch.setattr(runner, "look_from_child", look)
    monkeypatch.setenv("PATH", str(fake_mps_control.install(tmp_path)), prepend=os.pathsep)
    result = run_section(replace(PROGRAM, surroundings=surroundings), a_run(tmp_path), 60.0)
    assert len(seen) == 1
    if surroundings is Surroundings.MPS and not has_mps:
        assert (result.status, "serves nobody" in result.reason) == (SectionStatus.SKIPPED, True)
    else:
        assert result.status is SectionStatus.PASSED


# --- what tests came to

THREE_TESTS = """
import pytest
def test_good(record_property):
    record_property("ms", 3.5)
def test_bad():
    raise ValueError("not so\\nand more")
def test_other():
    pytest.skip("needs a GPU")
"""


def test_each_test_s_outcome_is_in_the_results(tmp_path: Path) -> None:
    path = tmp_path / "tests" / "test_three.py"
    path.parent.mkdir()
    path.write_text(THREE_TESTS)
    result = run_section(replace(TESTS, run=str(path), limit_s=300.0), a_run(tmp_path), 300.0)
    assert result.status is SectionStatus.FAILED
    assert result.values == {
        "passed": 1,
        "failed": {"test_three.py::test_bad": "ValueError: not so"},
        "skipped": {"test_three.py::test_other": "Skipped: needs a GPU"},
        "figures": {"test_three.py::test_good": {"ms": 3.5}},
        "summary": result.values["summary"],
    }


# --- a section's own surroundings


def test_findings_are_there_at_once_and_rounded(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "v.json", is_dry=True)
    bench.record("a", {"ms": 1.234567, "list": [0.000123456, 3]})
    assert json.loads((tmp_path / "v.json").read_text()) == {"a": {"ms": 1.235, "list": [0.0001235, 3]}}
    assert bench.device == torch.device("cpu")
    with pytest.raises(SkippedError, match="needs a GPU: the driver"):
        bench.needs_gpu("the driver")


def test_what_the_driver_is_asked_over_a_fake_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "open_driver", fake_driver)
    device.driver_facts(Bench(tmp_path / "v.json", is_dry=False))
    found = json.loads((tmp_path / "v.json").read_text())
    assert (found["num_sms"], found["cuda"], found["why_no_vmm"]) == (132, [13, 0], "")
    assert found["groups_of_at_least_8_sms"] == [16, [8], 4]  # as many, of this size, and SMs in none


def test_results_for_people() -> None:
    result = SectionResult("llama", "fast?", SectionStatus.PASSED, 12.0, values={"decode": {"ms": 1.23456, "n": 3}})
    lines = list(result_lines(result))
    assert "passed" in lines[0]
    assert lines[1].strip() == "decode: ms 1.235  n 3"
    assert text_of([1.0, "x"]) == "[1, x]"
    report = Report(0.0, True, (result, replace(result, status=SectionStatus.FAILED), result))
    assert list(summary_lines(report))[-1] == "2 passed, 1 failed"


def test_a_dry_run_of_one_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    assert command.main(["--out", str(out), "--dry", "--minutes", "5", "--only", "driver,kernel-tests"]) == 0
    said = capsys.readouterr().out
    assert "2 skipped" in said
    assert "a dry run" in said
    written = json.loads((out / RESULTS).read_text())
    assert written["is_dry"]
    assert "needs a GPU" in written["sections"][0]["reason"]
