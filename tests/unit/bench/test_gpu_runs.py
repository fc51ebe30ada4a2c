"""The GPU benchmark's sections as processes, without a GPU."""

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu import runner, surroundings
from bench.gpu.outcomes import Deadline
from bench.gpu.record import LEFT_OUT, NO_TIME, Report, SectionResult, SectionStatus
from bench.gpu.runner import FINDINGS, LOG, RESULTS, Run, Task, command_of, run_section, run_stages, status_of
from bench.gpu.sections import NAMES, STAGES, TIMED_TESTS, Section, Stage, Surroundings, stages_of
from tandem.clock import ManualClock, MonotonicClock
from tandem.device.cuda.gpu import GpuFacts, GpuSearch
from tandem.device.cuda.mps import ENV_PIPE_DIRECTORY
from tests.support import fake_mps_control

TESTS = Section("tests", "?", "tests/gpu/none")
PROGRAM = Section("program", "?", "device:device")


def test_every_section_has_a_name_of_its_own_and_something_to_run() -> None:
    sections = [section for stage in STAGES for section in stage.sections]
    assert len(set(NAMES)) == len(sections)
    for section in sections:
        if section.is_tests:
            assert all(Path(each).exists() for each in section.run.split())
            continue
        module, _, function = section.run.partition(":")
        path = Path(runner.__file__).parent / "parts" / f"{module}.py"
        assert f"def {function}(bench: Bench)" in path.read_text(), section


def test_all_of_tests_gpu_is_run_and_the_timed_tests_apart_from_the_others() -> None:
    asking = [section for stage in STAGES for section in stage.sections if section.is_tests]
    run = [Path(each) for section in asking for each in section.run.split()]
    for path in Path("tests/gpu").rglob("test_*.py"):
        assert any(path.is_relative_to(each) for each in run), path
    text = Path("tests/gpu/test_partition.py").read_text()
    assert [text.count(word) for word in TIMED_TESTS.split(" or ")] == [1, 1]
    selected = {section.select for section in asking if "partition" in section.run}
    assert selected == {TIMED_TESTS, f"not ({TIMED_TESTS})"}


def test_what_is_timed_has_the_device_to_itself() -> None:
    (shared,) = [stage for stage in STAGES if len(stage.sections) > 1]
    untimed = {"device", "kernel-tests", "partition-tests", "greedy", "compile"}
    assert {section.name for section in shared.sections} == untimed


