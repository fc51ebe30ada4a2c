"""Whatever comes over the wire: each call is answered or refused by name, and nothing is left of it."""

import asyncio
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import example, given
from hypothesis import strategies as st

from services.gateway.service import SERVICE_NAME, add_to_server
from tandem.config.settings import GatewayConfig
from tandem.rpc.server import ServiceHost
from tandem.rpc.stubs.common.v1 import common_pb2
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tests.support.fuzzing import examples
from tests.support.gateway_fakes import Rig, ScriptedPhases
from tests.support.gateway_world import EOS, byte_model
from tests.support.hostile_messages import damaged, messages, replaced

CODE = grpc.StatusCode
METHODS: dict[str, MethodDescriptor] = {
    method.name: method for method in pb.DESCRIPTOR.services_by_name["GatewayService"].methods
}
MAX_MESSAGE_BYTES = 32 << 10
HANG_S = 240.0
SCRIPT = "ké".encode()
TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['user', 'system'] %}{{ raise_exception(m.role) }}{% endif %}"
    "{{ m.role }}: {{ m.content | tojson }} {{ strftime_now('%Y') }};{% endfor %}"
)
NUM_CONTEXT_TOKENS = 128
GOOD = {
    "Generate": pb.GenerateRequest(text="hi", request_id="a"),
    "GenerateOnce": pb.GenerateOnceRequest(request=pb.GenerateRequest(text="hi")),
    "Chat": pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="hi")]),
    "Tokenize": pb.TokenizeRequest(text="hi"),
}
PLAIN = pb.GenerateRequest(text="hi", request_id="plain").SerializeToString()

PLAUSIBLE = {
    "GenerateRequest.request_id": st.sampled_from(["", "a", "b"]),
    "GenerateRequest.text": st.sampled_from(["hi", "b" * 40]),
    "GenerateRequest.token_ids": st.builds(pb.TokenIds, ids=st.lists(st.integers(0, EOS), min_size=1, max_size=8)),
    "GenerateRequest.cache_salt": st.sampled_from(["", "salt"]),
    "GenerateOnceRequest.request": st.builds(
        pb.GenerateRequest, text=st.just("hi"), request_id=st.sampled_from(["", "a"])
    ),
    "ChatRequest.request_id": st.sampled_from(["", "a", "b"]),
    "ChatRequest.messages": st.lists(
        st.builds(pb.ChatMessage, role=st.sampled_from(["user", "system"]), content=st.sampled_from(["hi", ""])),
        min_size=1,
        max_size=3,
    ),
    "ChatMessage.role": st.just("user"),
    "AbortRequest.request_id": st.sampled_from(["a", "b"]),
    "TokenizeRequest.text": st.just("hi"),
    "SamplingParams.temperature": st.sampled_from([0.0, 0.7]),
    "SamplingParams.top_p": st.sampled_from([0.5, 1.0]),
    "SamplingParams.top_k": st.sampled_from([0, 5]),
    "SamplingParams.min_p": st.sampled_from([0.0, 0.1]),
    "SamplingParams.repetition_penalty": st.just(1.5),
    "SamplingParams.presence_penalty": st.just(0.5),
    "SamplingParams.frequency_penalty": st.just(0.5),
    "SamplingParams.max_tokens": st.sampled_from([1, 2, 8]),
    "SamplingParams.min_tokens": st.sampled_from([0, 1, 4]),
    "SamplingParams.stop": st.sampled_from([["é"], ["k", "ké"], ["never"]]),
    "SamplingParams.stop_token_ids": st.sampled_from([[SCRIPT[1]], [5]]),
    "SamplingParams.n": st.sampled_from([1, 2, 4]),
    "SamplingParams.logprobs": st.sampled_from([0, 2]),
    "SamplingParams.logit_bias": st.sampled_from([{1: 3.5}, {EOS: -100.0}]),
    "Resume.origin": st.builds(pb.Origin, seed=st.integers(0, 2**64 - 1), arrival_unix_ns=st.integers(0, 2**64 - 1)),
    "Resume.answers": st.lists(
        st.builds(
            pb.ResumedAnswer,
            index=st.integers(0, 2),
            token_ids=st.sampled_from([[], list(SCRIPT[:1]), list(SCRIPT), [EOS], [300]]),
            finished=st.booleans(),
        ),
        max_size=3,
    ),
    "Origin.model_digest": st.just(""),
    "Reuse.ratio": st.sampled_from([0.0, 0.5, 1.0]),
    "Reuse.segments": st.sampled_from([[], [pb.Segment(text="hi")], [pb.Segment(tokens=common_pb2.Span(end=1))]]),
}


