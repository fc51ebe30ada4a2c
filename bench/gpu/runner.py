"""Runs sections as processes: each with a time limit, whatever became of those before it."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.budget import limit_s
from bench.gpu.record import LEFT_OUT, NO_TIME, Report, SectionResult, SectionStatus, Value, read_values, write_report
from bench.gpu.sections import Section, Stage
from bench.gpu.surroundings import environment_of
from bench.gpu.worker import DRY, SKIPPED
from tandem.clock import Clock

RESULTS, LOG, FINDINGS = "results.json", "sections.log", "findings"
NONE_COLLECTED = 5  # pytest's exit status
OUTCOMES = "bench.gpu.outcomes"
END_S = 3.0  # before its limit a section ends by itself


@dataclass(frozen=True, slots=True)
class Run:
    """What all sections have in common.

    `out` gets a file of results, one of output, and a folder with each section's findings as it finds them. `clock`
    goes on in other processes as in this one.
    """

    out: Path
    total_s: float
    clock: Clock
    is_dry: bool
    pack: Path  # what `pack.sh` made, if it is there


@dataclass(frozen=True, slots=True)
class Task:
    """A section, and the time of the clock at which it ends or is ended."""

    section: Section
    limit_s: float
    until_s: float


def run_stages(stages: Sequence[Stage], run: Run, report: Report, tell: Callable[[SectionResult], None]) -> Report:
    """`report` with a result for each section, written after each; `tell` gets each at once."""
    until_s = run.clock.now() + run.total_s
    for index, stage in enumerate(stages):
        left_s = max(0.0, until_s - run.clock.now())
        weights = [each.weight for each in stages[index:]]
        allowed_s = left_s if run.is_dry else limit_s(weights, left_s)  # a busy processor may be slow
        for result in _side_by_side(stage, run, allowed_s):
            report = replace(report, sections=(*report.sections, result))
            write_report(run.out / RESULTS, report)
            _findings(run, result.name).unlink(missing_ok=True)  # few files are brought back
            tell(result)
    return report


def _side_by_side(stage: Stage, run: Run, allowed_s: float) -> Iterator[SectionResult]:
    """In the order of their ends."""
    if not allowed_s:
        yield from (_unrun(section, NO_TIME) for section in stage.sections)
        return
    until_s = run.clock.now() + allowed_s
    with ThreadPoolExecutor(len(stage.sections)) as pool:
        tasks = [pool.submit(run_section, Task(each, allowed_s, until_s), run) for each in stage.sections]
        yield from (task.result() for task in as_completed(tasks))


def run_section(task: Task, run: Run) -> SectionResult:
    """One, to its end or to that of its time."""
    if task.section.is_tests and run.is_dry:
        return _unrun(task.section, "needs a GPU: tests")
    with (
        tempfile.TemporaryDirectory(prefix="tandem-gpu-", ignore_cleanup_errors=True) as name,
        environment_of(task.section, Path(name), is_dry=run.is_dry) as around,
    ):
        result = _run(task, run, Path(name), around.environ)
    return replace(result, values={"no_mps": around.why_no_mps, **result.values}) if around.why_no_mps else result


def command_of(task: Task, run: Run, values: Path) -> list[str]:
    """Of the section's process."""
    section, until = task.section, str(task.until_s - END_S)
    if not section.is_tests:
        arguments = [section.run, str(values), until, str(run.pack), *([DRY] if run.is_dry else [])]
        return [sys.executable, "-m", "bench.gpu.worker", *arguments]
    plugins = ["-p", "no:cacheprovider", "-p", OUTCOMES, f"--outcomes={values}", f"--until={until}"]
    if section.num_workers > 1 and find_spec("xdist"):
        plugins += ["-n", str(section.num_workers)]
    later = [f"--later={section.later}"] if section.later else []
    select = ["-k", section.select] if section.select else []
    return [sys.executable, "-m", "pytest", "-v", "-rfEs", *plugins, *later, *select, *section.run.split()]


def status_of(section: Section, exit_status: int, values: Mapping[str, Value], last_line: str) -> SectionStatus:
    """Of a process that has ended by itself. Tests of which none ran were skipped."""
    if section.is_tests:
        if exit_status == NONE_COLLECTED or (exit_status == 0 and "passed" not in last_line):
            return SectionStatus.SKIPPED
    elif exit_status == SKIPPED:
        return SectionStatus.SKIPPED
    if exit_status:
        return SectionStatus.FAILED
    return SectionStatus.CUT if values.get(LEFT_OUT) else SectionStatus.PASSED


def _run(task: Task, run: Run, folder: Path, env: Mapping[str, str]) -> SectionResult:
    section, output, began_s = task.section, folder / "output.txt", run.clock.now()
    findings = _findings(run, section.name)
    findings.parent.mkdir(exist_ok=True)
    findings.unlink(missing_ok=True)  # of an earlier run into the same folder
    exit_status = _wait(command_of(task, run, findings), task.until_s - began_s, output, env)
    text, values = output.read_text(errors="replace"), read_values(findings)
    _keep(run.out / LOG, section, text)
    last_line = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    timed_out = exit_status is None
    status = SectionStatus.TIMED_OUT if exit_status is None else status_of(section, exit_status, values, last_line)
    reason = f"after {task.limit_s:.0f} s" if timed_out else last_line
    return SectionResult(
        section.name,
        section.question,
        status,
        round(run.clock.now() - began_s, 1),
        round(task.limit_s, 1),
        reason if status in (SectionStatus.FAILED, SectionStatus.SKIPPED, SectionStatus.TIMED_OUT) else "",
        values | ({"summary": last_line} if section.is_tests else {}),
    )


def _findings(run: Run, name: str) -> Path:
    """Of a section, until they are in the results."""
    return run.out / FINDINGS / f"{name}.json"


def _wait(command: list[str], allowed_s: float, output: Path, env: Mapping[str, str]) -> int | None:
    """The exit status; None when the time was up and the process, and whatever it started, was ended."""
    with output.open("wb") as sink:
        process = subprocess.Popen(  # noqa: S603 - our own modules
            command, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=dict(env),
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(max(allowed_s, 0.0))
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _keep(log: Path, section: Section, text: str) -> None:
    with log.open("a") as sink:
        sink.write(f"===== {section.name}\n{text}\n")


def _unrun(section: Section, reason: str) -> SectionResult:
    return SectionResult(section.name, section.question, SectionStatus.SKIPPED, 0.0, 0.0, reason)
