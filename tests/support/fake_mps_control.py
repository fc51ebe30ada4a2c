"""A stand-in for nvidia-cuda-mps-control that keeps to its manual. Its state is `state.json` in the pipe directory.

The daemon is a state, not a process. Commands come one a line on standard input; what is wrong with one is said on
standard output, with status 0, as the manual has it. A client whose work is ended gets SIGUSR1: the stand-in for its
next CUDA call's failure.
"""

import json
import os
import shlex
import signal
import sys
from pathlib import Path

PROGRAM = "nvidia-cuda-mps-control"
STATE = "state.json"


def install(folder: Path) -> Path:
    """Puts the program into a folder, for a PATH; the folder."""
    program = folder / PROGRAM
    own = shlex.join([sys.executable, "-P", __file__])  # a shebang's path has no spaces
    program.write_text(f'#!/bin/sh\nexec {own} "$@"\n')
    program.chmod(0o755)
    return folder


def connect(pipe_directory: Path, server_pid: int, *client_pids: int) -> None:
    """As if those processes had begun to use CUDA."""
    state = read(pipe_directory)
    state["servers"][str(server_pid)] = list(client_pids)
    write(pipe_directory, state)


def read(pipe_directory: Path) -> dict:
    return json.loads((pipe_directory / STATE).read_text())


def write(pipe_directory: Path, state: dict) -> None:
    (pipe_directory / STATE).write_text(json.dumps(state))


def answer(state: dict, command: str) -> str:
    match command.split():
        case ["get_server_list"]:
            return "".join(f"{server}\n" for server in state["servers"])
        case ["get_client_list", server] if server in state["servers"]:
            return "".join(f"{client}\n" for client in state["servers"][server])
        case ["terminate_client", server, client] if int(client) in state["servers"].get(server, []):
            state["servers"][server].remove(int(client))
            state["terminated"].append(int(client))
            os.kill(int(client), signal.SIGUSR1)
            return ""
        case ["quit", "-t", seconds] if seconds.isdecimal():
            state["running"] = False
            return ""
    return f"Invalid command: {command}\n"


def start(pipe_directory: Path, log_directory: Path) -> int:
    if not pipe_directory.is_dir() or not log_directory.is_dir():
        return 1
    if (pipe_directory / STATE).exists() and read(pipe_directory)["running"]:
        sys.stderr.write("An instance of this daemon is already running\n")
        return 1
    write(pipe_directory, {"running": True, "servers": {}, "terminated": []})
    return 0


def main() -> int:
    pipe_directory = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
    if sys.argv[1:] == ["-d"]:
        return start(pipe_directory, Path(os.environ["CUDA_MPS_LOG_DIRECTORY"]))
    if sys.argv[1:]:
        return 1
    for command in filter(None, (line.strip() for line in sys.stdin)):
        if not (pipe_directory / STATE).exists() or not read(pipe_directory)["running"]:
            sys.stderr.write("Cannot find MPS control daemon process\n")
            return 1
        state = read(pipe_directory)
        sys.stdout.write(answer(state, command))
        write(pipe_directory, state)
    return 0


if __name__ == "__main__":
    sys.exit(main())