def test_the_page_names_every_section_and_how_long_they_may_take() -> None:
    page = Path("docs/gpu-bench.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in page] == []
    assert f"take: {sum(stage.weight for stage in STAGES):.0f} s together" in " ".join(page.split())


def test_some_sections_alone() -> None:
    stages = stages_of(["goodput", "greedy"])
    assert [[section.name for section in stage.sections] for stage in stages] == [["greedy"], ["goodput"]]
    with pytest.raises(ValueError, match="no section goodputt"):
        stages_of(["goodputt"])


CUT, CUT_PROGRAM = replace(TESTS, name="cut"), replace(PROGRAM, name="cut")


@pytest.mark.parametrize(
    ("section", "exit_status", "last_line", "status"),
    [
        (TESTS, 0, "3 passed in 1s", SectionStatus.PASSED),
        (TESTS, 0, "3 skipped in 1s", SectionStatus.SKIPPED),
        (TESTS, 5, "no tests ran", SectionStatus.SKIPPED),
        (TESTS, 1, "1 failed, 2 passed in 1s", SectionStatus.FAILED),
        (CUT, 0, "3 passed, 2 skipped in 1s", SectionStatus.CUT),
        (PROGRAM, 0, "", SectionStatus.PASSED),
        (PROGRAM, 3, "needs a GPU", SectionStatus.SKIPPED),
        (PROGRAM, -9, "", SectionStatus.FAILED),
        (CUT_PROGRAM, 0, "", SectionStatus.CUT),
        (CUT_PROGRAM, 1, "", SectionStatus.FAILED),
    ],
)
def test_how_a_process_ended_is_the_section_s_status(
    section: Section, exit_status: int, last_line: str, status: SectionStatus
) -> None:
    values = {LEFT_OUT: {"more": NO_TIME}} if section in (CUT, CUT_PROGRAM) else {}
    assert status_of(section, exit_status, values, last_line) is status


def test_tests_are_run_by_pytest_and_programs_by_the_worker() -> None:
    run, section = a_run(Path("out")), replace(TESTS, select="some", run="one/a two/b")
    asked = command_of(a_task(section), run, Path("v"))
    assert asked[1:3] == ["-m", "pytest"]
    assert asked[-4:] == ["-k", "some", "one/a", "two/b"]
    *asked, _, pack, dry = command_of(a_task(PROGRAM), replace(run, is_dry=True), Path("v"))
    assert (asked[2:], pack, dry) == (["bench.gpu.worker", "device:device", "v"], "packed", "--dry")


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

    def command(task: Task, run: Run, values: Path) -> Sequence[str]:
        seconds, exit_status = planned[task.section.name]
        return [sys.executable, "-c", FINDS, str(values), str(seconds), str(exit_status)]

    monkeypatch.setattr(runner, "command_of", command)
    return planned


def a_run(folder: Path, total_s: float = 60.0) -> Run:
    return Run(folder, total_s, MonotonicClock(), is_dry=False, pack=Path("packed"))


def a_task(section: Section, seconds: float = 60.0) -> Task:
    return Task(section, seconds, MonotonicClock().now() + seconds)


def stages_named(*names: str) -> list[Stage]:
    """One after another."""
    return [Stage(1, (Section(name, "?", "a:b"),)) for name in names]


def test_one_that_fails_keeps_what_it_found_and_the_next_goes_on(
    tmp_path: Path, programs: dict[str, tuple[float, int]]
) -> None:
    programs |= {"bad": (0, 1), "good": (0, 0), "skip": (0, 3)}
    seen: list[str] = []
    run = a_run(tmp_path, 1000)
    report = run_stages(stages_named(*programs), run, Report(0.0, False), lambda result: seen.append(result.name))
    statuses = [result.status for result in report.sections]
    assert statuses == [SectionStatus.FAILED, SectionStatus.PASSED, SectionStatus.SKIPPED]
    assert [result.reason for result in report.sections] == ["out of luck", "", "out of luck"]
    assert all(result.values == {"found": 1} for result in report.sections)
    assert seen == list(programs)
    written = json.loads((tmp_path / RESULTS).read_text())
    assert [each["status"] for each in written["sections"]] == ["failed", "passed", "skipped"]
    assert (tmp_path / LOG).read_text().count("out of luck") == 3
    assert list((tmp_path / FINDINGS).iterdir()) == []


def test_one_that_takes_too_long_is_ended_and_keeps_what_it_found(
    tmp_path: Path, programs: dict[str, tuple[float, int]]
) -> None:
    programs |= {"program": (600, 0)}
    result = run_section(a_task(PROGRAM, 3.0), a_run(tmp_path))
    assert (result.status, result.reason) == (SectionStatus.TIMED_OUT, "after 3 s")
    assert result.values == {"found": 1}
    assert json.loads((tmp_path / FINDINGS / "program.json").read_text()) == {"found": 1}


def test_sections_of_a_stage_run_side_by_side(tmp_path: Path, programs: dict[str, tuple[float, int]]) -> None:
    waits = "import pathlib, sys, time\nmine, other = map(pathlib.Path, sys.argv[1:])\nmine.touch()\n"
    waits += "while not other.exists():\n    time.sleep(0.01)\n"
    one, two = (str(tmp_path / name) for name in ("one", "two"))

    def command(task: Task, run: Run, values: Path) -> Sequence[str]:
        return [sys.executable, "-c", waits, *((one, two) if task.section.name == "one" else (two, one))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "command_of", command)
        stage = Stage(1, tuple(Section(name, "?", "a:b") for name in ("one", "two")))
        report = run_stages([stage], a_run(tmp_path), Report(0.0, False), lambda _: None)
    assert [result.status for result in report.sections] == [SectionStatus.PASSED] * 2


def test_results_are_whole_after_every_section(tmp_path: Path, programs: dict[str, tuple[float, int]]) -> None:
    programs |= {"one": (0, 0), "two": (0, 0)}
    counts: list[int] = []

    def tell(_: SectionResult) -> None:
        counts.append(len(json.loads((tmp_path / RESULTS).read_text())["sections"]))

    run_stages(stages_named(*programs), a_run(tmp_path), Report(0.0, False), tell)
    assert counts == [1, 2]


def test_without_time_left_sections_are_skipped_and_said_to_be(tmp_path: Path) -> None:
    run = Run(tmp_path, 1.0, ManualClock(), is_dry=False, pack=tmp_path)
    report = run_stages([Stage(1, (PROGRAM,))], run, Report(0.0, False), lambda _: None)
    assert [(each.status, each.reason) for each in report.sections] == [(SectionStatus.SKIPPED, NO_TIME)]


def test_a_section_that_can_use_mps_runs_alone_where_no_daemon_starts_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, tuple[float, int]]
) -> None:
    programs |= {"program": (0, 0)}
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run_section(a_task(replace(PROGRAM, surroundings=Surroundings.MPS)), a_run(tmp_path))
    assert result.status is SectionStatus.PASSED
    assert str(result.values["no_mps"]).startswith("MPS: ")


