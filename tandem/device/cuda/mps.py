"""MPS's control daemon, spoken to as its manual says: one command a line on the standard input of its own program.

A client that is killed in the middle of its work takes every other client of the GPU with it; one that is ended through
the daemon first does not.
"""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tandem.errors import DeviceError

CONTROL_PROGRAM = "nvidia-cuda-mps-control"
ENV_PIPE_DIRECTORY = "CUDA_MPS_PIPE_DIRECTORY"
ENV_LOG_DIRECTORY = "CUDA_MPS_LOG_DIRECTORY"
DEFAULT_LOG_DIRECTORY = "/var/log/nvidia-mps"
CALL_TIMEOUT_S = 30.0
QUIT_TIMEOUT_S = 10  # of servers whose clients do not end


@dataclass(frozen=True, slots=True)
class MpsDirectories:
    """Where a daemon and its clients meet, and where it logs. Clients of another pipe directory run without MPS."""

    pipe: Path
    log: Path

    def environment(self) -> dict[str, str]:
        """For the daemon, and for every process that is to be its client."""
        return {ENV_PIPE_DIRECTORY: str(self.pipe), ENV_LOG_DIRECTORY: str(self.log)}


class MpsControl:
    """The daemon of those directories, whether it runs or not."""

    def __init__(self, directories: MpsDirectories, environ: Mapping[str, str], program: str = CONTROL_PROGRAM) -> None:
        """`environ`: of the calling process, for the daemon and the program that speaks to it."""
        self.directories = directories
        self._environ = {**environ, **directories.environment()}
        self._program = program

    def is_running(self) -> bool:
        """Whether it answers."""
        try:
            self._ask("get_server_list")
        except DeviceError:
            return False
        return True

    def start(self) -> None:
        """Starts the daemon; it starts a server when the first client comes. DeviceError, with where it says why."""
        for folder in (self.directories.pipe, self.directories.log):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Its output is not read: the daemon may keep hold of it, and logs in its own directory.
        if self._run(["-d"], "", subprocess.DEVNULL).returncode != 0:
            raise DeviceError(f"MPS: {self._program} -d did not start; see {self.directories.log}/control.log")

    def stop(self) -> None:
        """Ends the daemon and its servers. DeviceError when it does not answer."""
        self._ask(f"quit -t {QUIT_TIMEOUT_S}")

    def server_pids(self) -> tuple[int, ...]:
        """One a user who has clients. DeviceError when it does not answer."""
        return _pids(self._ask("get_server_list"))

    def client_pids(self, server_pid: int) -> tuple[int, ...]:
        """Processes that have used CUDA and not ended. DeviceError when it does not answer."""
        return _pids(self._ask(f"get_client_list {server_pid}"))

    def end_client(self, pid: int) -> bool:
        """Ends what a client has on the GPU, so that it can be killed. False when it is no client; DeviceError."""
        for server_pid in self.server_pids():
            if pid in self.client_pids(server_pid):
                self._ask(f"terminate_client {server_pid} {pid}")
                return True
        return False

    def _ask(self, command: str) -> str:
        done = self._run([], command + "\n", subprocess.PIPE)
        if done.returncode != 0:
            said = " ".join((done.stderr or done.stdout).split())
            raise DeviceError(f"MPS: {command}: {said or f'status {done.returncode}'}")
        return done.stdout

    def _run(self, arguments: list[str], text: str, output: int) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(  # noqa: S603 - NVIDIA's program, found on the user's path
                [self._program, *arguments],
                input=text, stdout=output, stderr=output, text=True, check=False,
                env=self._environ, timeout=CALL_TIMEOUT_S,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DeviceError(f"MPS: {error}") from error


def client_control(environ: Mapping[str, str]) -> MpsControl | None:
    """The daemon that a process with this environment is a client of; None where it names none, or has no program."""
    program = shutil.which(CONTROL_PROGRAM, path=environ.get("PATH"))
    if program is None or ENV_PIPE_DIRECTORY not in environ:
        return None
    log = Path(environ.get(ENV_LOG_DIRECTORY, DEFAULT_LOG_DIRECTORY))
    return MpsControl(MpsDirectories(Path(environ[ENV_PIPE_DIRECTORY]), log), environ, program)


def _pids(answer: str) -> tuple[int, ...]:
    """Numbers that stand alone on a line; the daemon says other things in words."""
    return tuple(int(line) for line in answer.split("\n") if line.strip().isdecimal())
