"""Two replicas on one machine, as `tandem up --replicas 2` starts them."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tandem.cli.asking import ask_memd
from tandem.client import Client
from tandem.config.local_replicas import replica_dir
from tandem.config.settings import MODES
from tandem.rpc.guard import listener_pid

PROMPTS = ([5, 6, 7], [9, 8, 7, 6], [11, 12], [20, 21, 22])
NUM_TOKENS = 200
TIMEOUT_S = 240


class Shell:
    """Runs `tandem` on one run directory."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        ours = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
        own = {"RUN_DIR": str(run_dir), "MEMD_KV_BYTES": str(16 << 20), "MEMD_DTYPE": "float32"}
        own["GATEWAY_ROUTER"] = "round-robin"
        self.environment = ours | {f"TANDEM_{name}": value for name, value in own.items()}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tandem.cli.main", *words],
            env=self.environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
        )  # fmt: skip

    def ok(self, *words: str) -> str:
        ended = self.run(*words)
        assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    def pid(self, service: str, replica: int) -> int:
        pid = listener_pid(replica_dir(self.run_dir, replica) / f"{service}.sock")
        assert pid is not None
        return pid

    def processes(self) -> list[psutil.Process]:
        daemon = psutil.Process(int((self.run_dir / "supervisord.pid").read_text()))
        return [daemon, *daemon.children(recursive=True)]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def shell(tiny_model_dir) -> Iterator[Shell]:
    with tempfile.TemporaryDirectory(prefix="tdm") as name:
        shell = Shell(Path(name) / "run")
        shell.ok("up", "--replicas", "2", "--model", str(tiny_model_dir("llama")), "--port", "0")
        yield shell
        shell.run("down")


def becomes(holds: Callable[[], bool]) -> bool:
    """Whether it does in good time."""
    late_s = time.monotonic() + TIMEOUT_S
    while not holds() and time.monotonic() < late_s:
        time.sleep(0.05)
    return holds()


def answer(client: Client, prompt: list[int], begun: threading.Event | None = None) -> list[int]:
    tokens: list[int] = []
    for piece in client.generate(prompt, max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True):
        tokens += piece.token_ids
        if begun:
            begun.set()
    return tokens


def test_a_killed_phase_of_one_replica_changes_no_answer(shell):
    with Client(f"unix:{shell.run_dir}/gateway.sock") as client:
        expected = [answer(client, prompt) for prompt in PROMPTS]
        assert [len(tokens) for tokens in expected] == [NUM_TOKENS] * len(PROMPTS)
        killed = psutil.Process(shell.pid("decode", 1))
        begun = [threading.Event() for _ in PROMPTS]
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            under_way = [pool.submit(answer, client, *each) for each in zip(PROMPTS, begun, strict=True)]
            assert all(each.wait(TIMEOUT_S) for each in begun)
            killed.kill()
            assert [each.result(TIMEOUT_S) for each in under_way] == expected
    log = shell.run_dir / "logs" / "decode-1.log"
    assert becomes(lambda: log.read_text().count('"service.starting"') == 2)


def test_both_replicas_have_computed_and_are_emptied_together(shell):
    memds = [f"unix:{replica_dir(shell.run_dir, replica)}/memd.sock" for replica in (0, 1)]
    assert all(ask_memd(memd).num_cached_blocks for memd in memds)
    assert "blocks are free" in shell.ok("cache", "rm", "--all")
    assert [ask_memd(memd).num_cached_blocks for memd in memds] == [0, 0]


def test_one_replicas_service_is_restarted_alone(shell):
    before = [shell.pid("prefill", replica) for replica in (0, 1)]
    assert "prefill-1 stopped in" in shell.ok("restart", "prefill", "--replica", "1")
    after = [shell.pid("prefill", replica) for replica in (0, 1)]
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_down_leaves_nothing(shell):
    processes = shell.processes()
    assert len(processes) > 2 * len(MODES["semi-pd"])
    assert "all services have ended" in shell.ok("down")
    assert [process for process in processes if is_alive(process)] == []
    assert not list(shell.run_dir.glob("replica-1/*.sock"))
