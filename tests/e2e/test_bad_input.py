"""What a stranger may send or misconfigure: each gets a clear answer, and the system serves on."""

import asyncio
import math
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import pytest

from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as pb_grpc
from tests.e2e.test_load import idle_statistics
from tests.support.deployment import Deployment, deployment

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def system(tiny_model_dir):
    settings = {"memd": {"kv-bytes": 8 << 20}, "gateway": {"max-message-bytes": 1 << 20}}
    with deployment(str(tiny_model_dir("llama")), settings) as running:
        yield running


@pytest.fixture
def stub(system):
    with grpc.insecure_channel(system.gateway) as channel:
        yield pb_grpc.GatewayServiceStub(channel)


def refusal(call) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    return caught.value


def assert_serving(stub) -> None:
    """A good request still gets its answer."""
    good = pb.GenerateRequest(text="still here?", sampling=pb.SamplingParams(max_tokens=3, ignore_eos=True))
    assert sum(len(piece.token_ids) for piece in stub.Generate(good)) == 3


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.GenerateRequest(), "prompt"),
        (pb.GenerateRequest(text=""), "text"),
        (pb.GenerateRequest(token_ids=pb.TokenIds()), "token_ids"),
        (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[2**32 - 1])), "token_ids"),
        (pb.GenerateRequest(text="a", sampling=pb.SamplingParams(max_tokens=10**9)), "max_tokens"),
        (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[65] * 100_000)), "token_ids"),
        (pb.GenerateRequest(text="a", sampling=pb.SamplingParams(temperature=-1)), "temperature"),
        (pb.GenerateRequest(text="a", sampling=pb.SamplingParams(temperature=math.nan)), "temperature"),
        (pb.GenerateRequest(text="a", sampling=pb.SamplingParams(top_p=0)), "top_p"),
        (pb.GenerateRequest(text="a", sampling=pb.SamplingParams(top_k=-2)), "top_k"),
        (pb.GenerateRequest(text="a", sampling=pb.SamplingParams(min_p=math.inf)), "min_p"),
        (pb.GenerateRequest(text="a", sampling=pb.SamplingParams(repetition_penalty=0)), "repetition_penalty"),
        (pb.GenerateRequest(text="a", sampling=pb.SamplingParams(n=0)), "n"),
        (pb.GenerateRequest(text="a", sampling=pb.SamplingParams(logit_bias={1: math.nan})), "logit_bias"),
        (pb.GenerateRequest(text="a", sampling=pb.SamplingParams(stop=[""])), "stop"),
    ],
)
def test_a_bad_field_is_named(stub, request_, field):
    error = refusal(stub.Generate(request_))
    assert error.code() == INVALID
    assert field in error.details()
    assert_serving(stub)


def test_invalid_utf8_is_refused(system, stub):
    text = b"\xff\xfe"
    raw = bytes([0x12, len(text)]) + text  # field 2 of GenerateRequest: `text`
    with grpc.insecure_channel(system.gateway) as channel:
        call = channel.unary_stream("/tandem.gateway.v1.GatewayService/Generate")
        error = refusal(call(raw))
    assert error.code() in (grpc.StatusCode.INTERNAL, INVALID)
    assert_serving(stub)


def test_a_request_id_cannot_run_twice(stub):
    first = stub.Generate(
        pb.GenerateRequest(request_id="twin", text="a", sampling=pb.SamplingParams(max_tokens=200, ignore_eos=True))
    )
    next(iter(first))
    error = refusal(stub.Generate(pb.GenerateRequest(request_id="twin", text="b")))
    assert error.code() == grpc.StatusCode.ALREADY_EXISTS
    assert "twin" in error.details()
    assert len(list(first)) > 0


def test_a_message_over_the_limit_is_refused(stub):
    error = refusal(stub.Generate(pb.GenerateRequest(text="x" * (2 << 20))))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert_serving(stub)


async def test_a_client_that_never_reads_holds_nobody_up(system):
    options = [("grpc.http2.max_frame_size", 16384), ("grpc.http2.lookahead_bytes", 1)]
    async with grpc.aio.insecure_channel(system.gateway, options=options) as channel:
        stub = pb_grpc.GatewayServiceStub(channel)
        sampling = pb.SamplingParams(max_tokens=300, ignore_eos=True)
        silent = [stub.Generate(pb.GenerateRequest(text="unread", sampling=sampling)) for _ in range(4)]
        await asyncio.gather(*(call.read() for call in silent))
        read = stub.Generate(pb.GenerateRequest(text="read", sampling=sampling))
        assert sum([len(piece.token_ids) async for piece in read]) == 300
        for call in silent:
            call.cancel()
    await idle_statistics(system)


def run_service(service: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"services.{service}.main", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def run_dir():
    path = Path(tempfile.mkdtemp(prefix="tdm"))
    yield path
    shutil.rmtree(path)


def test_an_unknown_key_in_the_config_stops_the_start(run_dir):
    config = run_dir / "tandem.toml"
    config.write_text("[memd]\nblok_size = 16\n")
    ended = run_service("memd", "--config", str(config), "--run-dir", str(run_dir))
    assert ended.returncode != 0
    assert "memd.blok_size" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_stops_the_gateway(run_dir, tiny_model_dir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run_service(
            "gateway", "--run-dir", str(run_dir), "--model", str(tiny_model_dir("llama")), "--port", str(port)
        )
    assert ended.returncode != 0
    assert str(port) in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("damage", ["missing", "truncated", "wrong type"])
def test_a_bad_model_file_stops_memd(run_dir, default_model_path, damage):
    path = run_dir / "model.gguf"
    content = default_model_path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "wrong type":
        path.write_bytes(content.replace(b"llama.block_count\x04", b"llama.block_count\x06", 1))
    ended = run_service("memd", "--run-dir", str(run_dir), "--model", str(path))
    assert ended.returncode == 1
    assert "model.gguf" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_phases_wait_for_memd_and_say_so(run_dir, tiny_model_dir):
    system = Deployment(run_dir, str(tiny_model_dir("llama")))
    try:
        system.start("prefill", "decode", "controller", "gateway")
        system.wait_serving("controller")
        for service in ("prefill", "decode"):
            wait_for_text(lambda service=service: system.log(service), "memd.waiting")
        system.start("memd")
        system.wait_serving()
        with grpc.insecure_channel(system.gateway) as channel:
            assert_serving(pb_grpc.GatewayServiceStub(channel))
    finally:
        system.close()


def wait_for_text(read, text: str) -> None:
    """Until `read()` holds `text`; the test's own time limit bounds it."""
    while text not in read():
        time.sleep(0.05)
