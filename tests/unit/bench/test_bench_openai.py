"""Servers that speak OpenAI's HTTP API, played by a small one of our own."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bench.deployment.open import DeploymentOptions, open_deployment, parse_deployment
from bench.deployment.peers import PEERS, PeerOptions, free_port, running_peer, served_model
from bench.load.endpoint import EndpointSpec, Protocols, Tokens, connect
from bench.load.openai_endpoint import parse_line
from tandem.errors import ConfigError, NotReadyError, SequenceFailedError

FAKE_SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": "fake"}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""
PEER = PeerOptions(model="m.gguf", num_threads=2, num_slots=4, max_context_tokens=512)


class Handler(BaseHTTPRequestHandler):
    """Answers with a chunk a token; the prompt's first token chooses what goes wrong."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)  # type: ignore[attr-defined]
        if body["prompt"][0] >= 400:
            self.send_error(body["prompt"][0], "no")
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for number in range(body["max_tokens"] - 1):  # the last is half a character: no text
            self._event({"choices": [{"text": f"t{number}"}]})
        usage = {"completion_tokens": body["max_tokens"], "prompt_tokens_details": {"cached_tokens": 4}}
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.bodies = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


async def collect(address: str, prompt: list[int], max_tokens: int) -> list[Tokens]:
    endpoint = connect(EndpointSpec(Protocols.OPENAI, address, "fake"))
    try:
        return [tokens async for tokens in endpoint.generate(prompt, max_tokens)]
    finally:
        await endpoint.close()


def address_of(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


async def test_every_token_is_counted_with_or_without_text(server):
    pieces = await collect(address_of(server), [1, 2, 3], 5)
    assert [piece.num_tokens for piece in pieces] == [1, 1, 1, 1, 1]
    assert pieces[-1].num_cached_tokens == 4


async def test_the_server_is_asked_for_the_same_work_as_tandem(server):
    await collect(address_of(server), [1, 2, 3], 5)
    (body,) = server.bodies
    assert body["prompt"] == [1, 2, 3]
    assert (body["model"], body["max_tokens"], body["temperature"], body["ignore_eos"]) == ("fake", 5, 0.0, True)
    assert body["stream"] is True


@pytest.mark.parametrize(("status", "error"), [(503, NotReadyError), (400, SequenceFailedError)])
async def test_a_status_is_an_error(server, status, error):
    with pytest.raises(error, match=f"HTTP {status}"):
        await collect(address_of(server), [status], 5)


async def test_a_server_that_is_away_is_an_error():
    with pytest.raises(NotReadyError, match="ConnectError"):
        await collect(f"http://127.0.0.1:{free_port()}", [1], 5)


@pytest.mark.parametrize("line", ["", ": comment", "event: x", "data: [DONE]", 'data: {"choices": [{"text": ""}]}'])
def test_lines_without_tokens(line):
    assert parse_line(line, 0) is None


def test_a_usage_that_agrees_with_the_chunks_adds_nothing():
    assert parse_line('data: {"choices": [], "usage": {"completion_tokens": 3}}', 3) == Tokens(0)


@pytest.mark.parametrize("line", ["data: {", 'data: {"error": {"message": "bad"}}', "data: []"])
def test_lines_that_are_errors(line):
    with pytest.raises(SequenceFailedError):
        parse_line(line, 0)


def test_token_ids_are_the_tokens_where_they_are_told():
    line = 'data: {"choices": [{"text": "ab", "token_ids": [5, 6]}], "usage": {"completion_tokens": 2}}'
    assert parse_line(line, 0) == Tokens(2, (5, 6))
    assert parse_line('data: {"choices": [{"text": "", "token_ids": null}], "usage": null}', 2) is None


@pytest.mark.parametrize("name", sorted(PEERS))
def test_peers_are_told_model_threads_and_slots(name):
    peer = PEERS[name](PeerOptions("m.gguf", 2, 4, 512, extra_args=("--more",)), 1234)
    line = " ".join(peer.command)
    assert "--model m.gguf" in line
    assert "--port 1234" in line
    assert peer.command[-1] == "--more"


def test_a_peer_that_is_not_installed_is_a_clear_error(tmp_path):
    options = PeerOptions("m.gguf", 2, 4, 512, llama_server=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="llama-server: no program"), running_peer("llama-server", options, tmp_path):
        pass


@pytest.fixture
def fake_llama_server(tmp_path: Path) -> Path:
    path = tmp_path / "llama-server"
    script = tmp_path / "server.py"
    script.write_text(FAKE_SERVER)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')  # a #! line has no room for a space
    path.chmod(0o755)
    return path


def test_a_peer_is_started_waited_for_and_ended(fake_llama_server):
    peer = PeerOptions("m.gguf", 2, 4, 512, llama_server=str(fake_llama_server))
    with open_deployment(parse_deployment("llama-server"), DeploymentOptions("default", peer=peer)) as target:
        assert target.endpoint.protocol is Protocols.OPENAI
        assert target.endpoint.model == "fake"
        address = target.endpoint.address
    with pytest.raises(NotReadyError):
        served_model(address)


def test_a_peer_that_ends_is_said_with_its_log(tmp_path):
    options = PeerOptions("m.gguf", 2, 4, 512, python=sys.executable)  # which has no vllm
    with (
        pytest.raises(NotReadyError, match=r"(?s)vllm does not serve.*vllm"),
        running_peer("vllm", options, tmp_path / "log"),
    ):
        pass


def test_a_server_that_runs_already_is_used_as_it_is():
    with pytest.raises(NotReadyError, match="does not list its models"):
        spec = parse_deployment(f"openai:http://127.0.0.1:{free_port()}")
        open_deployment(spec, DeploymentOptions("default")).__enter__()