@dataclass
class Outcome:
    """Of one call."""

    code: grpc.StatusCode
    text: str = ""
    status: Any = None  # google.rpc.Status
    responses: list[bytes] = field(default_factory=list)

    def detail(self, kind: type[Any]) -> Any:
        found = kind()
        assert self.status is not None, (self.code, self.text)
        assert any(packed.Unpack(found) for packed in self.status.details), (self.code, self.text)
        return found


class Wire:
    """A gateway behind a real server, in front of phases that follow a script; whatever is logged is kept."""

    def __init__(self, rig: Rig, channel: grpc.aio.Channel) -> None:
        self.rig = rig
        self.channel = channel
        self.events: list[Any] = []
        self.codes: set[grpc.StatusCode] = set()

    async def call(self, method: str, request: bytes) -> Outcome:
        path = f"/{SERVICE_NAME}/{method}"
        responses: list[bytes] = []
        try:
            async with asyncio.timeout(HANG_S):
                if METHODS[method].server_streaming:
                    responses += [response async for response in self.channel.unary_stream(path)(request)]
                else:
                    responses.append(await self.channel.unary_unary(path)(request))
        except grpc.aio.AioRpcError as error:
            return Outcome(error.code(), error.details() or "", rpc_status.from_call(error), responses)
        return Outcome(CODE.OK, responses=responses)

    async def exchange(self, calls: list[tuple[str, bytes]]) -> None:
        """All at once; then everything is as if they had never been."""
        outcomes = await asyncio.gather(*(self.call(*call) for call in calls))
        for (method, _), outcome in zip(calls, outcomes, strict=True):
            judge(METHODS[method], outcome)
        self.codes.update(outcome.code for outcome in outcomes)
        plain = await self.call("Generate", PLAIN)
        pieces = [pb.GenerateResponse.FromString(response) for response in plain.responses]
        assert (plain.code, "".join(piece.text_delta for piece in pieces)) == (CODE.OK, SCRIPT.decode())
        await self.rig.assert_all_released()
        assert not self.events, self.events

    def note(self, _logger: Any, method: str, event: Any) -> Any:
        """A structlog processor."""
        if method in ("warning", "error", "critical", "exception"):
            self.events.append(event)
        raise structlog.DropEvent


def names_in(message: Descriptor) -> set[str]:
    """The first part of a field's path; "request" for what cannot be read, "gateway" for a key of its configuration."""
    known = {"request", "gateway", *(each.name for each in message.fields), *(each.name for each in message.oneofs)}
    return known.union(*(names_in(each.message_type) for each in message.fields if each.message_type is not None))


def judge(method: MethodDescriptor, outcome: Outcome) -> None:
    """Answered, or refused for a reason that the client can act upon."""
    if outcome.code is CODE.OK:
        for response in outcome.responses:
            message_factory.GetMessageClass(method.output_type).FromString(response)
    elif outcome.code is CODE.INVALID_ARGUMENT:
        (violation,) = outcome.detail(error_details_pb2.BadRequest).field_violations
        assert violation.field.split(".")[0].split("[")[0] in names_in(method.input_type), violation
        assert violation.description
    elif outcome.code is CODE.RESOURCE_EXHAUSTED and "larger than max" not in outcome.text:
        assert outcome.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    else:
        assert (outcome.code, method.name) in ALSO_POSSIBLE, outcome
        assert "request_id" in outcome.text or "larger than max" in outcome.text


