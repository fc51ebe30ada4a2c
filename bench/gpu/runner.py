"""Runs sections as processes: each with a time limit, whatever became of those before it."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.budget import allowance_s
from bench.gpu.record import Report, SectionResult, SectionStatus, read_values, write_report
from bench.gpu.sections import Section, Surroundings
from bench.gpu.worker import DRY, SKIPPED
from tandem.clock import Clock
from tandem.device.cuda.look import look_from_child
from tandem.device.cuda.mps import ENV_PIPE_DIRECTORY, MpsControl, MpsDirectories
from tandem.errors import DeviceError

ROOT = Path(__file__).parents[2]
NOWHERE = "/nonexistent"  # a pipe directory without a daemon
DRIVER_PROGRAMS = "/usr/local/nvidia/bin"  # where container runtimes put them, and a shell may not look
RESULTS, LOG = "results.json", "sections.log"
NONE_COLLECTED = 5  # pytest's exit status
OUTCOMES = "bench.gpu.outcomes"


@dataclass(frozen=True, slots=True)
class Run:
    """What all sections have in common. `out` gets one file of results and one of output."""

    out: Path
    total_s: float
    clock: Clock
    is_dry: bool


def run_sections(
    sections: Sequence[Section], run: Run, report: Report, tell: Callable[[SectionResult], None]
) -> Report:
    """`report` with a result for each section, written after each; `tell` gets each at once."""
    began_s = run.clock.now()
    for section in sections:
        limit_s = run.total_s if run.is_dry else section.limit_s  # a busy processor may be slow
        allowed_s = allowance_s(limit_s, run.clock.now() - began_s, run.total_s)
        result = run_section(section, run, allowed_s) if allowed_s else _unrun(section, "no time was left")
        report = replace(report, sections=(*report.sections, result))
        write_report(run.out / RESULTS, report)
        tell(result)
    return report


def run_section(section: Section, run: Run, allowed_s: float) -> SectionResult:
    """One, to its end or for `allowed_s`."""
    if section.is_tests and run.is_dry:
        return _unrun(section, "needs a GPU: tests")
    try:
        with tempfile.TemporaryDirectory(prefix="tandem-gpu-") as name, _environment(section, run, Path(name)) as env:
            return _run(section, run, allowed_s, Path(name), env)
    except DeviceError as error:
        return _unrun(section, str(error))


def command_of(section: Section, values: Path, *, is_dry: bool) -> list[str]:
    """Of the section's process."""
    if section.is_tests:
        plugins = ["-p", "no:cacheprovider", "-p", OUTCOMES, "--outcomes", str(values)]
        if section.num_workers > 1 and find_spec("xdist"):
            plugins += ["-n", str(section.num_workers)]
        return [sys.executable, "-m", "pytest", "-v", "-rfEs", *plugins, section.run]
    return [sys.executable, "-m", "bench.gpu.worker", section.run, str(values), *([DRY] if is_dry else [])]


def status_of(section: Section, exit_status: int, last_line: str) -> SectionStatus:
    """Of a process that has ended by itself. Tests of which none ran were skipped."""
    if section.is_tests:
        if exit_status == NONE_COLLECTED or (exit_status == 0 and "passed" not in last_line):
            return SectionStatus.SKIPPED
    elif exit_status == SKIPPED:
        return SectionStatus.SKIPPED
    return SectionStatus.PASSED if exit_status == 0 else SectionStatus.FAILED


def _run(section: Section, run: Run, allowed_s: float, folder: Path, env: Mapping[str, str]) -> SectionResult:
    values, output = folder / "values.json", folder / "output.txt"
    began_s = run.clock.now()
    exit_status = _wait(command_of(section, values, is_dry=run.is_dry), allowed_s, output, env)
    text = output.read_text(errors="replace")
    _keep(run.out / LOG, section, text)
    last_line = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    timed_out = exit_status is None
    status = SectionStatus.TIMED_OUT if exit_status is None else status_of(section, exit_status, last_line)
    found = read_values(values) | ({"summary": last_line} if section.is_tests else {})
    reason = f"after {allowed_s:.0f} s" if timed_out else last_line
    return SectionResult(
        section.name,
        section.question,
        status,
        round(run.clock.now() - began_s, 1),
        "" if status is SectionStatus.PASSED else reason,
        found,
    )


def _wait(command: list[str], allowed_s: float, output: Path, env: Mapping[str, str]) -> int | None:
    """The exit status; None when the time was up and the process, and whatever it started, was ended."""
    with output.open("wb") as sink:
        process = subprocess.Popen(  # noqa: S603 - our own modules
            command, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=dict(env),
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(allowed_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def _environment(section: Section, run: Run, folder: Path) -> Iterator[Mapping[str, str]]:
    """A daemon of its own for a section that needs MPS; no section meets another's. DeviceError: it does not start."""
    environ = _found_by_children(os.environ)
    control = MpsControl(MpsDirectories(folder / "pipe", folder / "log"), environ)
    client = {**environ, **control.directories.environment()}
    if section.surroundings is Surroundings.PLAIN or run.is_dry or not _is_served(control, client, section):
        yield {**environ, ENV_PIPE_DIRECTORY: NOWHERE}
        return
    try:
        yield client
    finally:
        _stop(control)


def _found_by_children(environ: Mapping[str, str]) -> dict[str, str]:
    """With the places of this tree and of the driver's programs."""
    places = (("PYTHONPATH", str(ROOT), environ.get("PYTHONPATH")), ("PATH", environ.get("PATH"), DRIVER_PROGRAMS))
    return {**environ, **{name: os.pathsep.join(filter(None, paths)) for name, *paths in places}}


def _is_served(control: MpsControl, client: Mapping[str, str], section: Section) -> bool:
    """Starts the daemon; a daemon alone is not enough. DeviceError: it does not serve a section that needs it."""
    try:
        control.start()
        search = look_from_child(client)
        if search.gpu is None or not search.gpu.has_mps:
            _stop(control)
            raise DeviceError(f"MPS: a daemon starts and serves nobody: {search.reason or 'attribute 133 is 0'}")
    except DeviceError:
        if section.surroundings is Surroundings.MPS:
            raise
        return False
    return True


def _stop(control: MpsControl) -> None:
    with contextlib.suppress(DeviceError):
        control.stop()


def _keep(log: Path, section: Section, text: str) -> None:
    with log.open("a") as sink:
        sink.write(f"===== {section.name}\n{text}\n")


def _unrun(section: Section, reason: str) -> SectionResult:
    return SectionResult(section.name, section.question, SectionStatus.SKIPPED, 0.0, reason)
