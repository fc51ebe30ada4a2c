"""Another process in this one's place, for a share that only a process started anew can have.

Under a steward a spare worker is started while this one serves; when it serves itself, this one hands back what it has
and ends. One that does not come to serve is asked for again, later each time. Without a steward nobody starts a spare
one: this one hands back what it has, and ends with the status that asks for a new process.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from tandem.phase.lifecycle import EXIT_OK, EXIT_START_AGAIN
from tandem.phase.retirement import Retirement
from tandem.phase.start_environment import StartEnvironment
from tandem.phase.stewardship import ENV_ROLE, ENV_STEWARD_FD, Role, Word
from tandem.types import Phase

_log = structlog.get_logger()


FIRST_RETRY_S = 30.0
LONGEST_RETRY_S = 480.0


@dataclass(slots=True)
class _Wish:
    """A successor that has not come yet."""

    environment: Mapping[str, str]
    on_failure: Callable[[], None]
    retry_s: float
    retry: asyncio.TimerHandle | None = None  # None: it may be on its way


class StewardPort(Protocol):
    """The way to the steward."""

    def say(self, word: Word) -> None:
        """Never blocks; lost when the steward is gone."""
        ...


class Succession:
    """What this process has to do with those before and after it."""

    def __init__(
        self,
        start: StartEnvironment,
        started_with: Mapping[str, str],
        retirement: Retirement,
        steward: StewardPort | None,
        *,
        first_retry_s: float = FIRST_RETRY_S,
    ) -> None:
        """`started_with`: what this process found in `start`."""
        self._first_retry_s = first_retry_s
        self._start = start
        self._started_with = started_with
        self._retirement = retirement
        self._steward = steward
        self._wish: _Wish | None = None

    @property
    def has_steward(self) -> bool:
        """Whether somebody starts a successor while this process serves."""
        return self._steward is not None

    def want(self, environment: Mapping[str, str], on_failure: Callable[[], None]) -> None:
        """A process started with `environment` should be in this one's place; see `tandem.phase.share.Successors`."""
        if environment == self._started_with:
            _log.error("successor.useless", environment=dict(environment))
            return
        self.need_none()
        self._wish = _Wish(environment, on_failure, self._first_retry_s)
        self._ask(self._wish)

    def need_none(self) -> None:
        """What is wanted of another process is not any more. One that has been started may still come to serve."""
        if self._wish is not None and self._wish.retry is not None:
            self._wish.retry.cancel()
        self._wish = None

    def serves(self) -> None:
        """Clients reach this process."""
        if self._steward is not None:
            self._steward.say(Word.SERVING)

    def hear(self, word: Word) -> None:
        """What the steward says. After a successor that failed, a new start is as this one's was."""
        if word is Word.RETIRE:
            self._retirement.begin(EXIT_OK)
        elif word is Word.NO_SUCCESSOR:
            self._leave(self._started_with)
            self._on_failure()

    def bereft(self) -> None:
        """The steward is gone: the next one starts a worker, which needs the place."""
        self._retirement.begin(EXIT_START_AGAIN)

    def _ask(self, wish: _Wish) -> None:
        wish.retry = None
        if not self._leave(wish.environment):
            return
        _log.info("successor.wanted", environment=dict(wish.environment), has_steward=self._steward is not None)
        if self._steward is None:
            self._retirement.begin(EXIT_START_AGAIN)
        else:
            self._steward.say(Word.SUCCESSOR_WANTED)

    def _on_failure(self) -> None:
        """Of the process that was asked for last, or of one before it."""
        wish = self._wish
        _log.error("successor.failed", retry_s=wish.retry_s if wish else None)
        if wish is None or wish.retry is not None:
            return
        wish.on_failure()
        wish.retry = asyncio.get_running_loop().call_later(wish.retry_s, self._ask, wish)
        wish.retry_s = min(2 * wish.retry_s, LONGEST_RETRY_S)

    def _leave(self, environment: Mapping[str, str]) -> bool:
        """For the next process; whether it could be written."""
        try:
            self._start.write(environment)
        except OSError as error:
            _log.error("start_environment.not_written", error=str(error))
            return False
        return True


class StewardLink:
    """This process's end of the steward's socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def say(self, word: Word) -> None:
        """See `StewardPort`."""
        if not self._writer.is_closing():
            self._writer.write(f"{word}\n".encode())

    async def run(self, succession: Succession) -> None:
        """Passes on what the steward says, until it is gone."""
        with contextlib.suppress(ConnectionError):
            async for line in self._reader:
                succession.hear(Word(line.decode().strip()))
        succession.bereft()


class Ancestry:
    """How this process was started: its role, its steward, and what the process before it left."""

    def __init__(self, run_dir: Path, phase: Phase, environ: MutableMapping[str, str]) -> None:
        """Puts what was left into `environ`: before anything reads it that the share depends on."""
        self.role = Role(environ.get(ENV_ROLE, Role.FIRST))
        self._start = StartEnvironment(run_dir, phase)
        self._started_with = self._start.read()
        self._steward_fd = int(environ[ENV_STEWARD_FD]) if ENV_STEWARD_FD in environ else None
        environ.update(self._started_with)

    async def open_steward(self) -> StewardLink | None:
        """None where there is none."""
        if self._steward_fd is None:
            return None
        return StewardLink(*await asyncio.open_connection(sock=socket.socket(fileno=self._steward_fd)))

    def succession(self, retirement: Retirement, steward: StewardPort | None) -> Succession:
        """Of this process."""
        return Succession(self._start, self._started_with, retirement, steward)
