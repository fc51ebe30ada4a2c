"""The command line over a deployment of its own, as a person types it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tandem.cli.supervision import Supervisor
from tandem.client import Client
from tests.support.sockets import free_port

PROMPT = "The capital of France is"
SERVICES = ("memd", "prefill", "decode", "controller", "gateway")
GREEDY = ("--max-tokens", "8", "--temperature", "0")
COMMAND_TIMEOUT_S = 240
BACK_WITHIN_S = 60  # generous: the machine may be loaded


class Shell:
    """Runs `tandem` with the environment of one deployment."""

    def __init__(self, run_dir: Path, port: int) -> None:
        self.run_dir = run_dir
        self.port = port
        ours = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
        self.environment = {
            **ours,
            "TANDEM_RUN_DIR": str(run_dir),
            "TANDEM_GATEWAY_PORT": str(port),
            "TANDEM_MEMD_KV_BYTES": str(128 << 20),
        }

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tandem.cli.main", *words],
            env=self.environment, input=stdin, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S,
        )  # fmt: skip

    def ok(self, *words: str, stdin: str = "") -> str:
        result = self.run(*words, stdin=stdin)
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
        return result.stdout

    def pids(self) -> dict[str, int]:
        rows = [line.split() for line in self.ok("status").splitlines()]
        return {row[0]: int(row[-2]) for row in rows if row and row[0] in SERVICES and row[-2].isdigit()}

    def events(self, service: str) -> list[str]:
        lines = (self.run_dir / "logs" / f"{service}.log").read_text().splitlines()
        return [json.loads(line)["event"] for line in lines]


@pytest.fixture(scope="module")
def home(default_model_path):
    """The deployment, which is started by the first test that needs it."""
    with tempfile.TemporaryDirectory(prefix="tandem cli ") as name:
        shell = Shell(Path(name) / "run", free_port())
        yield shell
        shell.run("down")


@pytest.fixture(scope="module")
def up_output(home):
    return home.ok("up")


@pytest.fixture
def shell(home, up_output):
    """The deployment, running whatever the test before did to it."""
    if home.run("status").returncode != 0:
        home.ok("up")
    return home


def test_up_shows_progress_an_answer_its_speed_and_how_to_go_on(home, up_output):
    for service in SERVICES:
        assert re.search(rf"^{service} +serving$", up_output, re.MULTILINE)
    assert "Paris" in up_output
    assert re.search(r"first token after \d+ ms, then [\d.]+ tokens/s", up_output)
    assert f'grpcurl -plaintext -d \'{{"text": "{PROMPT}"}}\' 127.0.0.1:{home.port}' in up_output


def test_the_python_lines_that_up_shows_run_as_they_are(shell, up_output):
    lines = re.search(r"<<'END'\n(.*)END\n", up_output, re.DOTALL).group(1)
    result = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout


def test_up_again_starts_nothing_and_shows_an_answer(shell):
    before = shell.pids()
    output = shell.ok("up")
    assert "already running" in output
    assert "Paris" in output
    assert shell.pids() == before


def test_up_starts_what_an_interrupted_restart_has_left_stopped(shell):
    before = shell.pids()
    Supervisor(shell.run_dir).stop_service("controller")
    shell.ok("up")
    after = shell.pids()
    assert after.pop("controller") != before.pop("controller")
    assert after == before


def test_up_with_other_settings_is_refused(shell):
    result = shell.run("up", "--port", str(free_port()))
    assert result.returncode == 1
    assert "runs with other settings" in result.stderr


def test_status_has_every_service_and_figure(shell):
    status = shell.ok("status")
    assert set(shell.pids()) == set(SERVICES)
    assert status.count("serving") == 5
    for word in ("waiting", "tokens/s", "blocks leased", "weights"):
        assert word in status
    assert re.search(r"split +prefill \d+ % · decode \d+ %", status), "whatever the controller has made of it by now"


def test_top_shows_one_frame_of_everybody(shell):
    frame = shell.ok("top", "--once")
    assert re.search(r"prefill \d+, decode \d+ %", frame)
    for word in ("SLO 2000 ms", "0 waiting", "requests/s", "leased"):
        assert word in frame
    assert "does not answer" not in frame


def test_services_have_names_of_their_own(shell):
    for service, pid in shell.pids().items():
        assert psutil.Process(pid).cmdline()[0].startswith(f"tandem-{service}")


def test_generate_streams_the_completion(shell):
    assert "Paris" in shell.ok("generate", PROMPT, *GREEDY)
    assert shell.ok("generate", "-", *GREEDY, stdin=PROMPT) == shell.ok("generate", PROMPT, *GREEDY)


def test_a_refused_request_is_one_line_with_the_field(shell):
    result = shell.run("generate", PROMPT, "--top-p", "2")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: sampling.top_p")
    assert result.stderr.count("\n") == 1


def test_chat_through_a_pipe_keeps_the_conversation_until_reset(shell):
    def last_answer(turns: str) -> str:
        return shell.ok("chat", "--temperature", "0", "--max-tokens", "24", "--stop", "\n", stdin=turns).splitlines()[
            -1
        ]

    fresh = last_answer("What is my name?\n")
    assert last_answer("My name is Ada.\nWhat is my name?\n") != fresh
    assert last_answer("My name is Ada.\n/reset\nWhat is my name?\n/quit\nnot asked any more\n") == fresh


@pytest.mark.parametrize("service", ["decode", "memd", "prefill", "controller"])
def test_restart_drains_says_how_long_it_took_and_loads_nothing(shell, service):
    before, num_ended = shell.pids(), shell.events(service).count("service.stopped")
    output = shell.ok("restart", service)
    assert re.search(rf"{service} stopped in [\d.]+ s; all serving [\d.]+ s later", output)
    after = shell.pids()
    assert after.pop(service) != before.pop(service)
    assert after == before
    assert shell.events(service).count("service.stopped") == num_ended + 1
    assert shell.events("memd").count("model.loaded") == 1


def test_a_gateway_that_is_restarted_first_ends_what_it_has(shell):
    with Client(f"127.0.0.1:{shell.port}") as client:
        stream = client.generate(PROMPT, max_tokens=40, temperature=0, ignore_eos=True)
        pieces = [next(stream)]
        output = shell.ok("restart", "gateway")
        pieces.extend(stream)
        assert sum(len(piece.token_ids) for piece in pieces) == 40
        assert re.search(r"gateway stopped in [\d.]+ s; all serving [\d.]+ s later", output)
        assert client.generate_once(PROMPT, max_tokens=1, temperature=0)[0].token_ids == pieces[0].token_ids[:1]


@pytest.mark.parametrize("service", ["decode", "prefill"])
def test_a_phase_killed_while_idle_comes_back_by_itself(shell, service):
    expected = shell.ok("generate", PROMPT, *GREEDY)
    pid = shell.pids()[service]
    os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + BACK_WITHIN_S
    while (new := shell.pids().get(service, pid)) == pid or "serving" not in shell.ok("status"):
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    shell.ok("up")
    assert new != pid
    assert shell.ok("generate", PROMPT, *GREEDY) == expected
    assert shell.events("memd").count("model.loaded") == 1


def test_logs_of_one_and_of_all(shell):
    assert "model.loaded" in shell.ok("logs", "memd", "-n", "1000")
    everything = shell.ok("logs", "-n", "1000")
    for service in SERVICES:
        assert f" {service} " in everything


def test_up_over_a_killed_supervisor_ends_what_it_left(shell):
    before = shell.pids()
    daemon = psutil.Process(int((shell.run_dir / "supervisord.pid").read_text()))
    daemon.kill()
    daemon.wait(10)
    assert "ending a service that lost its supervisor" in shell.ok("up")
    after = shell.pids()
    assert set(after) == set(before)
    assert not set(after.values()) & set(before.values())


def test_down_ends_everything_and_twice_is_no_failure(shell):
    processes = [psutil.Process(pid) for pid in shell.pids().values()]
    assert "all services have ended" in shell.ok("down")
    assert not any(process.is_running() for process in processes)
    assert not (shell.run_dir / "memd.keeper.sock").exists()
    assert "nothing runs" in shell.ok("down")
    assert shell.run("status").returncode == 1


def test_what_keeps_a_service_from_starting_is_said_and_nothing_is_left_running(home, tmp_path):
    home.run("down")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = tmp_path / "tandem.toml"
        config.write_text(f"[gateway]\nmetrics_port = {taken.getsockname()[1]}\n")
        result = home.run("up", "--config", str(config))
    assert result.returncode == 1
    assert "gateway does not stay up: metrics_port: cannot listen" in result.stderr
    assert home.run("status").returncode == 1
