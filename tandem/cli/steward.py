"""The steward of a phase whose share is fixed at a process's start: ``python -m tandem.cli.steward PHASE FLAGS...``

supervisord sees one process. It starts the phase's worker with those flags and, when that one's share needs a new
process, a spare worker beside it, which takes its place (`tandem.phase.succession`), or is ended when it does not serve
in time. It restarts nobody: when no worker is left it ends with the last one's status, and supervisord starts it again.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import setproctitle
import structlog

from tandem.cli.staff import Effect, End, Kill, Staff, Start, Tell, Terminate
from tandem.config.load import load_config
from tandem.config.settings import PhaseConfig
from tandem.errors import ConfigError
from tandem.phase.stewardship import ENV_ROLE, ENV_STEWARD_FD, Role, Word
from tandem.telemetry.logs import configure_logging
from tandem.types import Phase

EXIT_USAGE = 2
EXIT_NOT_STARTED = 71  # EX_OSERR of sysexits.h
SIGNALLED = 128  # and the signal's number, as shells have it

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Worker:
    process: asyncio.subprocess.Process
    writer: asyncio.StreamWriter


class Steward:
    """Carries out what `Staff` decides."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], spare_timeout_s: float) -> None:
        """`command` starts a worker; `environ` is that of every worker, beside what a steward adds.

        A spare worker that does not serve after `spare_timeout_s` is ended; 0: never.
        """
        self._spare_timeout_s = spare_timeout_s
        self._command = tuple(command)
        self._environ = dict(environ)
        self._staff = Staff()
        self._workers: dict[int, _Worker] = {}
        self._watches: set[asyncio.Task[None]] = set()
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Until no worker is left; the exit status."""
        self._do(self._staff.open())
        return await self._status

    def stop(self) -> None:
        """Ends all workers."""
        self._stopping.set()
        self._do(self._staff.end())

    def _do(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Start(worker_id, role):
                    self._begin(worker_id, role)
                case Tell(worker_id, word):
                    self._workers[worker_id].writer.write(f"{word}\n".encode())
                case Terminate(worker_id):
                    self._terminate(worker_id)
                case Kill(worker_id):
                    self._kill(worker_id)
                case End(status):
                    self._status.set_result(status)

    def _begin(self, worker_id: int, role: Role) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._attend(worker_id, role))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)
        if role is Role.SPARE and self._spare_timeout_s:
            timer = loop.call_later(self._spare_timeout_s, lambda: self._do(self._staff.late(worker_id)))
            task.add_done_callback(lambda _: timer.cancel())

    async def _attend(self, worker_id: int, role: Role) -> None:
        """From a worker's start to its end."""
        status = EXIT_NOT_STARTED
        try:
            status = await self._listen(worker_id, role)
        except OSError as error:
            _log.error("worker.not_started", worker_id=worker_id, error=str(error))
        self._workers.pop(worker_id, None)
        _log.info("worker.ended", worker_id=worker_id, role=role, status=status)
        self._do(self._staff.ended(worker_id, status))

    async def _listen(self, worker_id: int, role: Role) -> int:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            with theirs:
                process = await self._spawn(theirs.fileno(), role)
            _log.info("worker.started", worker_id=worker_id, role=role, pid=process.pid)
            self._workers[worker_id] = _Worker(process, writer)
            if self._stopping.is_set():
                self._terminate(worker_id)
            with contextlib.suppress(ConnectionError):  # a worker that was killed with a word unread
                async for line in reader:
                    self._do(self._staff.heard(worker_id, Word(line.decode().strip())))
            status = await process.wait()
        finally:
            writer.close()
        return status if status >= 0 else SIGNALLED - status

    async def _spawn(self, steward_fd: int, role: Role) -> asyncio.subprocess.Process:
        environ = {**self._environ, ENV_STEWARD_FD: str(steward_fd), ENV_ROLE: role}
        return await asyncio.create_subprocess_exec(*self._command, pass_fds=[steward_fd], env=environ)

    def _terminate(self, worker_id: int) -> None:
        worker = self._workers.get(worker_id)
        if worker is not None and worker.process.returncode is None:
            worker.process.terminate()

    def _kill(self, worker_id: int) -> None:
        worker = self._workers.get(worker_id)
        if worker is not None and worker.process.returncode is None:
            _log.error("worker.late", worker_id=worker_id, pid=worker.process.pid, timeout_s=self._spare_timeout_s)
            worker.process.kill()


async def attend(command: Sequence[str], environ: Mapping[str, str], spare_timeout_s: float) -> int:
    """Starts `command` and whoever comes after it; SIGTERM and SIGINT end them all. The exit status."""
    steward = Steward(command, environ, spare_timeout_s)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, steward.stop)
    return await steward.run()


def _config(phase: Phase, flags: Sequence[str]) -> PhaseConfig:
    if phase is Phase.PREFILL:
        return load_config("prefill", flags, os.environ)
    return load_config("decode", flags, os.environ)


def main(argv: Sequence[str]) -> int:
    """The exit status: the last worker's, or 2 for a configuration that is refused, with the reason on stderr."""
    phase, *flags = argv
    try:
        config = _config(Phase(phase), flags)
    except ConfigError as error:
        sys.stderr.write(f"tandem-{phase}: {error}\n")
        return EXIT_USAGE
    configure_logging(phase, config.log_level)
    setproctitle.setproctitle(f"tandem-{phase}-steward")
    command = [sys.executable, "-P", "-m", f"services.{phase}.main", *flags]
    return asyncio.run(attend(command, os.environ, config.spare_timeout_s))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
