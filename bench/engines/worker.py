"""An engine in a process of its own, kept ready between rounds: it reads cases and writes seconds, a line each.

A case is a line of JSON on its standard input. What it answers begins with `MARK`; other lines are the library's own.
"""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.engines.cases import Case
from tandem.errors import NotReadyError

MARK = "@"
READY = "ready"
END_TIMEOUT_S = 30.0
LAST_CHARS = 2000


class Worker:
    """An `Engine`. The process is its opener's."""

    def __init__(self, name: str, process: subprocess.Popen[str], log_path: Path) -> None:
        self._name = name
        self._process = process
        self._log_path = log_path

    def wait_ready(self) -> None:
        """NotReadyError, with what the process wrote, when it ended instead."""
        self._answer()

    def seconds(self, case: Case) -> float:
        """See `Engine`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asdict(case)) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return line.removeprefix(MARK).strip()
        raise self._ended()

    def _ended(self) -> NotReadyError:
        log = self._log_path.read_text(errors="replace")[-LAST_CHARS:]
        return NotReadyError(f"{self._name} has ended:\n{log}")


@contextlib.contextmanager
def running_worker(
    name: str, command: Sequence[str], environment: Mapping[str, str], log_path: Path
) -> Iterator[Worker]:
    """Ready when entered; its end is the end of its input. NotReadyError."""
    with (
        log_path.open("wb") as log,
        subprocess.Popen(  # noqa: S603 - our own scripts, run by the user's interpreters
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=dict(environment), text=True
        ) as process,
    ):
        worker = Worker(name, process, log_path)
        try:
            worker.wait_ready()
            yield worker
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
