"""A process of ours beside a section's, which is told lines and answers with lines: a word, then JSON."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from bench.gpu.partitions import BackendChoice

READY = "ready"  # said once the model is there
END_S = 4.0  # a step, and what the driver then does


class PartnerError(Exception):
    """It ended before it answered."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a partner is started with: its share's backend, and how much of the model's layers it has (0: all)."""

    backend: BackendChoice
    num_layers: int = 0

    @property
    def text(self) -> str:
        """For a command line."""
        return json.dumps(asdict(self))


def load_of(text: str) -> Load:
    """What `Load.text` said."""
    fields = json.loads(text)
    return Load(BackendChoice(**fields["backend"]), fields["num_layers"])


@dataclass(frozen=True, slots=True)
class Answer:
    """A line of a partner."""

    word: str
    value: Any


class Partner:
    """One, from the process that measures."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def say(self, line: str) -> None:
        """Does not wait for it. PartnerError."""
        assert self._process.stdin
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended(line) from error

    def hear(self, *words: str) -> Answer:
        """Its next answer that begins with one of them; what else it prints is passed over. PartnerError."""
        assert self._process.stdout
        for line in self._process.stdout:
            word, _, rest = line.partition(" ")
            if word in words:
                return Answer(word, json.loads(rest))
        raise self._ended(" or ".join(words))

    def end(self) -> None:
        """It goes by itself when it has done what it was told: who is killed in the middle may take others along."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has gone already
            self._process.stdin.close()

    def _ended(self, instead: str) -> PartnerError:
        return PartnerError(f"a process of the load ended with {self._process.wait()} instead of {instead}")


@contextmanager
def partner(module: str, load: Load, environ: Mapping[str, str] = os.environ) -> Iterator[Partner]:
    """Started, and ended on the way out."""
    command = [sys.executable, "-m", module, load.text]
    with subprocess.Popen(  # noqa: S603 - our own modules
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environ)
    ) as process:
        started = Partner(process)
        try:
            yield started
        finally:
            started.end()
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            process.kill()


def tell(word: str, value: Any) -> None:
    """On a partner's side: an answer."""
    sys.stdout.write(f"{word} {json.dumps(value)}\n")
    sys.stdout.flush()


def is_told() -> bool:
    """On a partner's side: whether a line waits to be read, or there will be none any more."""
    return bool(select.select([sys.stdin], [], [], 0)[0])
