"""Other servers with OpenAI's HTTP API, started as their users start them."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tandem.errors import ConfigError, NotReadyError

START_TIMEOUT_S = 600.0  # vLLM compiles
END_TIMEOUT_S = 30.0
POLL_S = 0.2
LAST_CHARS = 2000
VLLM_KV_GIB = "2"  # its default takes a share of the machine
TRANSFORMERS_SCRIPT = Path(__file__).with_name("transformers_server.py")


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """What a peer is started with. `model` is what it can read: a GGUF file for llama.cpp, a folder for the others."""

    model: str
    num_threads: int
    num_slots: int  # sequences at once
    max_context_tokens: int  # of each
    llama_server: str = "llama-server"
    python: str = "python3"  # of the environment that has vLLM and transformers
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PeerProcess:
    """How one peer is run."""

    command: tuple[str, ...]
    environment: dict[str, str]


def llama_server(options: PeerOptions, port: int) -> PeerProcess:
    """llama.cpp's server: its context is shared by the slots."""
    sizes = {
        "--threads": options.num_threads,
        "--threads-batch": options.num_threads,
        "--parallel": options.num_slots,
        "--ctx-size": options.num_slots * options.max_context_tokens,
    }
    flags = [part for flag, value in sizes.items() for part in (flag, str(value))]
    command = [options.llama_server, "--model", options.model, "--host", "127.0.0.1", "--port", str(port), *flags]
    return PeerProcess((*command, *options.extra_args), {})


def vllm(options: PeerOptions, port: int) -> PeerProcess:
    """vLLM's server; the environment variables are those of its CPU build."""
    sizes = {"--max-model-len": options.max_context_tokens, "--max-num-seqs": options.num_slots}
    flags = [part for flag, value in sizes.items() for part in (flag, str(value))]
    command = [options.python, "-m", "vllm.entrypoints.openai.api_server", "--model", options.model]
    address = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{options.num_threads - 1}",
        "VLLM_CPU_KVCACHE_SPACE": VLLM_KV_GIB,
    }
    return PeerProcess((*command, *address, *flags, *options.extra_args), environment)


def transformers(options: PeerOptions, port: int) -> PeerProcess:
    """Our own server around transformers' continuous batching."""
    sizes = {
        "--threads": options.num_threads,
        "--max-sequences": options.num_slots,
        "--max-context": options.max_context_tokens,
        "--port": port,
    }
    flags = [part for flag, value in sizes.items() for part in (flag, str(value))]
    command = (options.python, str(TRANSFORMERS_SCRIPT), "--model", options.model)
    return PeerProcess((*command, *flags, *options.extra_args), {})


PEERS: dict[str, Callable[[PeerOptions, int], PeerProcess]] = {
    "llama-server": llama_server,
    "vllm": vllm,
    "transformers": transformers,
}


@contextlib.contextmanager
def running_peer(name: str, options: PeerOptions, log_path: Path) -> Iterator[str]:
    """Its address, once it is healthy. ConfigError: its program is not there. NotReadyError: it ended, or is late."""
    port = free_port()
    peer = PEERS[name](options, port)
    if shutil.which(peer.command[0]) is None:
        raise ConfigError("deployment", f"{name}: no program {peer.command[0]!r}; see --llama-server and --peer-python")
    with log_path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - the user's own command
            peer.command, stdout=log, stderr=log, env={**os.environ, **peer.environment}, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_healthy(name, address, process, log_path)
        yield address
    finally:
        _end(process)


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def served_model(address: str) -> str:
    """The name that the server at `address` knows its model by. NotReadyError."""
    try:
        with urllib.request.urlopen(f"{address}/v1/models", timeout=END_TIMEOUT_S) as answer:  # noqa: S310
            return str(json.load(answer)["data"][0]["id"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise NotReadyError(f"{address} does not list its models: {error}") from error


def _wait_healthy(name: str, address: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not _healthy(address):
        if process.poll() is not None or time.monotonic() > deadline_s:
            log = log_path.read_text(errors="replace")[-LAST_CHARS:]
            raise NotReadyError(f"{name} does not serve (status {process.poll()}):\n{log}")
        time.sleep(POLL_S)


def _healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=END_TIMEOUT_S) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """With its children: vLLM has several, all in the session that it was started in."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