@pytest.mark.parametrize("has_mps", [True, False])
def test_a_daemon_that_serves_nobody_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, tuple[float, int]], has_mps: bool
) -> None:
    programs |= {"program": (0, 0)}
    seen: list[str] = []

    def look(environ: Mapping[str, str], timeout_s: float) -> GpuSearch:
        seen.append(environ[ENV_PIPE_DIRECTORY])
        return GpuSearch(GpuFacts("H200", (13, 0), (9, 0), 132, 1 << 37, has_mps))

    monkeypatch.setattr(surroundings, "look_from_child", look)
    monkeypatch.setenv("PATH", str(fake_mps_control.install(tmp_path)), prepend=os.pathsep)
    result = run_section(a_task(replace(PROGRAM, surroundings=Surroundings.MPS)), a_run(tmp_path))
    assert (len(seen), result.status) == (1, SectionStatus.PASSED)
    assert ("serves nobody" in str(result.values.get("no_mps"))) is not has_mps


LINGERS = """#!/bin/sh
[ "$1" = -d ] || exit 0
cd "$CUDA_MPS_LOG_DIRECTORY"
setsid timeout 5 sh -c 'i=0; while : > $i; do i=$(((i + 1) % 5000)); done' > /dev/null 2>&1 &
"""


def test_a_daemon_that_still_writes_when_its_folder_goes_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, tuple[float, int]]
) -> None:
    programs |= {"program": (0, 0)}
    program = tmp_path / fake_mps_control.PROGRAM
    program.write_text(LINGERS)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(surroundings, "look_from_child", lambda *_: GpuSearch(None, "none"))
    result = run_section(a_task(replace(PROGRAM, surroundings=Surroundings.MPS)), a_run(tmp_path))
    assert result.status is SectionStatus.PASSED


def test_a_driver_that_waits_for_a_daemon_leaves_each_section_half_of_its_time() -> None:
    with_mps = [stage for stage in STAGES if any(each.surroundings is Surroundings.MPS for each in stage.sections)]
    assert with_mps
    assert min(stage.weight for stage in with_mps) / 2 >= surroundings.LOOK_TIMEOUT_S


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


def test_each_test_s_outcome_is_in_the_results_and_second_choices_come_last(tmp_path: Path) -> None:
    path = tmp_path / "tests" / "test_three.py"
    path.parent.mkdir()
    path.write_text(THREE_TESTS)
    result = run_section(a_task(replace(TESTS, run=str(path), later="bad"), 300.0), a_run(tmp_path))
    output = (tmp_path / LOG).read_text()
    assert output.index("::test_other") < output.index("::test_bad")
    assert result.status is SectionStatus.FAILED
    assert result.values == {
        "passed": 1,
        "failed": {"test_three.py::test_bad": "ValueError: not so"},
        "skipped": {"test_three.py::test_other": "Skipped: needs a GPU"},
        "figures": {"test_three.py::test_good": {"ms": 3.5}},
        "summary": result.values["summary"],
    }


def test_a_test_is_begun_when_those_before_it_would_have_ended_in_time() -> None:
    clock = ManualClock()
    deadline = Deadline(clock, until_s=10.0)
    for seconds in (2.0, 4.0):
        deadline.pytest_runtest_setup()
        around = deadline.pytest_runtest_protocol()
        next(around)
        clock.advance(seconds)
        with pytest.raises(StopIteration):
            around.send(None)
    clock.advance(1.0)
    deadline.pytest_runtest_setup()  # 3 s more, their mean, is the end
    clock.advance(0.1)
    with pytest.raises(pytest.skip.Exception, match=NO_TIME):
        deadline.pytest_runtest_setup()


def test_a_dry_run_of_one_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    assert command.main(["--out", str(out), "--dry", "--minutes", "5", "--only", "device,kernel-tests"]) == 0
    said = capsys.readouterr().out
    assert "1 passed" in said
    assert "1 skipped" in said
    assert "a dry run" in said
    written = json.loads((out / RESULTS).read_text())
    assert written["is_dry"]
    by_name = {section["name"]: section for section in written["sections"]}
    assert by_name["device"]["values"]["torch"] == torch.__version__
    assert "needs a GPU" in by_name["kernel-tests"]["reason"]
