"""The command as a person types it, as far as no service is needed."""

import socket
import tempfile
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from tandem import __version__
from tandem.cli.failures import ReportingGroup
from tandem.cli.main import main
from tandem.errors import InvalidRequestError


@pytest.fixture
def run_dir(monkeypatch):
    """A deployment that nobody has started, reached by no port."""
    monkeypatch.setenv("TANDEM_GATEWAY_PORT", "0")
    with tempfile.TemporaryDirectory(prefix="tm") as name:
        yield Path(name)


def invoke(*words: object, **options: bytes):
    return CliRunner().invoke(main, [str(word) for word in words], **options)


def test_version():
    assert invoke("--version").output == f"tandem, version {__version__}\n"


def test_every_command_has_help():
    assert set(main.commands) == {
        "up",
        "down",
        "status",
        "top",
        "controller",
        "doctor",
        "generate",
        "keys",
        "chat",
        "restart",
        "logs",
        "model",
        "bench",
        "cache",
    }
    for name in main.commands:
        assert invoke(name, "--help").exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["restart"],
        ["restart", "gpu"],
        ["up", "--port", "70000"],
        ["top", "--interval", "nan"],
        ["top", "--interval", "inf"],
        ["cache", "rm", "abc", "--tenant", "acme"],
        ["cache", "rm", "--salt", "s", "--tenant", "acme"],
    ],
)
def test_wrong_usage_is_status_2(words):
    assert invoke(*words).exit_code == 2


@pytest.mark.parametrize("words", [["status"], ["generate", "hi"], ["restart", "decode"]])
def test_without_a_deployment_there_is_one_line_and_status_1(run_dir, words):
    result = invoke(*words, "--run-dir", run_dir)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("words", "stdin"), [(["generate", "hi"], b""), (["chat"], b"hi\n")])
def test_who_talks_to_a_deployment_that_does_not_run_is_told_what_starts_it(run_dir, words, stdin):
    own = invoke(*words, "--run-dir", run_dir, input=stdin)
    assert own.stderr.startswith("Error: UNAVAILABLE: ")
    assert "`tandem up` starts it" in own.stderr
    elsewhere = invoke(*words, "--run-dir", run_dir, "--address", f"unix:{run_dir}/none.sock", input=stdin)
    assert "none.sock" in elsewhere.stderr
    assert "tandem up" not in elsewhere.stderr


def test_logs_of_what_never_ran_are_a_failure(run_dir):
    result = invoke("logs", "--run-dir", run_dir)
    assert result.exit_code == 1
    assert f"nothing has run in {run_dir}" in result.stderr


def test_down_of_nothing_is_no_failure(run_dir):
    result = invoke("down", "--run-dir", run_dir)
    assert result.exit_code == 0
    assert "nothing runs" in result.stdout


def test_a_bad_configuration_is_named(run_dir):
    (run_dir / "t.toml").write_text("[memd]\nblok_size = 16\n")
    result = invoke("up", "--config", run_dir / "t.toml", "--run-dir", run_dir)
    assert result.exit_code == 1
    assert "memd.blok_size" in result.stderr
    assert not (run_dir / "supervisord.conf").exists()


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        ("none.gguf", "none.gguf: no such file or folder"),
        ("random:none.json", "none.json: no such file"),
        ("empty", "config.json"),
        ("text.gguf", "text.gguf: not a GGUF file"),
    ],
)
def test_a_model_that_cannot_be_read_is_said_before_anything_starts(run_dir, monkeypatch, model, wrong):
    monkeypatch.chdir(run_dir)
    (run_dir / "empty").mkdir()
    (run_dir / "text.gguf").write_text("a model")
    result = invoke("up", "--model", model, "--run-dir", run_dir / "run")
    assert result.exit_code == 1
    assert wrong in result.stderr
    assert not (run_dir / "run").exists()


def test_a_port_in_use_is_said_before_anything_starts(run_dir, tiny_model_dir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = invoke("up", "--model", tiny_model_dir("llama"), "--run-dir", run_dir, "--port", port)
    assert result.exit_code == 1
    assert f"gateway.port: 127.0.0.1:{port} is in use" in result.stderr
    assert not (run_dir / "supervisord.conf").exists()


@pytest.mark.parametrize(
    ("words", "stdin"), [(["generate", "\udcff"], b""), (["generate", "-"], b"a\xff"), (["chat"], b"\xff\n")]
)
def test_text_that_is_not_utf8_is_refused(run_dir, words, stdin):
    result = invoke(*words, "--run-dir", run_dir, input=stdin)
    assert result.exit_code == 1
    assert "UTF-8" in result.stderr


class FailedCall(grpc.RpcError, grpc.Call):
    """As grpc's own: both an error and a call."""

    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return "no\nroute"

    def trailing_metadata(self):
        return ()

    initial_metadata = is_active = time_remaining = cancel = add_callback = trailing_metadata


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidRequestError("sampling.top_p", "got 2;\nexpected (0, 1]"), "sampling.top_p: got 2; expected (0, 1]"),
        (FailedCall(), "UNAVAILABLE: no route"),
    ],
)
def test_known_errors_become_one_line(error, expected):
    group = ReportingGroup("x")

    @group.command()
    def fail():
        raise error

    result = CliRunner().invoke(group, ["fail"])
    assert result.exit_code == 1
    assert result.stderr == f"Error: {expected}\n"