ALSO_POSSIBLE = {
    *((CODE.ALREADY_EXISTS, name) for name in ("Generate", "GenerateOnce", "Chat")),
    *((CODE.RESOURCE_EXHAUSTED, name) for name in METHODS),
    (CODE.NOT_FOUND, "Abort"),
}


class _Kept(logging.Handler):
    def __init__(self, events: list[Any]) -> None:
        super().__init__(logging.WARNING)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        self._events.append(record.getMessage())


@dataclass
class Running:
    """A wire on a loop of its own, so that examples come one after another in a test that is none of its loop."""

    runner: asyncio.Runner
    wire: Wire

    def exchange(self, *calls: tuple[str, bytes]) -> None:
        self.runner.run(self.wire.exchange(list(calls)))


@pytest.fixture
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="tdm") as folder, asyncio.Runner() as runner:
        wire, host, phases = runner.run(_start(Path(folder) / "g.sock"))
        kept = _Kept(wire.events)
        logging.getLogger().addHandler(kept)
        structlog.configure(processors=[wire.note])
        runner.get_loop().set_exception_handler(lambda _loop, context: wire.events.append(context))
        try:
            yield Running(runner, wire)
        finally:
            logging.getLogger().removeHandler(kept)
            runner.run(_stop(wire, host, phases))


async def _start(path: Path) -> tuple[Wire, ServiceHost, ScriptedPhases]:
    config = GatewayConfig(max_waiting=4, max_running=3, max_n=3, max_tokens_default=8)
    rig = await Rig(config=config, model=byte_model(NUM_CONTEXT_TOKENS, TEMPLATE)).up()
    host = ServiceHost([SERVICE_NAME], [f"unix:{path}"], max_message_bytes=MAX_MESSAGE_BYTES)
    add_to_server(rig.gateway.frontend, rig.gateway.status, host.server)
    await host.start()
    phases = ScriptedPhases(rig, SCRIPT)
    phases.start()
    return Wire(rig, grpc.aio.insecure_channel(f"unix:{path}")), host, phases


async def _stop(wire: Wire, host: ServiceHost, phases: ScriptedPhases) -> None:
    await wire.channel.close()
    await phases.stop()
    await host.stop(0)


@st.composite
def sent(draw: st.DrawFn) -> tuple[str, bytes]:
    """A call with a structured message."""
    name = draw(st.sampled_from(["Generate", "Generate", "Chat", *METHODS]))
    message = draw(messages(METHODS[name].input_type, PLAUSIBLE))
    if name in GOOD and draw(st.integers(0, 3)):
        message = replaced(GOOD[name], message)
    return name, message.SerializeToString()


@st.composite
def mangled(draw: st.DrawFn) -> tuple[str, bytes]:
    """A call with bytes that are no message, or not the one that they were."""
    name, contents = draw(sent())
    return name, draw(st.one_of(damaged(contents), st.binary(max_size=60)))


def test_fuzz_fields_of_every_call(running):
    @examples(70)
    @given(st.lists(sent(), min_size=1, max_size=3))
    def check(calls: list[tuple[str, bytes]]) -> None:
        running.exchange(*calls)

    check()
    assert running.wire.codes >= {CODE.OK, CODE.INVALID_ARGUMENT}


def test_fuzz_bytes_of_every_call(running):
    @examples(50)
    @given(st.lists(mangled(), min_size=1, max_size=3))
    @example([("Generate", b"\x12\x02\xff\xfe"), ("Chat", b"\x0a\x04\xed\xa0\x80\x80")])
    def check(calls: list[tuple[str, bytes]]) -> None:
        running.exchange(*calls)

    check()
    assert running.wire.codes >= {CODE.OK, CODE.INVALID_ARGUMENT}
